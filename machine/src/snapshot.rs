//! A whole machine as bytes: a header with version and checksum, the state of everything, and the memory pages that
//! are not zero, compressed.
//!
//! Media are not in it: the machine that takes a state must be made from the same configuration.

use crate::chips::locked;
use crate::config::MachineError;
use crate::machine::Machine;
use crate::memory::PAGE;
use crate::vcpus::{Engines, Turn};
use crate::wiring::Wires;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::sync::atomic::Ordering::*;
use trimaran_cpu::ram::Ram;
use trimaran_cpu::shared::attention::{INIT, INTR, NMI, SIPI, SMI};
use trimaran_cpu::state::CpuState;
use trimaran_devices::pci_config::ConfigAddress;
use trimaran_devices::ps2::key::Key;

const MAGIC: &[u8; 8] = b"TRIMARAN";
const VERSION: u32 = 3;
const HEADER: usize = 8 + 4 + 32;
/// Ends the list of pages.
const LAST: u32 = u32::MAX;
const LEVEL: i32 = 1;
const LINES: u32 = INTR | NMI | SMI | INIT | SIPI;

/// One vCPU with what others have raised at it.
#[derive(Serialize, Deserialize)]
struct SavedCpu {
    state: Box<CpuState>,
    attention: u32,
    sipi_vector: u8,
    smm: bool,
}

/// Everything but memory.
#[derive(Serialize, Deserialize)]
struct Saved {
    memory_bytes: u64,
    rom_bytes: u64,
    /// Of the test device's memory.
    test_bytes: u64,
    model: String,
    clock: u64,
    turn: Turn,
    cpus: Vec<SavedCpu>,
    a20: bool,
    config_address: ConfigAddress,
    wires: Wires,
    random: u64,
    /// Name and state.
    chips: Vec<(String, Vec<u8>)>,
    serial: [Vec<u8>; 4],
    /// Numbers in [`Key::ALL`].
    strokes: Vec<(u16, bool)>,
}

fn damaged(reason: impl Into<String>) -> MachineError {
    MachineError::Damaged(reason.into())
}

impl Machine {
    /// The state between two instructions.
    pub fn save_state(&self) -> Result<Vec<u8>, MachineError> {
        self.core.quiesce(|engines| {
            let state = postcard::to_stdvec(&self.gather(engines)).map_err(|e| damaged(e.to_string()))?;
            let mut body = (state.len() as u64).to_le_bytes().to_vec();
            body.extend(state);
            // The compressed pages follow the state in the same buffer.
            let mut encoder = zstd::Encoder::new(body, LEVEL).map_err(|e| damaged(e.to_string()))?;
            save_pages(self.core.board.memory.ram(), &mut encoder).map_err(|e| damaged(e.to_string()))?;
            let body = encoder.finish().map_err(|e| damaged(e.to_string()))?;
            let mut out = MAGIC.to_vec();
            out.extend(VERSION.to_le_bytes());
            out.extend(Sha256::digest(&body));
            out.extend(body);
            Ok(out)
        })
    }

