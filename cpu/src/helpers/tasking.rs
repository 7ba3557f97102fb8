//! Hardware task switches (SDM Vol. 3, "Task Management").

use super::segment::{error_of, kind, v86_segment};
use crate::Vcpu;
use crate::fault::{Exit, vector};
use crate::state::{RFlags, Segment, attr, cr0, cr4, gpr, seg};

/// What switches tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Jump,
    Call,
    Iret,
    Interrupt,
}

/// The registers that a TSS holds.
#[derive(Default)]
struct Image {
    /// Of a 32-bit TSS.
    wide: bool,
    cr3: Option<u64>,
    rip: u64,
    flags: u64,
    gpr: [u64; 8],
    /// ES, CS, SS, DS, FS, GS.
    selectors: [u16; 6],
    ldt: u16,
    trap: bool,
}

impl Vcpu {
    /// Switches to the task whose TSS `selector` names, for an event that is being delivered. `error` is pushed on the
    /// new stack. A fault may be that of the new task.
    pub(crate) fn switch_task(
        &mut self,
        selector: u16,
        reason: Reason,
        error: Option<u16>,
    ) -> Result<(), Exit> {
        let image = self.leave_task(selector, reason)?;
        self.begin_task(&image, reason, error)
    }

    /// Switches tasks for an instruction. A fault of the new task is delivered in it, before its first instruction: the
    /// instruction here has ended.
    pub(crate) fn switch_task_by_instruction(&mut self, selector: u16, reason: Reason) -> Result<(), Exit> {
        let image = self.leave_task(selector, reason)?;
        if self.begin_task(&image, reason, None).is_err() {
            self.deliver_fault();
        }
        Ok(())
    }

    /// All checks, then what the switch writes: after it there is no way back.
    fn leave_task(&mut self, selector: u16, reason: Reason) -> Result<Image, Exit> {
        let code = error_of(selector);
        let bad = if reason == Reason::Iret { vector::TS } else { vector::GP };
        if code == 0 || selector & 4 != 0 {
            return Err(self.raise_code(bad, code));
        }
        let d = self.descriptor(selector, bad)?;
        let busy = matches!(d.typ(), kind::TSS16_BUSY | kind::TSS32_BUSY);
        let free = matches!(d.typ(), kind::TSS16 | kind::TSS32);
        if d.is_segment() || if reason == Reason::Iret { !busy } else { !free } {
            return Err(self.raise_code(bad, code));
        }
        if !d.has(attr::P) {
            return Err(self.raise_code(vector::NP, code));
        }
        let wide = d.typ() & 8 != 0;
        if d.limit() < if wide { 103 } else { 43 } {
            return Err(self.raise_code(vector::TS, code));
        }
        let base = d.base();
        let image = if wide { self.read_tss32(base)? } else { self.read_tss16(base)? };
        let old = self.state.tr;
        let mut flags = self.rflags();
        if reason == Reason::Iret {
            flags.remove(RFlags::NT);
        }
        // The busy bits: a jump or a return frees the old task.
        let frees = matches!(reason, Reason::Jump | Reason::Iret);
        let links = matches!(reason, Reason::Call | Reason::Interrupt);
        let busy_of_old = self.state.gdtr.base.wrapping_add(u64::from(old.selector & 0xFFF8) + 5);
        let busy_of_new = d.address.wrapping_add(5);
        // A fault before the switch leaves no trace: everything that is written is checked first.
        let (first, length) = if old.typ() & 8 != 0 { (0x20, 0x3E) } else { (0x0E, 0x1C) };
        self.check_system_store(old.base.wrapping_add(first), length)?;
        if frees {
            self.check_system_store(busy_of_old, 1)?;
        }
        if reason != Reason::Iret {
            self.check_system_store(busy_of_new, 1)?;
        }
        if links {
            self.check_system_store(base, 2)?;
        }
        self.save_task(&old, flags)?;
        if frees {
            let byte = self.load_system(busy_of_old, 1)?;
            self.store_system(busy_of_old, 1, byte & !2)?;
        }
        if reason != Reason::Iret {
            self.store_system(busy_of_new, 1, d.raw >> 40 & 0xFF | 2)?;
        }
        if links {
            self.store_system(base, 2, u64::from(old.selector))?;
        }
        let mut tr = d.segment(selector);
        tr.attributes |= 2;
        self.state.tr = tr;
        Ok(Image { wide, ..image })
    }

    fn check_system_store(&mut self, address: u64, length: u64) -> Result<(), Exit> {
        self.as_supervisor(|v| v.check_store(seg::FLAT as u8, address, length))
    }

    /// The new task's state, and the error code of what it was called for.
    fn begin_task(&mut self, image: &Image, reason: Reason, error: Option<u16>) -> Result<(), Exit> {
        self.load_task(image, matches!(reason, Reason::Call | Reason::Interrupt))?;
        if let Some(error) = error {
            let mut stack = super::stack::Stack::current(self);
            stack.push(self, if image.wide { 4 } else { 2 }, u64::from(error))?;
            stack.commit(self);
        }
        let rip = self.state.gpr[gpr::RIP];
        if rip > u64::from(self.state.seg[seg::CS].limit) {
            return Err(self.protection());
        }
        if image.trap {
            // DR6.BT: a debug exception before the new task's first instruction.
            self.state.pending_debug |= 1 << 15;
        }
        Ok(())
    }

