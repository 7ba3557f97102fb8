//! The interpreter's loop: find a block, run its handlers, look at the instruction boundary.
//!
//! Invariants. RIP points past an instruction while its handler runs, and is put back if it faults. The running
//! block's instructions stay where they are until the handler has returned: blocks are only made and dropped
//! between blocks. `state.retired` and `budget` are brought up to date at the end of each block.
#![allow(unsafe_code)]

use crate::Vcpu;
use crate::blocks::{self, Block, BlockCache, BlockKey, Link};
use crate::decode;
use crate::engine::Stop;
use crate::fault::{Exit, Fault, vector};
use crate::fpu;
use crate::helpers::misc;
use crate::insn::Insn;
use crate::mmu::Access;
use crate::ram::PAGE;
use crate::shared::attention as att;
use crate::state::{Activity, RFlags, Shadow, gpr, seg};
use crate::tlb::{Class, hits};
use crate::translate::{NoTranslator, Translator};
use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction};
use std::sync::atomic::Ordering::SeqCst;

/// Most instructions and bytes of a block.
pub(crate) const BLOCK_INSNS: usize = 64;
const BLOCK_BYTES: usize = 512;

/// DR6.BS: single step.
pub const DR6_BS: u64 = 1 << 14;

impl Vcpu {
    /// Executes up to `budget` instructions; see [`Stop`] for why it returned. All state is in `state` then.
    pub fn run(&mut self, budget: u64) -> Stop {
        self.run_with(budget, &mut NoTranslator)
    }

    /// As [`Vcpu::run`], with translated code where there is some.
    pub fn run_with<T: Translator>(&mut self, budget: u64, translator: &mut T) -> Stop {
        self.budget = i64::try_from(budget).unwrap_or(i64::MAX);
        self.shared.parked.store(false, SeqCst);
        if self.shared.pending() & att::DROP_WRITES != 0 {
            self.tlb.drop_writes();
            self.fence.answer(self.id);
        }
        self.mode_may_have_changed();
        // What the last run left pending comes before the first instruction.
        self.stop_block = true;
        let stop = self.run_blocks(translator);
        self.shared.retired.store(self.state.retired, SeqCst);
        self.state.rflags = self.rflags();
        self.shared.parked.store(true, SeqCst);
        stop
    }

    fn run_blocks<T: Translator>(&mut self, translator: &mut T) -> Stop {
        let mut previous = blocks::NONE;
        translator.boundary(self);
        loop {
            let pending = self.shared.pending();
            let masked = pending == att::INTR && !self.state.rflags.contains(RFlags::IF);
            if pending != 0 && !masked || self.stop_block || self.state.activity != Activity::Running {
                self.stop_block = false;
                previous = blocks::NONE;
                if let Some(stop) = self.boundary() {
                    return stop;
                }
                self.mode_may_have_changed();
                translator.boundary(self);
            }
            if self.budget <= 0 {
                return Stop::Budget;
            }
            let rip = self.state.gpr[gpr::RIP];
            let address = self.code_address(rip);
            let next = match self.linked(previous, address) {
                blocks::NONE => match self.find_block(rip) {
                    Ok(next) => {
                        self.link(previous, address, next);
                        next
                    }
                    Err(_) => {
                        self.deliver_fault();
                        continue;
                    }
                },
                next => next,
            };
            if self.watchful {
                if self.stop_points.contains(&address) {
                    return Stop::Point;
                }
                if self.careful || self.near_stop_point(address) {
                    previous = self.run_one(next);
                    continue;
                }
            }
            previous =
                if T::ACTIVE && translator.run(self, next) { blocks::NONE } else { self.run_block(next) };
        }
    }

    /// The successor that `previous` remembers for a linear address, if it is still right.
    #[inline(always)]
    pub(crate) fn linked(&self, previous: u32, address: u64) -> u32 {
        if let Some(block) = self.blocks.blocks.get(previous as usize) {
            for link in &block.links {
                if link.address == address && link.space == self.code_space && self.fresh(link.block) {
                    return link.block;
                }
            }
        }
        let next = self.blocks.jump(address, self.code_space, self.key);
        if next != blocks::NONE && self.fresh(next) { next } else { blocks::NONE }
    }

    /// Whether a block's bytes are still what was decoded.
    #[inline(always)]
    fn fresh(&self, index: u32) -> bool {
        self.blocks.blocks.get(index as usize).is_some_and(|b| {
            self.ram.generation(b.page) == b.generation
                && (b.page2 == blocks::NONE || self.ram.generation(b.page2) == b.generation2)
        })
    }

