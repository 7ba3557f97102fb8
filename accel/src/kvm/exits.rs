//! One run of KVM, and what its exits ask of the machine.

use super::engine::KvmVcpu;
use kvm_ioctls::VcpuExit;
use trimaran_cpu::Vcpu;

/// KVM_INTERNAL_ERROR_EMULATION.
const EMULATION: u32 = 1;
/// CPUID follows IA32_APIC_BASE.
const IA32_APIC_BASE: u32 = 0x1B;

/// What is left of an exit for the engine.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit {
    /// Nothing: run on.
    Served,
    /// The state must be loaded anew.
    Reload,
    Halted,
    StopPoint,
    Shutdown,
    /// Not run at all: an interrupt waits, and KVM would miss its time.
    NoWindow,
    /// KVM does not know how to run the next instruction.
    NotEmulated,
    /// Half a sentence about what went wrong; the place follows.
    Failed(String),
}

impl KvmVcpu {
    /// Runs guest code and serves the exit.
    pub(super) fn serve_run(&mut self) -> Result<Exit, String> {
        let vcpu = &mut self.vcpu;
        let (exit, port_size) = match self.hardware.run() {
            Ok(exit) => exit,
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => return Ok(Exit::Served),
            Err(e) => return Ok(Exit::Failed(format!("KVM cannot run the guest ({e})"))),
        };
        let served = match exit {
            VcpuExit::IoOut(port, data) => {
                data.chunks(port_size.max(1)).for_each(|piece| write_port(vcpu, port, piece));
                self.unfinished = true;
                Exit::Served
            }
            VcpuExit::IoIn(port, data) => {
                data.chunks_mut(port_size.max(1)).for_each(|piece| read_port(vcpu, port, piece));
                self.unfinished = true;
                Exit::Served
            }
            VcpuExit::MmioRead(address, data) => {
                vcpu.counters.mmio += 1;
                for (at, piece) in pieces(address, data.len()) {
                    let value = vcpu.bus.mmio_read(vcpu.id, at, piece.len() as u8).to_le_bytes();
                    let len = piece.len();
                    data[piece].copy_from_slice(&value[..len]);
                }
                self.unfinished = true;
                Exit::Served
            }
            VcpuExit::MmioWrite(address, data) => {
                vcpu.counters.mmio += 1;
                for (at, piece) in pieces(address, data.len()) {
                    let (size, value) = (piece.len() as u8, little_endian(&data[piece]));
                    vcpu.bus.mmio_write(vcpu.id, at, size, value);
                }
                self.unfinished = true;
                Exit::Served
            }
            VcpuExit::X86Rdmsr(exit) => {
                match vcpu.read_msr(exit.index) {
                    Some(value) => (*exit.data, *exit.error) = (value, 0),
                    None => *exit.error = 1,
                }
                self.unfinished = true;
                Exit::Served
            }
            VcpuExit::IoapicEoi(vector) => {
                vcpu.bus.end_of_interrupt(vector);
                Exit::Served
            }
            VcpuExit::X86Wrmsr(exit) => {
                let (index, value) = (exit.index, exit.data);
                *exit.error = u8::from(!vcpu.write_msr(index, value));
                self.unfinished = true;
                if index == IA32_APIC_BASE { Exit::Reload } else { Exit::Served }
            }
            VcpuExit::Hlt => Exit::Halted,
            VcpuExit::Debug(_) => Exit::StopPoint,
            VcpuExit::Shutdown => Exit::Shutdown,
            VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::SetTpr => Exit::Served,
            VcpuExit::InternalError => match self.hardware.internal_error() {
                EMULATION => Exit::NotEmulated,
                other => Exit::Failed(format!("KVM met internal error {other}")),
            },
            VcpuExit::FailEntry(reason, _) => {
                Exit::Failed(format!("the host's processor refuses the guest's state (reason {reason:#x})"))
            }
            other => Exit::Failed(format!("KVM ended with {other:?}")),
        };
        Ok(served)
    }
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn write_port(vcpu: &mut Vcpu, port: u16, bytes: &[u8]) {
    vcpu.counters.port_io += 1;
    vcpu.bus.port_write(vcpu.id, port, bytes.len() as u8, little_endian(bytes) as u32);
}

fn read_port(vcpu: &mut Vcpu, port: u16, bytes: &mut [u8]) {
    vcpu.counters.port_io += 1;
    let value = vcpu.bus.port_read(vcpu.id, port, bytes.len() as u8).to_le_bytes();
    bytes.iter_mut().zip(value).for_each(|(byte, value)| *byte = value);
}

/// Accesses of 1, 2, 4 or 8 bytes that make up one of `len` bytes: KVM cuts at page ends.
fn pieces(address: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let size = match len - done {
            0 => return None,
            left => 1 << left.min(8).ilog2(),
        };
        let piece = done..done + size;
        done += size;
        Some((address.wrapping_add(piece.start as u64), piece))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_sizes_are_cut() {
        let cut = |len| pieces(0x100, len).collect::<Vec<_>>();
        assert_eq!(cut(8), [(0x100, 0..8)]);
        assert_eq!(cut(3), [(0x100, 0..2), (0x102, 2..3)]);
        assert_eq!(cut(7), [(0x100, 0..4), (0x104, 4..6), (0x106, 6..7)]);
        assert_eq!(cut(0), []);
    }
}