    /// Takes a state from [`Machine::save_state`] of a machine of the same configuration. On an error the machine
    /// is as before.
    pub fn restore_state(&self, bytes: &[u8]) -> Result<(), MachineError> {
        let (head, body) =
            bytes.split_at_checked(HEADER).ok_or_else(|| damaged("shorter than its header"))?;
        if &head[..8] != MAGIC {
            return Err(damaged("not a state of a machine"));
        }
        if head[8..12] != VERSION.to_le_bytes() {
            let found = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
            return Err(MachineError::Mismatch(format!("version {found}, this program reads {VERSION}")));
        }
        if Sha256::digest(body)[..] != head[12..] {
            return Err(damaged("the checksum is wrong"));
        }
        let (len, rest) = body.split_at_checked(8).ok_or_else(|| damaged("no length"))?;
        let len = len.iter().rev().fold(0u64, |len, &byte| len << 8 | u64::from(byte));
        let len = usize::try_from(len).map_err(|e| damaged(e.to_string()))?;
        let (state, pages) = rest.split_at_checked(len).ok_or_else(|| damaged("shorter than it says"))?;
        let saved: Saved = postcard::from_bytes(state).map_err(|e| damaged(e.to_string()))?;
        self.core.quiesce(|engines| {
            self.check(&saved)?;
            let ram = self.core.board.memory.ram();
            load_pages(ram.len(), pages, |_, _| {})?;
            self.restore_chips(&saved)?;
            load_pages(ram.len(), pages, |offset, page| {
                let mut now = [0; PAGE as usize];
                ram.read(offset, &mut now);
                if now[..] != *page {
                    ram.write(offset, page);
                }
            })?;
            self.restore_rest(saved, engines);
            Ok(())
        })
    }

    /// A digest of the whole state, memory included.
    pub fn state_hash(&self) -> [u8; 32] {
        self.core.quiesce(|engines| {
            let mut hash = Sha256::new();
            hash.update(postcard::to_stdvec(&self.gather(engines)).unwrap_or_default());
            let ram = self.core.board.memory.ram();
            let mut page = [0; PAGE as usize];
            for offset in (0..ram.len()).step_by(page.len()) {
                ram.read(offset, &mut page);
                if page.iter().any(|&byte| byte != 0) {
                    hash.update(offset.to_le_bytes());
                    hash.update(page);
                }
            }
            hash.finalize().into()
        })
    }

    fn gather(&self, engines: &mut Engines) -> Saved {
        let board = &self.core.board;
        let cpus =
            engines.iter_mut().zip(&board.fence.vcpus).zip(&board.smm).map(|((engine, shared), smm)| {
                SavedCpu {
                    state: Box::new(engine.state().clone()),
                    attention: shared.pending() & LINES,
                    sipi_vector: shared.sipi_vector.load(Acquire),
                    smm: smm.load(Acquire),
                }
            });
        let cpus = cpus.collect();
        let chips = board.chips.all().map(|slot| {
            let mut state = Vec::new();
            slot.with(&mut |chip| state = chip.save());
            (slot.id().to_string(), state)
        });
        let number = |key: Key| Key::ALL.iter().position(|&k| k == key).unwrap_or(0) as u16;
        let (serial, strokes) = board.consoles.waiting_input();
        Saved {
            memory_bytes: board.memory.blocks().layout.ram_bytes,
            rom_bytes: board.memory.blocks().rom_len,
            test_bytes: board.memory.blocks().test_len,
            model: self.core.model.name.to_string(),
            clock: board.clock.now(),
            turn: *locked(&self.core.vcpus.turn),
            cpus,
            a20: board.fence.a20.load(Acquire),
            config_address: *locked(&board.config_address),
            wires: locked(&board.wires).clone(),
            random: locked(&board.random).seed(),
            chips: chips.collect(),
            serial,
            strokes: strokes.into_iter().map(|(key, down)| (number(key), down)).collect(),
        }
    }

    fn check(&self, saved: &Saved) -> Result<(), MachineError> {
        let blocks = self.core.board.memory.blocks();
        let mismatch = |what: &str| Err(MachineError::Mismatch(format!("{what} differs")));
        if saved.memory_bytes != blocks.layout.ram_bytes || saved.rom_bytes != blocks.rom_len {
            return mismatch("the size of memory or firmware");
        }
        if saved.test_bytes != blocks.test_len {
            return mismatch("the test device");
        }
        if saved.cpus.len() != self.core.board.chips.lapics.len() {
            return mismatch("the number of processors");
        }
        if saved.model != self.core.model.name {
            return mismatch("the processor model");
        }
        let names = self.core.board.chips.all().map(|slot| slot.id().to_string());
        if !names.eq(saved.chips.iter().map(|chip| chip.0.clone())) {
            return mismatch("the list of chips");
        }
        if saved.turn.vcpu >= saved.cpus.len() || saved.cpus.iter().any(|cpu| cpu.state.cpl > 3) {
            return Err(damaged("a processor's state is out of range"));
        }
        Ok(())
    }