    pub(crate) fn link(&mut self, previous: u32, address: u64, next: u32) {
        let link = Link { address, space: self.code_space, block: next };
        self.blocks.set_jump(link, self.key);
        if let Some(block) = self.blocks.blocks.get_mut(previous as usize) {
            block.links[1] = block.links[0];
            block.links[0] = link;
        }
    }

    /// Runs a block; returns it if what comes next may be linked to it.
    #[inline(always)]
    fn run_block(&mut self, index: u32) -> u32 {
        let insns: *const [Insn] = &*self.blocks.blocks[index as usize].insns;
        // SAFETY: no handler makes or drops blocks, so the slice lives until the loop below is left.
        let insns = unsafe { &*insns };
        self.block = index;
        self.block_rip = self.state.gpr[gpr::RIP];
        self.extra = 0;
        let allowed = insns.len().min(usize::try_from(self.budget).unwrap_or(1));
        let mut done = 0;
        let mut next = index;
        while done < allowed {
            let insn = &insns[done];
            self.state.gpr[gpr::RIP] = self.state.gpr[gpr::RIP].wrapping_add(u64::from(insn.len));
            match (insn.run)(self, insn) {
                Ok(()) => {
                    done += 1;
                    if self.stop_block {
                        break;
                    }
                }
                Err(exit) => {
                    next = blocks::NONE;
                    if exit == Exit::Leave {
                        done += 1;
                        self.stop_block = true;
                    } else {
                        self.state.gpr[gpr::RIP] = self.state.gpr[gpr::RIP].wrapping_sub(u64::from(insn.len));
                        self.account(done as u64 + u64::from(exit == Exit::Again));
                        if exit == Exit::Fault {
                            self.deliver_fault();
                        }
                        return next;
                    }
                    break;
                }
            }
        }
        self.wrap_rip();
        if done == allowed && done < insns.len() {
            self.block_cut(&insns[..done]);
        }
        self.account(done as u64);
        next
    }

    /// EIP has 32 bits: behind the last byte of 4 GiB stands the first.
    #[inline(always)]
    pub(crate) fn wrap_rip(&mut self) {
        if self.state.gpr[gpr::RIP] >> 32 != 0 && !self.key.code64() {
            self.state.gpr[gpr::RIP] = self.return_address();
        }
    }

    /// RIP past the running instruction.
    pub(crate) fn return_address(&self) -> u64 {
        self.state.gpr[gpr::RIP] & if self.state.code64() { !0 } else { 0xFFFF_FFFF }
    }

    /// The budget ended in the middle of a block: what ran of it.
    #[cold]
    fn block_cut(&mut self, ran: &[Insn]) {
        let sti = ran.last().is_some_and(|i| i.code == Code::Sti);
        if sti && self.open_shadow == self.state.gpr[gpr::RIP] {
            self.state.shadow = Shadow::Sti;
        }
    }

    /// Books what a block has retired.
    #[inline(always)]
    fn account(&mut self, done: u64) {
        let n = done + self.extra;
        self.extra = 0;
        self.block = blocks::NONE;
        self.state.retired = self.state.retired.wrapping_add(n);
        self.budget -= n as i64;
        self.counters.blocks_entered += 1;
    }

    /// Runs the first instruction of a block with everything that makes a processor careful.
    fn run_one(&mut self, index: u32) -> u32 {
        let rip = self.state.gpr[gpr::RIP];
        let flags = self.state.rflags;
        if !flags.contains(RFlags::RF) && self.code_breakpoint(rip) {
            self.deliver_fault();
            return blocks::NONE;
        }
        self.log_instruction(rip);
        let shadow = std::mem::replace(&mut self.state.shadow, Shadow::None);
        // IRET and the task switch load RF; every other instruction clears it.
        self.state.rflags.remove(RFlags::RF);
        let budget = std::mem::replace(&mut self.budget, 1);
        let retired = self.state.retired;
        let exceptions = self.counters.exceptions;
        let interrupts = self.counters.interrupts;
        self.run_block(index);
        self.budget += budget - 1;
        let retired = self.state.retired != retired;
        let delivered = self.counters.exceptions != exceptions || self.counters.interrupts != interrupts;
        if shadow == Shadow::MovSs && !retired {
            self.state.shadow = Shadow::None;
        }
        if retired && !delivered && flags.contains(RFlags::TF) {
            self.state.pending_debug |= DR6_BS;
        }
        self.stop_block = true;
        blocks::NONE
    }

