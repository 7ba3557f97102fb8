//! The pair of 8259A interrupt controllers, slave on the master's IR2 (Intel 8259A datasheet; ELCR: 82371SB
//! PIIX3 datasheet, "Edge/Level Control Registers").

use serde::{Deserialize, Serialize};

use crate::chip::{Chip, Cx, StateError, decode, encode, open_bus};
use crate::ports::{read_each, write_each};

/// Window of the master: ports 0x20 and 0x21.
pub const MASTER: u8 = 0;
/// Window of the slave: ports 0xA0 and 0xA1.
pub const SLAVE: u8 = 1;
/// Window of the edge/level control registers: ports 0x4D0 and 0x4D1.
pub const ELCR: u8 = 2;

/// Output pin: INT of the master, to the processors (and LINT0).
pub const INT: u8 = 0;

const VERSION: u16 = 1;
/// Lines that may be level-triggered: not 0, 1, 2, 8 and 13.
const ELCR_MASK: [u8; 2] = [0xF8, 0xDE];
/// The master's input that carries the slave.
const CASCADE: u8 = 2;

/// Which initialization command word the next write to the odd port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Expect {
    Ocw1,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Half {
    /// Levels of IR0 to IR7.
    lines: u8,
    /// Edges seen and not yet acknowledged.
    latched: u8,
    isr: u8,
    imr: u8,
    elcr: u8,
    /// T7-T3 of ICW2.
    vector_base: u8,
    expect: Expect,
    single: bool,
    ic4: bool,
    icw3: u8,
    auto_eoi: bool,
    special_fully_nested: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    /// OCW3.P: the next read is an acknowledge.
    poll: bool,
    /// OCW3.RIS: reads of the even port give the ISR.
    read_isr: bool,
    /// The level of lowest priority, 0 to 7.
    lowest: u8,
}

impl Half {
    fn new() -> Self {
        Half {
            lines: 0,
            latched: 0,
            isr: 0,
            imr: 0,
            elcr: 0,
            vector_base: 0,
            expect: Expect::Ocw1,
            single: false,
            ic4: false,
            icw3: 0,
            auto_eoi: false,
            special_fully_nested: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            poll: false,
            read_isr: false,
            lowest: 7,
        }
    }

    fn irr(&self) -> u8 {
        self.latched & !self.elcr | self.lines & self.elcr
    }

    /// An edge is forgotten when its line falls before the acknowledge: that is what gives a spurious IR7.
    fn set_line(&mut self, line: u8, level: bool) {
        let bit = 1u8 << (line & 7);
        if level {
            self.latched |= bit & !self.lines;
            self.lines |= bit;
        } else {
            self.latched &= !bit;
            self.lines &= !bit;
        }
    }

    /// The level of highest priority among `bits`.
    fn highest(&self, bits: u8) -> Option<u8> {
        (1..=8).map(|i| self.lowest.wrapping_add(i) & 7).find(|level| bits & 1 << level != 0)
    }

    /// 0 is the highest priority.
    fn rank(&self, level: u8) -> u8 {
        level.wrapping_sub(self.lowest).wrapping_sub(1) & 7
    }

    /// The request that INT stands for, if any. `master` matters to the special fully nested mode only.
    fn request(&self, master: bool) -> Option<u8> {
        let level = self.highest(self.irr() & !self.imr)?;
        let in_service = if self.special_mask { self.isr & !self.imr } else { self.isr };
        let Some(served) = self.highest(in_service) else { return Some(level) };
        let nested = master && self.special_fully_nested && level == CASCADE && served == CASCADE;
        (nested || self.rank(level) < self.rank(served)).then_some(level)
    }

