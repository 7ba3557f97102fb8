//! The wheel of the PS/2 mouse on a whole machine: a guest knocks as drivers of the IntelliMouse do and reads packets.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::sync::Arc;
use trimaran_cpu::engine::{EngineFactory, Interpreter};
use trimaran_machine::boot::DirectBoot;
use trimaran_machine::{Machine, MachineConfig};

const LOAD: u32 = 0x10_0000;
const ENTRY: u32 = LOAD + 0x40;
/// What the guest sends to the mouse, 0 at the end: sample rates 200, 100, 80; its ID; reports on.
const TO_MOUSE: u32 = LOAD + 0x20;
const COMMANDS: [u8; 9] = [0xF3, 200, 0xF3, 100, 0xF3, 80, 0xF2, 0xF4, 0];
/// Where it puts what it gets.
const RECEIVED: u32 = 0x9000;
const MILLISECOND: u64 = 1_000_000;

fn code(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut next = a.create_label();
    let mut send = a.create_label();
    let mut receive = a.create_label();
    let mut room = a.create_label();
    let mut room_again = a.create_label();
    a.mov(esi, TO_MOUSE)?;
    a.mov(edi, RECEIVED)?;
    a.mov(al, 0xA8)?;
    a.out(0x64, al)?;
    a.set_label(&mut next)?;
    // Whatever has come is taken first, until nothing has come for two milliseconds or so.
    a.mov(ecx, 400_000)?;
    a.set_label(&mut receive)?;
    a.dec(ecx)?;
    a.je(send)?;
    a.in_(al, 0x64)?;
    a.test(al, 1)?;
    a.je(receive)?;
    a.in_(al, 0x60)?;
    a.stosb()?;
    a.jmp(next)?;
    a.set_label(&mut send)?;
    a.lodsb()?;
    a.mov(ah, al)?;
    a.dec(esi)?;
    a.cmp(al, 0)?;
    a.je(next)?;
    a.inc(esi)?;
    a.set_label(&mut room)?;
    a.in_(al, 0x64)?;
    a.test(al, 2)?;
    a.jne(room)?;
    a.mov(al, 0xD4)?;
    a.out(0x64, al)?;
    a.set_label(&mut room_again)?;
    a.in_(al, 0x64)?;
    a.test(al, 2)?;
    a.jne(room_again)?;
    a.mov(al, ah)?;
    a.out(0x60, al)?;
    a.jmp(next)
}

fn kernel() -> Vec<u8> {
    let (magic, flags) = (0x1BAD_B002u32, 1u32 << 16);
    let header = [magic, flags, 0u32.wrapping_sub(magic).wrapping_sub(flags), LOAD, LOAD, 0, 0, ENTRY];
    let mut image = header.map(u32::to_le_bytes).concat();
    image.extend(COMMANDS);
    image.resize((ENTRY - LOAD) as usize, 0);
    let mut a = CodeAssembler::new(32).expect("32-bit code");
    code(&mut a).expect("code");
    image.extend(a.assemble(u64::from(ENTRY)).expect("code"));
    image
}

#[test]
fn wheel() {
    let config = MachineConfig {
        memory: 16 << 20,
        direct: Some(DirectBoot { kernel: kernel(), ..DirectBoot::default() }),
        deterministic: true,
        ..MachineConfig::default()
    };
    let factory: Arc<dyn EngineFactory> = Arc::new(Interpreter);
    let machine = Machine::new(config, &factory).expect("machine");
    let mut expected = vec![0xFA; 7];
    // The ID of a mouse with wheel; then reports are turned on.
    expected.extend([3, 0xFA]);
    let mut time = 0;
    let mut check = |packets: &[u8]| {
        expected.extend(packets);
        time += 50 * MILLISECOND;
        assert_eq!(machine.run_until(time), None);
        let mut received = vec![0; expected.len() + 1];
        machine.read_physical(u64::from(RECEIVED), &mut received);
        assert_eq!(received.pop(), Some(0), "{received:x?} and more");
        assert_eq!(received, expected);
    };
    check(&[]);
    // Down is positive for us and negative for the mouse.
    machine.mouse_move(5, 3, 0);
    check(&[0x28, 5, 0xFD, 0]);
    machine.mouse_move(0, 0, 1);
    check(&[0x08, 0, 0, 1]);
    machine.mouse_move(-2, 0, -1);
    check(&[0x18, 0xFE, 0, 0xFF]);
}