    /// Raises #DB if an enabled instruction breakpoint stands at `rip`.
    fn code_breakpoint(&mut self, rip: u64) -> bool {
        let dr7 = self.state.dr[7];
        let address = self.code_address(rip);
        let mut hit = 0;
        for n in 0..4 {
            let enabled = dr7 >> (n * 2) & 3 != 0 && dr7 >> (16 + n * 4) & 15 == 0;
            if enabled && self.state.dr[n] == address {
                hit |= 1 << n;
            }
        }
        if hit != 0 {
            self.fault = Fault { vector: vector::DB, error: None, address: 0, dr6: hit };
        }
        hit != 0
    }

    /// Notes data breakpoints that an access meets: #DB comes after the instruction.
    pub(crate) fn note_data_breakpoints(&mut self, address: u64, size: u32, write: bool) {
        let dr7 = self.state.dr[7];
        for n in 0..4usize {
            let control = dr7 >> (16 + n * 4);
            let kind = control & 3;
            let wanted = kind == 3 || kind == 1 && write;
            if dr7 >> (n * 2) & 3 == 0 || !wanted {
                continue;
            }
            let len = [1, 2, 8, 4][(control >> 2 & 3) as usize];
            let start = self.state.dr[n] & !(len - 1);
            if address < start.wrapping_add(len) && start < address.wrapping_add(u64::from(size)) {
                self.state.pending_debug |= 1 << n;
                self.stop_block = true;
            }
        }
    }

    /// Recomputes what is derived from the mode. Called wherever segments, control registers or RFLAGS may
    /// have changed.
    pub fn mode_may_have_changed(&mut self) {
        self.key = BlockKey::of(&self.state);
        self.code_space = self.tlb.era() << 15 | u32::from(self.tlb.space(self.code_class()));
        let s = &self.state;
        let dr7 = s.dr[7];
        let breakpoints =
            dr7 & 0xFF != 0 && (0..4).any(|n| dr7 >> (n * 2) & 3 != 0 && dr7 >> (16 + n * 4) & 3 == 0);
        self.careful = s.rflags.intersects(RFlags::TF | RFlags::RF)
            || s.shadow != Shadow::None
            || breakpoints
            || self.step_log.is_some();
        self.watchful = self.careful || !self.stop_points.is_empty();
    }

    /// Whether a stop point stands on the page of `address`: no block of it runs as a whole, nor is translated.
    pub(crate) fn near_stop_point(&self, address: u64) -> bool {
        self.watchful && self.stop_points.iter().any(|point| (point ^ address) & !(PAGE - 1) == 0)
    }

    /// Instructions of the running block that have retired, the running one not among them.
    pub(crate) fn retired_in_block(&self) -> u64 {
        let Some(block) = self.blocks.blocks.get(self.block as usize) else { return 0 };
        let mut rip = self.block_rip;
        let now = self.state.gpr[gpr::RIP];
        let mut count = 0;
        for insn in &block.insns {
            rip = rip.wrapping_add(u64::from(insn.len));
            if rip == now {
                break;
            }
            count += 1;
        }
        count.min(block.insns.len() as u64) + self.extra
    }

    /// What is left of the budget at the running instruction.
    pub(crate) fn budget_left(&self) -> i64 {
        self.budget - self.retired_in_block() as i64
    }

    /// How many REP iterations the running instruction may do in one go.
    pub(crate) fn iterations_allowed(&self) -> u64 {
        let left = self.budget_left();
        if self.careful { 1 } else { u64::try_from(left).unwrap_or(1).clamp(1, 4096) }
    }

    /// Linear address of an offset in CS.
    pub fn code_address(&self, rip: u64) -> u64 {
        if self.state.code64() { rip } else { self.state.seg[seg::CS].base.wrapping_add(rip) & 0xFFFF_FFFF }
    }

