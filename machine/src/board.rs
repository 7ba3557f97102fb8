//! The board: all chips, the maps by which processors reach them, and the rule by which they are called.
//!
//! A chip is locked for one call, and no other chip is called meanwhile. Effects go to one queue in the order in
//! which the locks were held; after unlocking, the caller has the queue applied (`wiring.rs`), one effect after
//! another, by one thread at a time. So the levels of all lines end as their chips left them, and no two chips can
//! wait for each other.

use crate::chips::{AnySlot, ChipId, Chips, Fitting, PCI_FUNCTIONS, Slot, locked};
use crate::clock::Clock;
use crate::consoles::Consoles;
use crate::control::{Control, Request};
use crate::memory::{Blocks, PAGE};
use crate::memory_map::{Decoding, MemoryMap};
use crate::port_log::{Format, PortLogs};
use crate::ports::{Diagnostics, PortMap};
use crate::random::Random;
use crate::timers::Timers;
use crate::triggers::{SwitchAt, Triggers};
use crate::wiring::Wires;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::sync::{Arc, Mutex};
use trimaran_cpu::bus::ApicSink;
use trimaran_cpu::ram::Ram;
use trimaran_cpu::shared::{CodeFence, attention};
use trimaran_devices::chip::{ApicMessage, Chip, Cx, Delivery, Effect, Shorthand};
use trimaran_devices::i440fx::I440Fx;
use trimaran_devices::pci::Region;
use trimaran_devices::pci_config::ConfigAddress;

/// What [`Board::new`] needs besides the chips' own fitting.
pub struct BoardConfig {
    pub cpus: usize,
    pub deterministic: bool,
    /// Of the processors' model.
    pub tsc_khz: u32,
    pub has_apic: bool,
    pub diagnostics: Diagnostics,
    pub port_logs: Vec<(u16, Format)>,
    /// The ROM's image; empty without firmware.
    pub firmware: Vec<u8>,
    pub consoles: Consoles,
    pub switches: Vec<SwitchAt>,
}

/// See the head of this file.
pub struct Board {
    pub chips: Chips,
    pub memory: MemoryMap,
    pub ports: PortMap,
    pub clock: Clock,
    pub timers: Timers,
    pub control: Control,
    pub fence: Arc<CodeFence>,
    pub consoles: Consoles,
    pub config_address: Mutex<ConfigAddress>,
    pub random: Mutex<Random>,
    pub triggers: Triggers,
    pub port_logs: PortLogs,
    /// Which vCPUs are in system management mode.
    pub smm: Box<[AtomicBool]>,
    /// HPET timers 0 and 1 stand in for the 8254 and the RTC.
    pub legacy_route: AtomicBool,
    pub(crate) tsc_khz: u32,
    /// Where messages for a local APIC go that is lent. Locked before the chip.
    pub(crate) apic_sink: Mutex<Option<Arc<dyn ApicSink>>>,
    queue: Mutex<VecDeque<Posted>>,
    pub(crate) wires: Mutex<Wires>,
    firmware: Vec<u8>,
}

/// What waits in the queue.
pub(crate) enum Posted {
    Effect(ChipId, Effect),
    /// [`Board::legacy_route`] changed.
    LegacyRoute,
}

/// More effects than this in one go mean that the wiring runs in a circle.
const MANY: usize = 1_000_000;

impl Board {
    pub fn new(config: BoardConfig, fitting: Fitting, ram: Arc<Ram>, blocks: Blocks) -> Arc<Self> {
        let fence = CodeFence::new(config.cpus);
        let board = Arc::new(Board {
            chips: Chips::new(fitting),
            memory: MemoryMap::new(ram, blocks),
            ports: PortMap::new(config.diagnostics),
            clock: Clock::new(config.deterministic, &fence),
            timers: Timers::new(config.deterministic),
            control: Control::new(fence.clone(), config.deterministic),
            fence,
            consoles: config.consoles,
            config_address: Mutex::default(),
            random: Mutex::new(Random::new(config.deterministic)),
            triggers: Triggers::new(config.switches),
            port_logs: PortLogs::new(&config.port_logs),
            smm: (0..config.cpus).map(|_| AtomicBool::new(false)).collect(),
            legacy_route: AtomicBool::new(false),
            tsc_khz: config.tsc_khz,
            apic_sink: Mutex::default(),
            queue: Mutex::default(),
            wires: Mutex::default(),
            firmware: config.firmware,
        });
        for slot in &board.chips.lapics {
            let mut lapic = slot.lock();
            lapic.set_tsc_frequency(config.tsc_khz);
            if !config.has_apic {
                lapic.set_absent();
            }
        }
        board.load_rom();
        board.remap();
        board
    }

