//! Where everything lies: memory, variables, and the parts of the screen.

pub const STACK_TOP: u32 = 0x7000;
pub const VARIABLES: u32 = 0x7000;
pub const REAL_CODE: u64 = 0x8000;
pub const PROTECTED_CODE: u64 = 0x8400;
pub const LONG_CODE: u64 = 0x8800;
pub const DATA: u64 = 0xC000;
pub const FONT: u64 = 0x1_0000;
pub const PAGE_TABLES: u32 = 0x2_0000;
/// The picture before it is shown: 32 bits a pixel, [`PICTURE`] pixels.
pub const BACK_BUFFER: u32 = 0x20_0000;
pub const TEXT_MEMORY: u32 = 0xB_8000;

/// Variables, as offsets from [`VARIABLES`].
pub mod var {
    /// One word from each mode that was passed.
    pub const MARKS: i32 = 0x00;
    /// Line of the text screen that is printed next.
    pub const ROW: i32 = 0x0C;
    /// The linear framebuffer.
    pub const LFB: i32 = 0x10;
    /// Ticks of the power management timer since the start, and its last value.
    pub const TICKS: i32 = 0x18;
    pub const LAST_TICK: i32 = 0x20;
    /// Ticks at which the figures were shown last; frames, instructions and ticks of drawing since.
    pub const SHOWN_AT: i32 = 0x28;
    pub const FRAMES: i32 = 0x30;
    pub const WORK: i32 = 0x38;
    pub const DRAWING: i32 = 0x40;
    pub const ALL_FRAMES: i32 = 0x48;
    /// The picture's detail: a computed point is 1 << SHIFT pixels wide.
    pub const SHIFT: i32 = 0x50;
    /// Real and imaginary part of the constant.
    pub const C: i32 = 0x58;
    /// Imaginary part of the line that is drawn.
    pub const Y: i32 = 0x68;
    pub const CHECKSUM: i32 = 0x70;
    pub const MOUSE_X: i32 = 0x78;
    pub const MOUSE_Y: i32 = 0x7C;
    pub const BUTTONS: i32 = 0x80;
    /// Bytes of the mouse packet so far, and their number.
    pub const PACKET: i32 = 0x84;
    pub const PACKET_LENGTH: i32 = 0x88;
    pub const SHIFT_KEYS: i32 = 0x8C;
    /// Characters typed.
    pub const TYPED: i32 = 0x90;
    /// What is to be drawn again: bit 0 the typed line, bit 1 the pointer.
    pub const CHANGED: i32 = 0x94;
    /// Where the pointer is painted, or -1.
    pub const POINTER: i32 = 0x98;
    /// Words of CPUID, in the order of the features' table.
    pub const CPUID: i32 = 0x100;
    pub const VENDOR: i32 = 0x140;
    pub const BRAND: i32 = 0x160;
    pub const TYPED_TEXT: i32 = 0x1A0;
    /// A line of text that is being made.
    pub const LINE: i32 = 0x200;
    pub const BELOW_POINTER: i32 = 0x300;
    /// Lines of the features, [`super::FEATURE_LINE`] bytes each.
    pub const FEATURES: i32 = 0x700;
}
pub const FEATURE_LINE: i32 = 96;

/// The screen.
pub const WIDTH: u32 = 1024;
pub const HEIGHT: u32 = 768;
pub const PITCH: u32 = WIDTH * 4;
/// The picture: its size and its corner.
pub const PICTURE: (u32, u32) = (768, 512);
pub const PICTURE_AT: (u32, u32) = (16, 64);
/// The processor's column.
pub const PANEL: (u32, u32) = (800, 64);
pub const PANEL_CHARACTERS: u32 = 26;
pub const TITLE: (u32, u32) = (16, 16);
pub const MODES: (u32, u32) = (16, 36);
pub const FIGURES: (u32, u32) = (16, 596);
pub const TYPED: (u32, u32) = (16, 636);
pub const TYPED_CHARACTERS: u32 = 80;
pub const MOUSE: (u32, u32) = (16, 676);
pub const HINT: (u32, u32) = (16, 728);
/// The pointer's bitmap is this wide and high.
pub const POINTER_SIZE: u32 = 16;

/// Colours, 0xRRGGBB.
pub mod colour {
    pub const GROUND: u32 = 0x0B_1420;
    pub const FIELD: u32 = 0x16_2436;
    pub const TEXT: u32 = 0xC8_D3E0;
    pub const BRIGHT: u32 = 0xFF_FFFF;
    pub const ACCENT: u32 = 0x57_C7FF;
    pub const QUIET: u32 = 0x6F_8299;
}

/// 8042 and display ports that `layout.rs` has no name for.
pub const DISPI_INDEX: u32 = 0x1CE;
pub const DISPI_DATA: u32 = 0x1CF;
/// Ticks a second of the power management timer.
pub const TICKS_PER_SECOND: u32 = 3_579_545;