    /// Looks at everything that may happen between two instructions.
    fn boundary(&mut self) -> Option<Stop> {
        let pending = self.shared.pending();
        if pending & att::CODE != 0 {
            self.shared.clear(att::CODE);
            self.code_changed = true;
        }
        if pending & att::DROP_WRITES != 0 {
            self.tlb.drop_writes();
            self.fence.answer(self.id);
        }
        if pending & att::REMAP != 0 {
            self.shared.clear(att::REMAP);
            self.remap();
        }
        if pending & att::INIT != 0 {
            // A start-up IPI that came since `pending` was read stays.
            self.shared.clear(pending & (att::INIT | att::SIPI));
            self.init();
        }
        if pending & att::SIPI != 0 {
            self.shared.clear(att::SIPI);
            if self.state.activity == Activity::WaitForSipi {
                self.start_up(self.shared.sipi_vector.load(SeqCst));
            }
        }
        if pending & att::SMI != 0 {
            self.shared.clear(att::SMI);
            self.state.smi_pending = true;
        }
        if pending & att::NMI != 0 {
            let most = if self.state.nmi_blocked { 1 } else { 2 };
            let came = self.shared.take_nmis();
            self.state.nmis_pending = self.state.nmis_pending.saturating_add(came).min(most);
        }
        if pending & (att::STOP | att::DEADLINE) != 0 {
            self.shared.clear(att::STOP | att::DEADLINE);
            return Some(Stop::Asked);
        }
        match self.state.activity {
            Activity::Shutdown => return Some(Stop::Shutdown),
            Activity::WaitForSipi => return Some(Stop::Halted),
            _ => {}
        }
        if self.budget <= 0 && self.state.activity == Activity::Running {
            return Some(Stop::Budget);
        }
        self.deliver_events(pending & att::INTR != 0);
        (self.state.activity != Activity::Running).then_some(match self.state.activity {
            Activity::Shutdown => Stop::Shutdown,
            _ => Stop::Halted,
        })
    }

    /// Debug traps, SMI, NMI, interrupts, in order of priority (SDM Vol. 3, "Priority Among Concurrent
    /// Events").
    fn deliver_events(&mut self, interrupt_requested: bool) {
        let s = &mut self.state;
        if s.pending_debug != 0 && s.shadow != Shadow::MovSs {
            let dr6 = std::mem::take(&mut s.pending_debug);
            s.activity = Activity::Running;
            self.fault = Fault { vector: vector::DB, error: None, address: 0, dr6 };
            self.deliver_trap();
            return;
        }
        if s.shadow != Shadow::None {
            return;
        }
        if s.smi_pending && !s.smm {
            s.smi_pending = false;
            s.activity = Activity::Running;
            self.enter_smm();
            return;
        }
        if s.nmis_pending != 0 && !s.nmi_blocked {
            s.nmis_pending -= 1;
            s.nmi_blocked = true;
            s.activity = Activity::Running;
            self.deliver_interrupt(vector::NMI);
            return;
        }
        if interrupt_requested && s.rflags.contains(RFlags::IF) {
            self.publish_retired();
            if let Some(vector) = self.bus.acknowledge_interrupt(self.id) {
                self.state.activity = Activity::Running;
                self.deliver_interrupt(vector);
            }
        }
    }

    /// The block at `rip`, decoded if need be. An error is a fault of the fetch.
    pub(crate) fn find_block(&mut self, rip: u64) -> Result<u32, Exit> {
        self.counters.jump_cache_misses += 1;
        if !self.state.code64() && rip > u64::from(self.state.seg[seg::CS].limit) {
            return Err(self.protection());
        }
        if self.state.code64() && !self.state.canonical(rip) {
            return Err(self.protection());
        }
        let address = self.code_address(rip);
        let Some(page) = self.fetch_page(address)? else { return self.decode_uncached(rip, address) };
        let place = u64::from(page) * PAGE + address % PAGE;
        if let Some(index) = self.blocks.at(place, self.key)
            && (self.fresh(index) || self.refresh(index, place))
            && self.second_page_same(index, address)?
        {
            return Ok(index);
        }
        self.decode_block(rip, address, page)
    }

    /// RAM page behind a linear address for execution; None where no RAM answers.
    pub(crate) fn fetch_page(&mut self, address: u64) -> Result<Option<u32>, Exit> {
        let class = self.code_class();
        for _ in 0..2 {
            let entry = self.tlb.entry(class, address);
            if hits(entry.execute, address, 1) {
                return Ok(Some(self.tlb.note(class, address).ram_page));
            }
            self.translate(address, Access::Execute, class)?;
        }
        Ok(None)
    }

    /// Class of instruction fetches.
    pub(crate) fn code_class(&self) -> Class {
        if self.state.cpl == 3 { Class::User } else { Class::Supervisor }
    }

