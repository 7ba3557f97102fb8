//! The built-in guest: a program of our own that needs nothing installed. It starts in real mode, goes through
//! protected to long mode and says so on the screen and on COM1, lists the processor's features, and then draws an
//! animated Julia set in SSE2, with its frame rate, and follows keyboard and mouse.
//!
//! [`image`] assembles it; the board puts [`Image::bytes`] at [`Image::load_at`] and starts there in real mode.
//! As a smoke test it draws a fixed number of frames, prints `trimaran smoke <checksum>` on COM1 and powers off.
//! The arithmetic is IEEE 754, so [`expected_checksum`] knows what every engine must print.
//!
//! | file | what |
//! |---|---|
//! | `places` | where everything lies in memory and on the screen |
//! | `data` | constant data: strings, tables, palette |
//! | `modes` | from real mode to long mode, printing without help |
//! | `report` | the processor's features, numbers as text |
//! | `screen` | finding the display, setting its mode, text and rectangles |
//! | `fractal` | the picture, on the guest and again on the host |
//! | `input` | keyboard, mouse and the pointer |
//! | `show` | the main program |

mod data;
mod fractal;
mod input;
mod modes;
mod places;
mod report;
mod screen;
mod show;

use data::Data;
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, CodeLabel};

pub use fractal::expected_checksum;

/// RAM that the guest needs.
pub const MIN_RAM: u64 = 4 << 20;

/// How the guest is to behave.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The engine's name, shown beside the picture.
    pub engine: String,
    /// Draw some frames, print the checksum, power off.
    pub smoke: bool,
}

/// What the board loads, and where real mode begins.
#[derive(Clone, Debug)]
pub struct Image {
    pub bytes: Vec<u8>,
    pub load_at: u64,
    pub cs: u16,
    pub ip: u16,
}

/// Result of everything that emits instructions.
type Asm = Result<(), IcedError>;

/// The 64-bit program while it is written: `rbp` holds [`places::VARIABLES`] throughout; routines may change every
/// other register unless they say what they keep.
struct Guest {
    a: CodeAssembler,
    data: Data,
    options: Options,
    routines: Routines,
}

/// Entry points of the routines.
struct Routines {
    /// Prints the string at rsi as the next line of the text screen, and on COM1.
    print_line: CodeLabel,
    /// Prints the string at rsi on COM1 alone.
    serial: CodeLabel,
    /// Copies the string at rsi to rdi, without its end; rdi is left behind it.
    append: CodeLabel,
    /// Writes rax in decimal at rdi; rdi is left behind it.
    decimal: CodeLabel,
    /// Writes the lines of the processor's features, each at most rcx characters; their number in eax.
    features: CodeLabel,
    /// Draws the string at rsi at column r8 and line r9 in colour r10d on r11d.
    draw_text: CodeLabel,
    /// Fills r12 x r13 pixels from column r8 and line r9 on with colour eax.
    fill: CodeLabel,
    /// Draws the next frame into the back buffer.
    frame: CodeLabel,
    /// Shows the back buffer, below the pointer.
    present: CodeLabel,
    /// Takes what keyboard and mouse have sent, and counts the time.
    poll: CodeLabel,
    /// Paints the pointer and keeps what lies below it.
    show_pointer: CodeLabel,
    /// Puts back what lay below the pointer.
    hide_pointer: CodeLabel,
    /// Paints the pointer at rdi, where lines are r11 bytes longer than the pointer, and keeps what lies below it.
    paint_pointer: CodeLabel,
    /// Puts that back, at rdi with the same r11.
    wipe_pointer: CodeLabel,
    power_off: CodeLabel,
}

impl Guest {
    fn new(options: &Options) -> Result<Self, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let mut label = || a.create_label();
        let routines = Routines {
            print_line: label(),
            serial: label(),
            append: label(),
            decimal: label(),
            features: label(),
            draw_text: label(),
            fill: label(),
            frame: label(),
            present: label(),
            poll: label(),
            show_pointer: label(),
            hide_pointer: label(),
            paint_pointer: label(),
            wipe_pointer: label(),
            power_off: label(),
        };
        Ok(Guest { a, data: Data::new(), options: options.clone(), routines })
    }

    /// `mov rsi, string`.
    fn string(&mut self, text: &str) -> Asm {
        let at = self.data.text(text);
        self.a.mov(iced_x86::code_asm::esi, at)
    }

    /// Prints a line of the text screen.
    fn line(&mut self, text: &str) -> Asm {
        self.string(text)?;
        self.a.call(self.routines.print_line)
    }
}

/// Assembles the guest.
pub fn image(options: &Options) -> Result<Image, IcedError> {
    let mut guest = Guest::new(options)?;
    guest.main()?;
    guest.report()?;
    guest.screen()?;
    guest.fractal()?;
    guest.input()?;
    let long = guest.a.assemble(places::LONG_CODE)?;
    let real = modes::real(&mut guest.data)?;
    let protected = modes::protected(&mut guest.data)?;

    let mut bytes = Vec::new();
    let parts = [
        (places::REAL_CODE, &real),
        (places::PROTECTED_CODE, &protected),
        (places::LONG_CODE, &long),
        (places::DATA, &guest.data.bytes),
        (places::FONT, &trimaran_devices::vga::font::font_8x16().to_vec()),
    ];
    for (at, part) in parts {
        let offset = (at - places::REAL_CODE) as usize;
        assert!(bytes.len() <= offset, "the built-in guest's parts overlap at {at:#x}");
        bytes.resize(offset, 0);
        bytes.extend_from_slice(part);
    }
    Ok(Image { bytes, load_at: places::REAL_CODE, cs: 0, ip: places::REAL_CODE as u16 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_assembles() {
        for smoke in [false, true] {
            let image = image(&Options { engine: "interp".into(), smoke }).unwrap();
            let end = image.load_at + image.bytes.len() as u64;
            assert!(end <= crate::layout::BOOT_END, "{end:#x}");
            assert_eq!(u64::from(image.cs) * 16 + u64::from(image.ip), image.load_at);
        }
    }

    #[test]
    fn the_checksum_is_known() {
        assert_eq!(expected_checksum(), expected_checksum());
    }
}