    fn read_tss32(&mut self, base: u64) -> Result<Image, Exit> {
        let mut get = |offset: u64| self.load_system(base.wrapping_add(offset), 4);
        let mut image = Image {
            cr3: Some(get(0x1C)?),
            rip: get(0x20)?,
            flags: get(0x24)?,
            ldt: get(0x60)? as u16,
            trap: get(0x64)? & 1 != 0,
            ..Image::default()
        };
        for n in 0..8 {
            image.gpr[n as usize] = get(0x28 + n * 4)?;
        }
        for n in 0..6 {
            image.selectors[n as usize] = get(0x48 + n * 4)? as u16;
        }
        Ok(image)
    }

    fn read_tss16(&mut self, base: u64) -> Result<Image, Exit> {
        let mut get = |offset: u64| self.load_system(base.wrapping_add(offset), 2);
        let mut image =
            Image { rip: get(0x0E)?, flags: get(0x10)?, ldt: get(0x2A)? as u16, ..Image::default() };
        for n in 0..8 {
            image.gpr[n as usize] = get(0x12 + n * 2)? | 0xFFFF_0000;
        }
        for n in 0..4 {
            image.selectors[n as usize] = get(0x22 + n * 2)? as u16;
        }
        Ok(image)
    }

    /// Writes the outgoing task's registers to its TSS.
    fn save_task(&mut self, tr: &Segment, flags: RFlags) -> Result<(), Exit> {
        let base = tr.base;
        let g = self.state.gpr;
        let selectors: [u64; 6] = std::array::from_fn(|n| u64::from(self.state.seg[n].selector));
        if tr.typ() & 8 != 0 {
            self.store_system(base.wrapping_add(0x20), 4, g[gpr::RIP])?;
            self.store_system(base.wrapping_add(0x24), 4, flags.bits())?;
            for n in 0..8u64 {
                self.store_system(base.wrapping_add(0x28 + n * 4), 4, g[n as usize])?;
            }
            for n in 0..6u64 {
                self.store_system(base.wrapping_add(0x48 + n * 4), 2, selectors[n as usize])?;
            }
        } else {
            self.store_system(base.wrapping_add(0x0E), 2, g[gpr::RIP])?;
            self.store_system(base.wrapping_add(0x10), 2, flags.bits())?;
            for n in 0..8u64 {
                self.store_system(base.wrapping_add(0x12 + n * 2), 2, g[n as usize])?;
            }
            for n in 0..4u64 {
                self.store_system(base.wrapping_add(0x22 + n * 2), 2, selectors[n as usize])?;
            }
        }
        Ok(())
    }

    /// Loads registers and segments of the incoming task.
    fn load_task(&mut self, image: &Image, nested: bool) -> Result<(), Exit> {
        if self.state.cr0 & cr0::PG != 0
            && let Some(cr3) = image.cr3
        {
            self.state.cr3 = cr3;
            if self.state.cr4 & cr4::PAE != 0 && !self.load_pdptes() {
                return Err(self.protection());
            }
            self.load_tlb_context(0, false);
        }
        self.state.cr0 |= cr0::TS;
        self.state.gpr[gpr::RIP] = image.rip;
        self.state.gpr[..8].copy_from_slice(&image.gpr);
        let mut flags = RFlags::from_bits_retain(image.flags & if image.wide { 0x3F_7FD5 } else { 0x7FD5 });
        flags.set(RFlags::NT, nested || flags.contains(RFlags::NT));
        // Local breakpoint enables end with the task.
        self.state.dr[7] &= !0x155;
        // Selectors first: a fault on one of them finds all of them loaded, hidden parts not usable.
        for n in 0..6 {
            self.set_segment(n, Segment::null(image.selectors[n]));
        }
        self.set_rflags(flags);
        self.state.ldtr = Segment::null(image.ldt);
        self.state.ldtr = self.checked_ldt(image.ldt, vector::TS)?;
        if flags.contains(RFlags::VM) {
            self.state.cpl = 3;
            for n in 0..6 {
                self.set_segment(n, v86_segment(image.selectors[n]));
            }
            self.update_class();
            return Ok(());
        }
        let cs = image.selectors[seg::CS];
        let cpl = (cs & 3) as u8;
        self.state.cpl = cpl;
        self.update_class();
        let d = self.descriptor(cs, vector::TS)?;
        let allowed = if d.conforming() { d.dpl() <= cpl } else { d.dpl() == cpl };
        if cs & 0xFFFC == 0 || !d.is_code() || !allowed {
            return Err(self.raise_code(vector::TS, error_of(cs)));
        }
        if !d.has(attr::P) {
            return Err(self.raise_code(vector::NP, error_of(cs)));
        }
        self.mark_accessed(&d)?;
        self.set_segment(seg::CS, d.segment(cs));
        let ss = super::call_far::checked_inner_ss(self, image.selectors[seg::SS], cpl)?;
        self.set_segment(seg::SS, ss);
        for n in [seg::ES, seg::DS, seg::FS, seg::GS] {
            match self.checked_segment(n, image.selectors[n], cpl) {
                Ok(segment) => self.set_segment(n, segment),
                Err(exit) => {
                    if self.fault.vector == vector::GP {
                        self.fault.vector = vector::TS;
                    }
                    return Err(exit);
                }
            }
        }
        Ok(())
    }
}