    fn second_page_same(&mut self, index: u32, address: u64) -> Result<bool, Exit> {
        let expected = self.blocks.blocks[index as usize].page2;
        if expected == blocks::NONE {
            return Ok(true);
        }
        Ok(self.fetch_page((address & !(PAGE - 1)).wrapping_add(PAGE))? == Some(expected))
    }

    fn decode_block(&mut self, rip: u64, address: u64, page: u32) -> Result<u32, Exit> {
        let start = u64::from(page) * PAGE + address % PAGE;
        let on_page = (PAGE - address % PAGE) as usize;
        let limit = self.bytes_within_limit(rip);
        let mut bytes = [0u8; BLOCK_BYTES + 16];
        let mut have = on_page.min(limit).min(BLOCK_BYTES);
        self.ram.read(start, &mut bytes[..have]);
        let (mut insns, crosses) = self.decode_run(rip, &bytes[..have]);
        let (mut page2, mut generation2) = (blocks::NONE, 0);
        if insns.is_empty() && crosses && have == on_page && limit > on_page {
            // The first instruction crosses into the next page.
            let next = (address & !(PAGE - 1)).wrapping_add(PAGE);
            let Some(second) = self.fetch_page(next)? else { return self.decode_uncached(rip, address) };
            self.mark_code(u64::from(second) * PAGE, 15);
            (page2, generation2) = (second, self.ram.generation(second));
            have = (on_page + 15).min(limit);
            self.ram.read(u64::from(second) * PAGE, &mut bytes[on_page..have]);
            (insns, _) = self.decode_run(rip, &bytes[..have]);
            insns.truncate(1);
        }
        if insns.is_empty() {
            // Not even one instruction inside the segment limit, or longer than 15 bytes.
            return Err(self.protection());
        }
        let len: usize = insns.iter().map(|i| usize::from(i.len)).sum();
        let first = len.min(on_page);
        // Now that the extent is known: mark it, and see that nobody wrote it meanwhile.
        self.mark_code(start, first as u64);
        let generation = self.ram.generation(page);
        let mut again = [0u8; BLOCK_BYTES + 16];
        self.ram.read(start, &mut again[..first]);
        if again[..first] != bytes[..first] {
            // Another processor writes here all the time: one instruction, not kept. Not byte by byte, for an aligned
            // word changes as one.
            let (insns, _) = self.decode_run(rip, &again[..first]);
            if insns.is_empty() {
                return self.decode_uncached(rip, address);
            }
            return Ok(self.insert_uncached(insns, &again[..first]));
        }
        for i in insns.iter_mut().rev().skip(1).filter(|i| i.code == Code::Sti) {
            i.imm = 1;
        }
        self.counters.blocks_decoded += 1;
        self.counters.insns_decoded += insns.len() as u64;
        if self.blocks.blocks.len() >= BlockCache::LIMIT {
            self.blocks.clear();
        }
        let block = Block {
            insns: insns.into(),
            key: self.key,
            page,
            generation,
            page2,
            generation2,
            bytes: bytes[..first].into(),
            links: [Link::EMPTY; 2],
            heat: 0,
            translation: blocks::NONE,
        };
        Ok(self.blocks.insert(start, block))
    }

    /// A block whose page was written: if its own bytes are as they were, it is good again.
    fn refresh(&mut self, index: u32, start: u64) -> bool {
        let block = &self.blocks.blocks[index as usize];
        let (len, page) = (block.bytes.len(), block.page);
        if block.page2 != blocks::NONE {
            return false;
        }
        self.mark_code(start, len as u64);
        let generation = self.ram.generation(page);
        let mut now = [0u8; BLOCK_BYTES];
        self.ram.read(start, &mut now[..len]);
        let block = &mut self.blocks.blocks[index as usize];
        let same = now[..len] == *block.bytes;
        if same {
            block.generation = generation;
        }
        same
    }

    /// Marks bytes as code and makes sure that no vCPU writes them behind our back.
    fn mark_code(&mut self, start: u64, len: u64) {
        if !self.ram.mark_code(start, len) {
            return;
        }
        let page = (start / PAGE) as u32;
        self.tlb.drop_page_writes(page);
        let (fence, tlb) = (self.fence.clone(), &mut self.tlb);
        fence.drop_writes_elsewhere(self.id, || tlb.drop_writes());
    }

    /// Bytes from `rip` to the end of CS, at least 1.
    fn bytes_within_limit(&self, rip: u64) -> usize {
        if self.state.code64() {
            return usize::MAX;
        }
        let limit = u64::from(self.state.seg[seg::CS].limit);
        limit.saturating_sub(rip).saturating_add(1) as usize
    }

