//! Bytes between the guest's ports and the host: output goes through a bounded channel to a thread that writes it,
//! input waits in a queue until the chip has room.

use crate::board::Board;
use crate::chips::{ChipId, locked};
use std::collections::VecDeque;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use trimaran_devices::ps2::key::Key;

/// A port whose bytes go to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Console {
    /// COM1 is 0.
    Serial(u8),
    Parallel,
    /// Port 0xE9.
    Debug,
    /// Port 0x402, the firmware's log.
    Firmware,
    /// What is written to a logged port, as text: its number in [`crate::MachineConfig::port_logs`].
    Port(u8),
}

/// Where a console's bytes go.
pub type Sink = Box<dyn Write + Send>;

/// Bytes under way before a guest must wait for the host.
const UNDER_WAY: usize = 0x1_0000;
/// A stroke takes at most this much of the keyboard's buffer.
const STROKE: usize = 8;

/// See the head of this file.
pub struct Consoles {
    sender: Mutex<Option<SyncSender<(Console, u8)>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Which consoles have a sink.
    used: Vec<Console>,
    serial: [Mutex<VecDeque<u8>>; 4],
    strokes: Mutex<VecDeque<(Key, bool)>>,
    /// Any input waits.
    waiting: AtomicBool,
}

impl Consoles {
    /// Starts the thread that writes.
    pub fn new(sinks: Vec<(Console, Sink)>) -> std::io::Result<Self> {
        let used: Vec<Console> = sinks.iter().map(|sink| sink.0).collect();
        let (sender, receiver) = sync_channel(UNDER_WAY);
        let thread = std::thread::Builder::new().name("consoles".into());
        let writer = thread.spawn(move || write_all(sinks, &receiver))?;
        Ok(Consoles {
            sender: Mutex::new(Some(sender)),
            writer: Mutex::new(Some(writer)),
            used,
            serial: Default::default(),
            strokes: Mutex::default(),
            waiting: AtomicBool::new(false),
        })
    }

    /// A byte leaves the guest.
    pub fn output(&self, console: Console, byte: u8) {
        if self.used.contains(&console)
            && let Some(sender) = &*locked(&self.sender)
        {
            let _ = sender.send((console, byte));
        }
    }

    /// Input that the chips have not taken yet: of the serial ports, and of the keyboard.
    pub fn waiting_input(&self) -> ([Vec<u8>; 4], Vec<(Key, bool)>) {
        let serial = std::array::from_fn(|n| locked(&self.serial[n]).iter().copied().collect());
        (serial, locked(&self.strokes).iter().copied().collect())
    }

    pub fn set_waiting_input(&self, serial: [Vec<u8>; 4], strokes: Vec<(Key, bool)>) {
        for (queue, bytes) in self.serial.iter().zip(serial) {
            *locked(queue) = bytes.into();
        }
        *locked(&self.strokes) = strokes.into();
        self.waiting.store(true, SeqCst);
    }

    /// Writes what is under way and ends the thread.
    pub fn finish(&self) {
        drop(locked(&self.sender).take());
        if let Some(writer) = locked(&self.writer).take() {
            let _ = writer.join();
        }
    }
}

/// A sink that fails loses its bytes; the guest goes on.
fn write_all(mut sinks: Vec<(Console, Sink)>, receiver: &Receiver<(Console, u8)>) {
    let mut batch = Vec::new();
    while let Ok(first) = receiver.recv() {
        batch.clear();
        batch.push(first);
        batch.extend(receiver.try_iter().take(UNDER_WAY));
        for (console, sink) in &mut sinks {
            let bytes: Vec<u8> = batch.iter().filter(|item| item.0 == *console).map(|item| item.1).collect();
            if !bytes.is_empty()
                && let Err(e) = sink.write_all(&bytes).and_then(|()| sink.flush())
            {
                tracing::warn!("{console:?}: {e}");
            }
        }
    }
}

impl Board {
    /// Bytes arrive at a serial port, as fast as the guest takes them.
    pub(crate) fn serial_input(&self, port: u8, bytes: &[u8]) {
        let Some(queue) = self.consoles.serial.get(usize::from(port)) else { return };
        locked(queue).extend(bytes);
        self.consoles.waiting.store(true, SeqCst);
        self.pump(ChipId::Com(port));
    }

    /// Keys go down and up, as fast as the keyboard takes them.
    pub(crate) fn strokes(&self, strokes: &[(Key, bool)]) {
        locked(&self.consoles.strokes).extend(strokes);
        self.consoles.waiting.store(true, SeqCst);
        self.pump(ChipId::Keyboard);
    }

    /// Called after each access to a chip: it may have room for input now.
    pub(crate) fn pump(&self, id: ChipId) {
        if !self.consoles.waiting.load(Relaxed) {
            return;
        }
        match id {
            ChipId::Com(n) => {
                let Some(queue) = self.consoles.serial.get(usize::from(n)) else { return };
                let mut queue = locked(queue);
                if !queue.is_empty() {
                    self.call(&self.chips.com[usize::from(n)], |uart, cx| {
                        for _ in 0..uart.room() {
                            let Some(byte) = queue.pop_front() else { break };
                            uart.receive(cx, byte);
                        }
                    });
                }
            }
            ChipId::Keyboard => {
                let mut strokes = locked(&self.consoles.strokes);
                if !strokes.is_empty() {
                    self.call(&self.chips.keyboard, |keyboard, cx| {
                        while keyboard.keyboard_room() >= STROKE {
                            let Some((key, down)) = strokes.pop_front() else { break };
                            if down {
                                keyboard.press(cx, key);
                            } else {
                                keyboard.release(cx, key);
                            }
                        }
                    });
                }
            }
            _ => {}
        }
    }
}