    fn acknowledge(&mut self, level: u8) {
        let bit = 1u8 << (level & 7);
        self.latched &= !bit;
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.lowest = level & 7;
        }
    }

    fn write_even(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.icw1(value);
        } else if value & 0x08 != 0 {
            self.ocw3(value);
        } else {
            self.ocw2(value);
        }
    }

    /// ICW1. LTIM has no effect on a PIIX3: the ELCR takes its place.
    fn icw1(&mut self, value: u8) {
        let kept = Half { lines: self.lines, elcr: self.elcr, vector_base: self.vector_base, ..Half::new() };
        *self = kept;
        self.single = value & 2 != 0;
        self.ic4 = value & 1 != 0;
        self.expect = Expect::Icw2;
    }

    fn ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        self.poll = value & 4 != 0;
        if value & 2 != 0 {
            self.read_isr = value & 1 != 0;
        }
    }

    /// OCW2: R, SL, EOI in bits 7 to 5, the level in bits 2 to 0.
    fn ocw2(&mut self, value: u8) {
        let level = value & 7;
        let clearable = if self.special_mask { self.isr & !self.imr } else { self.isr };
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 | 0b101 => {
                if let Some(served) = self.highest(clearable) {
                    self.isr &= !(1 << served);
                    if value & 0x80 != 0 {
                        self.lowest = served;
                    }
                }
            }
            0b011 | 0b111 => {
                self.isr &= !(1 << level);
                if value & 0x80 != 0 {
                    self.lowest = level;
                }
            }
            0b110 => self.lowest = level,
            _ => {}
        }
    }

    fn write_odd(&mut self, value: u8) {
        match self.expect {
            Expect::Ocw1 => self.imr = value,
            Expect::Icw2 => {
                self.vector_base = value & 0xF8;
                self.expect = match (self.single, self.ic4) {
                    (false, _) => Expect::Icw3,
                    (true, true) => Expect::Icw4,
                    (true, false) => Expect::Ocw1,
                };
            }
            Expect::Icw3 => {
                self.icw3 = value;
                self.expect = if self.ic4 { Expect::Icw4 } else { Expect::Ocw1 };
            }
            Expect::Icw4 => {
                self.auto_eoi = value & 2 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                self.expect = Expect::Ocw1;
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    master: Half,
    slave: Half,
    int: bool,
}

/// Both 8259As of a PC and their ELCR. Input pins 0 to 15 are IRQ0 to IRQ15 (2 is the cascade: ignored).
pub struct Pic {
    state: State,
}

impl Pic {
    pub fn new() -> Self {
        Pic { state: State { master: Half::new(), slave: Half::new(), int: false } }
    }

    /// Two INTA cycles: the vector of the highest request, a spurious IR7 where it is gone.
    pub fn acknowledge(&mut self, cx: &mut Cx) -> u8 {
        let vector = match self.acknowledge_master() {
            Some(CASCADE) if !self.state.master.single => {
                let level = self.acknowledge_slave().unwrap_or(7);
                self.state.slave.vector_base | level
            }
            level => self.state.master.vector_base | level.unwrap_or(7),
        };
        self.update(cx);
        vector
    }

    /// Level of the INT output.
    pub fn int(&self) -> bool {
        self.state.int
    }

    fn acknowledge_master(&mut self) -> Option<u8> {
        let level = self.state.master.request(true)?;
        self.state.master.acknowledge(level);
        Some(level)
    }

    /// The slave's INT falls during INTA, so that a further request makes a new edge at the master.
    fn acknowledge_slave(&mut self) -> Option<u8> {
        let level = self.state.slave.request(false);
        if let Some(level) = level {
            self.state.slave.acknowledge(level);
        }
        self.state.master.set_line(CASCADE, false);
        level
    }

    fn update(&mut self, cx: &mut Cx) {
        let slave = self.state.slave.request(false).is_some();
        self.state.master.set_line(CASCADE, slave);
        let int = self.state.master.request(true).is_some();
        if int != self.state.int {
            self.state.int = int;
            cx.line(INT, int);
        }
    }

    fn read_port(&mut self, slave: bool, offset: u64) -> u8 {
        let half = if slave { &mut self.state.slave } else { &mut self.state.master };
        if half.poll {
            half.poll = false;
            let level = if slave { self.acknowledge_slave() } else { self.acknowledge_master() };
            return level.map_or(0, |level| 0x80 | level);
        }
        match offset {
            0 if half.read_isr => half.isr,
            0 => half.irr(),
            1 => half.imr,
            _ => 0xFF,
        }
    }
}

impl Chip for Pic {
    fn name(&self) -> &'static str {
        "pic"
    }

    fn reset(&mut self, cx: &mut Cx) {
        for half in [&mut self.state.master, &mut self.state.slave] {
            *half = Half { lines: half.lines, ..Half::new() };
        }
        self.update(cx);
    }

    fn read(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8) -> u64 {
        let value = match window {
            MASTER | SLAVE => read_each(offset, size, |o| self.read_port(window == SLAVE, o)),
            ELCR => read_each(offset, size, |o| match o {
                0 => self.state.master.elcr,
                1 => self.state.slave.elcr,
                _ => 0xFF,
            }),
            _ => open_bus(size),
        };
        self.update(cx);
        value
    }

    fn write(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8, value: u64) {
        let State { master, slave, .. } = &mut self.state;
        match window {
            MASTER | SLAVE => {
                let half = if window == SLAVE { slave } else { master };
                write_each(offset, size, value, |o, byte| match o {
                    0 => half.write_even(byte),
                    1 => half.write_odd(byte),
                    _ => {}
                });
            }
            ELCR => write_each(offset, size, value, |o, byte| match o {
                0 => master.elcr = byte & ELCR_MASK[0],
                1 => slave.elcr = byte & ELCR_MASK[1],
                _ => {}
            }),
            _ => {}
        }
        self.update(cx);
    }

    fn input(&mut self, cx: &mut Cx, pin: u8, level: bool) {
        match pin {
            CASCADE => return,
            0..8 => self.state.master.set_line(pin, level),
            8..16 => self.state.slave.set_line(pin - 8, level),
            _ => return,
        }
        self.update(cx);
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &self.state)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let state: State = decode(self.name(), VERSION, bytes)?;
        for (half, mask) in [&state.master, &state.slave].into_iter().zip(ELCR_MASK) {
            if half.lowest > 7 || half.vector_base & 7 != 0 || half.elcr & !mask != 0 {
                return Err(StateError::Damaged {
                    chip: self.name(),
                    reason: "register out of range".into(),
                });
            }
        }
        self.state = state;
        Ok(())
    }

    fn info(&self) -> String {
        let line = |name, half: &Half| {
            format!(
                "{name}: irr={:02x} imr={:02x} isr={:02x} base={:02x} elcr={:02x}\n",
                half.irr(),
                half.imr,
                half.isr,
                half.vector_base,
                half.elcr
            )
        };
        line("pic0", &self.state.master) + &line("pic1", &self.state.slave)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Bench;

    fn pc() -> Bench<Pic> {
        let mut bench = Bench::new(Pic::new());
        for (window, base, icw3) in [(MASTER, 0x08, 4), (SLAVE, 0x70, 2)] {
            bench.write(window, 0, 1, 0x11);
            bench.write(window, 1, 1, base);
            bench.write(window, 1, 1, icw3);
            bench.write(window, 1, 1, 1);
        }
        bench
    }

    #[test]
    fn priority_and_end_of_interrupt() {
        let mut bench = pc();
        bench.input(1, true);
        assert!(bench.level(INT));
        assert_eq!(bench.with(Pic::acknowledge), 0x09);
        assert!(!bench.level(INT));
        bench.input(4, true);
        assert!(!bench.level(INT), "lower priority waits");
        bench.input(0, true);
        assert_eq!(bench.with(Pic::acknowledge), 0x08);
        bench.write(MASTER, 0, 1, 0x20);
        assert!(!bench.level(INT));
        bench.write(MASTER, 0, 1, 0x20);
        assert_eq!(bench.with(Pic::acknowledge), 0x0C);
    }

    #[test]
    fn slave_goes_through_the_cascade() {
        let mut bench = pc();
        bench.input(14, true);
        bench.input(12, true);
        assert_eq!(bench.with(Pic::acknowledge), 0x74);
        bench.write(SLAVE, 0, 1, 0x20);
        assert!(!bench.level(INT), "the master still serves IR2");
        bench.write(MASTER, 0, 1, 0x20);
        assert!(bench.level(INT));
        assert_eq!(bench.with(Pic::acknowledge), 0x76);
    }

    #[test]
    fn spurious_interrupts_leave_no_in_service_bit() {
        let mut bench = pc();
        bench.input(5, true);
        bench.input(5, false);
        assert_eq!(bench.with(Pic::acknowledge), 0x0F);
        bench.write(MASTER, 0, 1, 0x0B);
        assert_eq!(bench.read(MASTER, 0, 1), 0);
    }

    #[test]
    fn level_lines_ask_again() {
        let mut bench = pc();
        bench.write(ELCR, 1, 1, 0xFF);
        assert_eq!(bench.read(ELCR, 1, 1), 0xDE);
        bench.input(11, true);
        assert_eq!(bench.with(Pic::acknowledge), 0x73);
        bench.write(SLAVE, 0, 1, 0x20);
        bench.write(MASTER, 0, 1, 0x20);
        assert!(bench.level(INT));
        bench.input(11, false);
        assert!(!bench.level(INT));
    }

    #[test]
    fn poll_rotation_and_special_mask() {
        let mut bench = pc();
        bench.input(3, true);
        bench.write(MASTER, 0, 1, 0x0C);
        assert_eq!(bench.read(MASTER, 0, 1), 0x83);
        bench.write(MASTER, 0, 1, 0xA0);
        bench.input(4, true);
        bench.input(0, true);
        assert_eq!(bench.with(Pic::acknowledge), 0x0C, "IR3 became the lowest, IR4 the highest");
        bench.write(MASTER, 0, 1, 0x68);
        bench.write(MASTER, 1, 1, 0x10);
        assert_eq!(bench.with(Pic::acknowledge), 0x08, "the masked level in service blocks nothing");
    }
}
