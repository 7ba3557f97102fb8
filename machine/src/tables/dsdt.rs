//! The DSDT: processors, the PCI root with its interrupt links, and the devices of the ISA bridge.

use super::Hardware;
use super::aml::{self, Aml, Window};
use crate::layout;

/// IRQs among which a guest may route a PIRQ. IRQ 9 belongs to the SCI.
const LINK_IRQS: [u8; 3] = [5, 10, 11];
/// PIRQRC bit 7: the PIRQ is not routed. Bits 3:0 are the IRQ.
const PIRQRC_DISABLE: u32 = 0x80;
const PIRQRC_ROUTE: u32 = 0x0F;
/// _STA: present, enabled, shown, functioning; without "enabled".
const PRESENT: u32 = 0x0F;
const DISABLED: u32 = 0x0D;
/// Link devices, and the fields that hold their routing registers.
const LINKS: [(&str, &str); 4] = [("LNKA", "PRQA"), ("LNKB", "PRQB"), ("LNKC", "PRQC"), ("LNKD", "PRQD")];

/// Everything after the table's header.
pub(super) fn body(hardware: &Hardware) -> Aml {
    let processors: Vec<Aml> =
        hardware.cpu_ids().map(|id| aml::processor(&format!("C{id:03X}"), id)).collect();
    let sleep_off = aml::package(&[0, 0, 0, 0].map(aml::integer));
    [
        aml::name("\\_S5", &sleep_off),
        aml::scope("\\_PR", &processors),
        aml::scope("\\_SB", &[pci_root(hardware)]),
        aml::scope(
            "\\_SB",
            &LINKS.iter().zip(0..).map(|(link, uid)| interrupt_link(link, uid)).collect::<Vec<_>>(),
        ),
    ]
    .concat()
}

fn id(eisa: &[u8; 7]) -> Aml {
    aml::name("_HID", &aml::eisa_id(eisa))
}

fn uid(number: u32) -> Aml {
    aml::name("_UID", &aml::integer(number))
}

fn current(descriptors: &[Aml]) -> Aml {
    aml::name("_CRS", &aml::resources(descriptors))
}

/// _ADR of a PCI function.
fn address(slot: u8, function: u32) -> Aml {
    aml::name("_ADR", &aml::integer(u32::from(slot) << 16 | function))
}

fn pci_root(hardware: &Hardware) -> Aml {
    let (first, last) = layout::PCI_WINDOW;
    let config = u32::from(layout::PCI_CONFIG_ADDRESS);
    let mut routes = Vec::new();
    for slot in 0..32_u8 {
        for pin in 0..4_u8 {
            let slot_any_function = aml::integer(u32::from(slot) << 16 | 0xFFFF);
            let (link, _) = LINKS[layout::pirq(slot, pin)];
            routes.push(aml::package(&[
                slot_any_function,
                aml::integer(pin.into()),
                aml::path(link),
                aml::integer(0),
            ]));
        }
    }
    aml::device(
        "PCI0",
        &[
            id(b"PNP0A03"),
            uid(0),
            current(&[
                aml::window(&Window::BusNumbers, 0, 0xFF),
                aml::io(layout::PCI_CONFIG_ADDRESS, 8),
                aml::window(&Window::Io, 0, config - 1),
                aml::window(&Window::Io, config + 8, 0xFFFF),
                aml::window(&Window::Memory { cacheable: true }, layout::VIDEO_RAM as u32, 0xB_FFFF),
                aml::window(&Window::Memory { cacheable: false }, first, last),
            ]),
            aml::name("_PRT", &aml::package(&routes)),
            isa_bridge(hardware),
        ],
    )
}

fn isa_bridge(hardware: &Hardware) -> Aml {
    let mut terms = vec![
        address(layout::ISA_BRIDGE_SLOT, 0),
        aml::pci_config_region("PIRQ", layout::PIRQRC, 4),
        aml::byte_fields("PIRQ", &LINKS.map(|(_, field)| field)),
        motherboard(),
    ];
    terms.extend(isa_devices(hardware));
    aml::device("ISA", &terms)
}

