//! Any reads and writes of a disk image, in a file or with its changes in memory, against plain bytes: what lies outside is
//! refused, the rest is what was written last. The file may shrink meanwhile.

use super::{Target, take};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use trimaran_devices::block::Medium;
use trimaran_machine::media::{RawImage, Scratch};

pub const TARGET: Target = Target { name: "media", run, longest: 600, dress: |_, _| {} };

fn run(mut data: &[u8]) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let [kind, low, high] = take(&mut data);
    let length = usize::from(u16::from_le_bytes([low, high]) % 4096);
    let name = format!("trimaran-fuzz-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
    let path = std::env::temp_dir().join(name);
    let mut want: Vec<u8> = (0..length).map(|n| n as u8).collect();
    std::fs::write(&path, &want).expect("a temporary file");
    let (in_memory, read_only) = (kind & 1 != 0, kind & 3 != 0);
    match RawImage::open(&path, read_only) {
        Err(why) => assert!(length == 0, "{why}"),
        Ok(image) if in_memory => {
            let mut scratch = Scratch::new(Box::new(image));
            let changes = scratch.changes();
            let mut kept = want.clone();
            while !data.is_empty() {
                match data[0] % 16 {
                    0 => {
                        changes.keep();
                        kept.clone_from(&want);
                    }
                    1 => {
                        changes.take_back();
                        want.clone_from(&kept);
                    }
                    _ => {}
                }
                access(&mut scratch, &mut data, &mut want);
            }
        }
        Ok(mut image) => {
            while data.len() > 200 {
                access(&mut image, &mut data, &mut want);
            }
            // Behind the back of the machine: an error perhaps, never a panic.
            let cut = std::fs::OpenOptions::new().write(true).open(&path).expect("the file");
            cut.set_len(length as u64 / 2).expect("a shorter file");
            let mut buffer = vec![0; length];
            let _ = (image.read_at(0, &mut buffer), image.flush());
        }
    }
    let _ = std::fs::remove_file(&path);
}

/// One access, that the next bytes say; `want` is what the medium holds.
fn access(medium: &mut dyn Medium, data: &mut &[u8], want: &mut [u8]) {
    let [op, scale, a, b, c, d, value] = take(data);
    let mut position = u64::from(u16::from_le_bytes([a, b]));
    if scale & 7 == 0 {
        position = (position << 48).wrapping_sub(u64::from(value));
    } else if scale & 7 < 6 {
        position %= want.len() as u64 + 1;
    }
    let length = usize::from(u16::from_le_bytes([c, d]) % 1500);
    let inside = position.checked_add(length as u64).is_some_and(|end| end <= want.len() as u64);
    let range = if inside { position as usize..position as usize + length } else { 0..0 };
    assert_eq!(medium.len(), want.len() as u64);
    if op & 16 == 0 {
        let mut bytes = vec![0xEE; length];
        assert_eq!(
            medium.read_at(position, &mut bytes).is_ok(),
            inside,
            "a read at {position:#x} + {length}"
        );
        assert!(!inside || bytes == want[range], "a read at {position:#x} + {length}");
    } else {
        let done = medium.write_at(position, &vec![value; length]).is_ok();
        assert_eq!(done, inside && !medium.read_only(), "a write at {position:#x} + {length}");
        if done {
            want[range].fill(value);
        }
    }
}