    /// All chips, or none.
    fn restore_chips(&self, saved: &Saved) -> Result<(), MachineError> {
        let chips = &self.core.board.chips;
        let mut before = Vec::new();
        for (slot, (_, state)) in chips.all().zip(&saved.chips) {
            let mut result = Ok(());
            slot.with(&mut |chip| {
                before.push(chip.save());
                result = chip.restore(state);
            });
            if let Err(e) = result {
                for (slot, state) in chips.all().zip(&before) {
                    slot.with(&mut |chip| {
                        let _ = chip.restore(state);
                    });
                }
                return Err(e.into());
            }
        }
        Ok(())
    }

    fn restore_rest(&self, saved: Saved, engines: &mut Engines) {
        let board = &self.core.board;
        *locked(&board.config_address) = saved.config_address;
        *locked(&board.wires) = saved.wires;
        locked(&board.random).set_seed(saved.random);
        board.legacy_route.store(board.chips.hpet.lock().legacy_route(), Release);
        board.fence.a20.store(saved.a20, Release);
        let keys = saved.strokes.iter().filter_map(|&(n, down)| Some((*Key::ALL.get(usize::from(n))?, down)));
        board.consoles.set_waiting_input(saved.serial, keys.collect());
        let all = engines.iter_mut().zip(&board.fence.vcpus).zip(&board.smm);
        for (((engine, shared), smm), cpu) in all.zip(saved.cpus) {
            shared.retired.store(cpu.state.retired, Release);
            shared.clear(LINES);
            shared.raise(cpu.attention & LINES);
            shared.sipi_vector.store(cpu.sipi_vector, Release);
            smm.store(cpu.smm, Release);
            *engine.state() = *cpu.state;
            engine.state_changed();
        }
        *locked(&self.core.vcpus.turn) = saved.turn;
        board.clock.set(saved.clock);
        board.remap();
        board.control.forget_outcome();
    }
}

/// Number and contents of each page that is not zero.
fn save_pages(ram: &Ram, out: &mut impl Write) -> std::io::Result<()> {
    let mut page = [0; PAGE as usize];
    for (number, offset) in (0u32..).zip((0..ram.len()).step_by(page.len())) {
        ram.read(offset, &mut page);
        if page.iter().any(|&byte| byte != 0) {
            out.write_all(&number.to_le_bytes())?;
            out.write_all(&page)?;
        }
    }
    out.write_all(&LAST.to_le_bytes())
}

/// Calls `f` with each page of a memory of `len` bytes, in order; those that were not saved are zero.
fn load_pages(len: u64, bytes: &[u8], mut f: impl FnMut(u64, &[u8])) -> Result<(), MachineError> {
    let zero = [0; PAGE as usize];
    let mut page = zero;
    let mut decoder = zstd::Decoder::new(bytes).map_err(|e| damaged(e.to_string()))?;
    let mut next = 0;
    loop {
        let mut number = [0; 4];
        decoder.read_exact(&mut number).map_err(|e| damaged(e.to_string()))?;
        let number = u32::from_le_bytes(number);
        let offset = if number == LAST { len } else { u64::from(number) * PAGE };
        if offset < next || offset > len || number != LAST && offset == len {
            return Err(damaged("a memory page is out of order"));
        }
        (next..offset).step_by(zero.len()).for_each(|at| f(at, &zero));
        if number == LAST {
            return Ok(());
        }
        decoder.read_exact(&mut page).map_err(|e| damaged(e.to_string()))?;
        f(offset, &page);
        next = offset + PAGE;
    }
}