/// Ports that belong to no other device.
fn motherboard() -> Aml {
    aml::device(
        "MBRD",
        &[
            id(b"PNP0C02"),
            uid(1),
            current(&[
                aml::io(layout::SMI_CMD, 2),
                aml::io(layout::PIC_ELCR, 2),
                aml::io(layout::GPE0, layout::GPE0_LENGTH),
                aml::io(layout::PM_BASE, layout::PM_LENGTH),
                aml::io(layout::SMBUS_BASE, 16),
                aml::io(layout::FW_CFG_SELECTOR, 12),
                aml::memory32_fixed(layout::IOAPIC, layout::CHIP_WINDOW, true),
                aml::memory32_fixed(layout::LAPIC, layout::CHIP_WINDOW, true),
            ]),
        ],
    )
}

fn isa_devices(hardware: &Hardware) -> Vec<Aml> {
    use layout::irq;
    let mut devices = vec![
        aml::device(
            "KBD",
            &[
                id(b"PNP0303"),
                current(&[
                    aml::io(layout::KEYBOARD_DATA, 1),
                    aml::io(layout::KEYBOARD_COMMAND, 1),
                    aml::irq(irq::KEYBOARD),
                ]),
            ],
        ),
        aml::device("MOU", &[id(b"PNP0F13"), current(&[aml::irq(irq::MOUSE)])]),
        aml::device("RTC", &[id(b"PNP0B00"), current(&[aml::io(layout::RTC, 2), aml::irq(irq::RTC)])]),
        aml::device("SPKR", &[id(b"PNP0800"), current(&[aml::io(layout::SPEAKER, 1)])]),
        serial_port("COM1", 1, layout::COM1, irq::COM1),
    ];
    if hardware.com2 {
        devices.push(serial_port("COM2", 2, layout::COM2, irq::COM2));
    }
    if hardware.parallel_port {
        let resources = current(&[aml::io(layout::LPT1, 8), aml::irq(irq::LPT1)]);
        devices.push(aml::device("LPT1", &[id(b"PNP0400"), uid(1), resources]));
    }
    if hardware.floppy {
        let resources = current(&[
            aml::io(layout::FLOPPY, 4),
            aml::io(layout::FLOPPY_RATE, 1),
            aml::irq(irq::FLOPPY),
            aml::dma(layout::FLOPPY_DMA),
        ]);
        devices.push(aml::device("FDC0", &[id(b"PNP0700"), resources]));
    }
    if hardware.hpet {
        let resources = current(&[aml::memory32_fixed(layout::HPET, 0x400, false)]);
        devices.push(aml::device("HPET", &[id(b"PNP0103"), uid(0), resources]));
    }
    devices
}

fn serial_port(at: &str, number: u32, port: u16, line: u8) -> Aml {
    aml::device(at, &[id(b"PNP0501"), uid(number), current(&[aml::io(port, 8), aml::irq(line)])])
}

/// A PCI interrupt link device over one PIRQRC register of the PIIX3.
fn interrupt_link(&(at, field): &(&str, &str), number: u32) -> Aml {
    let register = aml::path(&format!("\\_SB.PCI0.ISA.{field}"));
    let disabled =
        |then: &[Aml]| aml::if_(&aml::and(&register, &aml::integer(PIRQRC_DISABLE), aml::NOWHERE), then);
    // In both descriptors the interrupt number follows 5 bytes of header.
    const INTERRUPT_NUMBER: u32 = 5;
    aml::device(
        at,
        &[
            id(b"PNP0C0F"),
            uid(number),
            aml::name("_PRS", &aml::resources(&[aml::interrupts(&LINK_IRQS)])),
            aml::method(
                "_STA",
                0,
                &[disabled(&[aml::return_(&aml::integer(DISABLED))]), aml::return_(&aml::integer(PRESENT))],
            ),
            aml::method("_DIS", 0, &[aml::or(&register, &aml::integer(PIRQRC_DISABLE), &register)]),
            aml::method(
                "_CRS",
                0,
                &[
                    aml::store(&aml::resources(&[aml::interrupts(&[0])]), &aml::local(0)),
                    aml::create_dword_field(&aml::local(0), INTERRUPT_NUMBER, "LINE"),
                    aml::and(&register, &aml::integer(PIRQRC_ROUTE), &aml::path("LINE")),
                    disabled(&[aml::store(&aml::integer(0), &aml::path("LINE"))]),
                    aml::return_(&aml::local(0)),
                ],
            ),
            aml::method(
                "_SRS",
                1,
                &[
                    aml::create_dword_field(&aml::arg(0), INTERRUPT_NUMBER, "LINE"),
                    aml::store(&aml::path("LINE"), &register),
                ],
            ),
        ],
    )
}