    /// Decodes instructions up to the end of the block or of the bytes. The flag says that the bytes ended inside
    /// an instruction.
    fn decode_run(&self, rip: u64, bytes: &[u8]) -> (Vec<Insn>, bool) {
        let bitness = u32::from(self.key.code_size()) * 8;
        let mut decoder = Decoder::with_ip(bitness, bytes, rip, DecoderOptions::NONE);
        let mut insns = Vec::with_capacity(16);
        let mut x = Instruction::default();
        while decoder.can_decode() && insns.len() < BLOCK_INSNS {
            decoder.decode_out(&mut x);
            if decoder.last_error() == DecoderError::NoMoreBytes {
                return (insns, true);
            }
            let mut insn = decode::lower(&x, self.key, &self.model.features);
            let end = decoder.position();
            if x.is_invalid() && x.len() == 15 && misc::whole(&bytes[end - 15..end], bitness) {
                insn.run = misc::undefined;
            }
            if let Some(opcode) = fpu::opcode(&bytes[end - x.len()..end]) {
                insn.imm = u64::from(opcode);
            }
            insns.push(insn);
            if x.is_invalid() || decode::ends_block(&x) {
                break;
            }
        }
        (insns, false)
    }

    /// Code in device memory, or nothing at all: one instruction at a time, never cached.
    fn decode_uncached(&mut self, rip: u64, address: u64) -> Result<u32, Exit> {
        let mut bytes = [0u8; 15];
        let class = if self.state.cpl == 3 { Class::User } else { Class::Supervisor };
        let have = self.bytes_within_limit(rip).min(15);
        let mut got = 0;
        let mut fault = None;
        for byte in bytes.iter_mut().take(have) {
            match self.translate(address.wrapping_add(got as u64), Access::Execute, class) {
                Ok(physical) => *byte = self.physical_read(physical, 1) as u8,
                Err(exit) => {
                    fault = Some(exit);
                    break;
                }
            }
            got += 1;
        }
        let (insns, _) = self.decode_run(rip, &bytes[..got]);
        if insns.is_empty() {
            // It runs into a page that cannot be had, or over the segment's end.
            return Err(fault.unwrap_or_else(|| self.protection()));
        }
        Ok(self.insert_uncached(insns, &bytes[..got]))
    }

    /// A block of the first instruction alone, which runs once.
    fn insert_uncached(&mut self, mut insns: Vec<Insn>, bytes: &[u8]) -> u32 {
        insns.truncate(1);
        // A generation that no page has: stale as soon as it has run.
        let block = Block {
            insns: insns.into(),
            key: self.key,
            page: blocks::NONE,
            generation: !0,
            page2: blocks::NONE,
            generation2: 0,
            bytes: bytes.into(),
            links: [Link::EMPTY; 2],
            heat: 0,
            translation: blocks::NONE,
        };
        self.blocks.insert(u64::MAX, block)
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use crate::engine::Stop;
    use crate::shared::attention as att;
    use crate::simd::tests::vcpu;
    use crate::state::Activity;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

    /// INIT and a start-up IPI right behind it, as firmware sends them: the second may arrive at any moment of the
    /// first's handling.
    #[test]
    fn no_start_up_ipi_is_lost() {
        let mut v = vcpu();
        // Not the bootstrap processor.
        v.id = 1;
        v.ram.write(0x1000, &[0xF4]);
        let shared = v.shared.clone();
        let (go, over, sent) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(SeqCst) {
                    if go.swap(false, SeqCst) {
                        shared.raise(att::INIT);
                        shared.sipi_vector.store(1, SeqCst);
                        shared.raise(att::SIPI);
                        sent.fetch_add(1, SeqCst);
                    }
                }
            });
            for n in 0..400_000 {
                v.state.activity = Activity::Halted;
                go.store(true, SeqCst);
                let mut since = 0;
                // HLT at the start-up address: halted there.
                while v.run(10) != Stop::Halted || v.state.activity != Activity::Halted || v.state.rip() != 1
                {
                    // The sender may be kept from running as long as the host likes.
                    since += u32::from(sent.load(SeqCst) > n);
                    if since > 1000 {
                        over.store(true, SeqCst);
                        panic!("the start-up IPI of round {n} is lost: {:?}", v.state.activity);
                    }
                }
                v.state.gpr[crate::state::gpr::RIP] = 0;
            }
            over.store(true, SeqCst);
        });
    }
}