    /// Calls a chip and applies what comes of it.
    pub fn call<T: Chip, R>(&self, slot: &Slot<T>, f: impl FnOnce(&mut T, &mut Cx) -> R) -> R {
        let (result, posted) = self.touch(slot, f);
        if posted {
            self.settle();
        }
        result
    }

    /// Calls a chip; its effects wait in the queue. The flag says that there are any.
    pub(crate) fn touch<T: Chip, R>(
        &self,
        slot: &Slot<T>,
        f: impl FnOnce(&mut T, &mut Cx) -> R,
    ) -> (R, bool) {
        let mut effects = Vec::new();
        let mut chip = slot.lock();
        let now = self.clock.now();
        let result = f(&mut chip, &mut Cx { now, ram: &self.memory, effects: &mut effects });
        let deadline = slot.note_deadline(&chip);
        let posted = self.post(slot.id, effects);
        drop(chip);
        self.deadline_noted(deadline);
        (result, posted)
    }

    /// [`Board::call`] for a chip that is known by its place only.
    pub fn call_any<R>(
        &self,
        slot: &dyn AnySlot,
        mut f: impl FnMut(&mut dyn Chip, &mut Cx) -> R,
    ) -> Option<R> {
        let (result, posted) = self.touch_any(slot, &mut f);
        if posted {
            self.settle();
        }
        result
    }

    pub(crate) fn touch_any<R>(
        &self,
        slot: &dyn AnySlot,
        f: &mut dyn FnMut(&mut dyn Chip, &mut Cx) -> R,
    ) -> (Option<R>, bool) {
        let (mut result, mut posted) = (None, false);
        let deadline = slot.with(&mut |chip| {
            let mut effects = Vec::new();
            let now = self.clock.now();
            result = Some(f(chip, &mut Cx { now, ram: &self.memory, effects: &mut effects }));
            posted = self.post(slot.id(), effects);
        });
        self.deadline_noted(deadline);
        (result, posted)
    }

    /// Queues effects while their chip is still locked, so that the queue has them in the chip's order.
    fn post(&self, id: ChipId, effects: Vec<Effect>) -> bool {
        if effects.is_empty() {
            return false;
        }
        locked(&self.queue).extend(effects.into_iter().map(|effect| Posted::Effect(id, effect)));
        true
    }

    /// Applies the queue until it is empty.
    pub(crate) fn settle(&self) {
        let mut wires = locked(&self.wires);
        for _ in 0..MANY {
            let Some(posted) = locked(&self.queue).pop_front() else { return };
            self.apply(&mut wires, posted);
        }
        tracing::error!("the chips' effects run in a circle; {} dropped", locked(&self.queue).len());
        locked(&self.queue).clear();
    }

    /// Has the maps read anew, in turn with all other effects.
    pub(crate) fn request_remap(&self, from: ChipId) {
        locked(&self.queue).push_back(Posted::Effect(from, Effect::Remap));
        self.settle();
    }

    fn deadline_noted(&self, deadline: u64) {
        if self.timers.noted(deadline)
            && let Some(vcpu) = self.control.deterministic_vcpu()
        {
            self.fence.vcpus[vcpu].raise(attention::DEADLINE);
        }
    }

    /// Calls the chips whose events are due.
    pub fn run_events(&self) {
        let now = self.clock.now();
        for slot in self.chips.all().filter(|slot| slot.deadline() <= now) {
            self.call_any(slot, |chip, cx| {
                if chip.next_event().is_some_and(|due| due <= cx.now) {
                    chip.event(cx);
                }
            });
        }
        self.hpet_called();
    }

    /// The HPET may have switched its legacy routing.
    pub(crate) fn hpet_called(&self) {
        let route = self.chips.hpet.lock().legacy_route();
        if self.legacy_route.swap(route, AcqRel) != route {
            locked(&self.queue).push_back(Posted::LegacyRoute);
            self.settle();
        }
    }

    /// Reads the maps anew from the chips, and has every vCPU forget the old ones.
    pub(crate) fn remap(&self) {
        let bars: Vec<(ChipId, Region)> = PCI_FUNCTIONS
            .iter()
            .flat_map(|&(_, _, id)| {
                let mut regions = Vec::new();
                self.chips.get(id).with(&mut |chip| {
                    regions = chip.pci().map(|pci| pci.regions().collect()).unwrap_or_default();
                });
                regions.into_iter().map(move |region| (id, region))
            })
            .collect();
        let (pm, smbus) = {
            let pm = self.chips.pm.lock();
            (pm.pm_base(), pm.smbus_base())
        };
        self.ports.rebuild(pm, smbus, &bars);
        let (pam, smram) = {
            let bridge = self.chips.host_bridge.lock();
            (I440Fx::pam_areas().map(|(at, size)| (at, size, bridge.pam(at))).collect(), bridge.smram())
        };
        let lapic = self.chips.lapics.iter().find_map(|slot| slot.lock().xapic_base());
        self.memory.rebuild(&Decoding { pam, smram, lapic, bars, hpet: true });
        self.fence.vcpus.iter().for_each(|vcpu| vcpu.raise(attention::REMAP));
    }

    /// Raises attention bits of a vCPU and wakes it.
    pub(crate) fn attend(&self, vcpu: usize, bits: u32) {
        if let Some(shared) = self.fence.vcpus.get(vcpu) {
            shared.raise(bits);
            self.control.wake(vcpu);
        }
    }

    /// A request to the machine as a whole: no vCPU goes on before the I/O thread has served it.
    pub(crate) fn ask(&self, request: Request) {
        self.control.request(request);
        self.timers.wake();
    }

    /// INIT of all processors.
    pub(crate) fn init_cpus(&self) {
        let message = ApicMessage {
            destination: 0,
            logical: false,
            delivery: Delivery::Init,
            vector: 0,
            level_triggered: false,
            assert: true,
            shorthand: Shorthand::None,
        };
        for (n, slot) in self.chips.lapics.iter().enumerate() {
            let enabled = self.touch(slot, |lapic, cx| {
                lapic.accept(cx, &message);
                lapic.enabled()
            });
            if !enabled.0 {
                self.attend(n, attention::INIT);
            }
        }
    }

    /// RESET#: every chip as after power-on. Memory stays; the ROM is as it was.
    pub(crate) fn reset(&self) {
        *locked(&self.config_address) = ConfigAddress::default();
        for slot in self.chips.all() {
            self.call_any(slot, |chip, cx| chip.reset(cx));
        }
        self.hpet_called();
        self.smm.iter().for_each(|smm| smm.store(false, Release));
        self.fence.a20.store(true, Release);
        let pulses = attention::NMI | attention::SMI | attention::INIT | attention::SIPI;
        self.fence.vcpus.iter().for_each(|vcpu| vcpu.clear(pulses));
        self.load_rom();
        self.remap();
    }

    /// Puts the firmware at the end of its block.
    fn load_rom(&self) {
        let blocks = *self.memory.blocks();
        let at = blocks.rom + blocks.rom_len - self.firmware.len() as u64;
        let ram = self.memory.ram();
        let fill = [0xFF; PAGE as usize];
        (blocks.rom..blocks.rom + blocks.rom_len).step_by(fill.len()).for_each(|page| {
            ram.write(page, &fill);
        });
        ram.write(at, &self.firmware);
    }

    pub fn has_firmware(&self) -> bool {
        !self.firmware.is_empty()
    }
}
