//! The keys of a 104-key PC keyboard, their scan codes, and their names (IBM Personal System/2 Technical
//! Reference, "Keyboard", scan code sets 2 and 3; set 1 is what the controller makes of set 2).

use serde::{Deserialize, Serialize};

/// How a key's codes are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Codes {
    /// Set 2 code without prefix.
    pub set2: u8,
    /// E0 stands before it.
    pub extended: bool,
    pub set3: u8,
}

macro_rules! keys {
    ($($key:ident $set2:literal $extended:literal $set3:literal $($name:literal)+;)*) => {
        /// A physical key, named by what stands on a US keyboard.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[repr(u8)]
        pub enum Key { $($key,)* }

        impl Key {
            /// Every key, in the order of the type.
            pub const ALL: &[Key] = &[$(Key::$key,)*];

            pub(crate) fn codes(self) -> Codes {
                match self {
                    $(Key::$key => Codes { set2: $set2, extended: $extended != 0, set3: $set3 },)*
                }
            }

            /// The key that QEMU's `sendkey` gives this name.
            pub fn from_name(name: &str) -> Option<Key> {
                match name {
                    $($($name)|+ => Some(Key::$key),)*
                    _ => None,
                }
            }

            /// The name that `sendkey` lists.
            pub fn key_name(self) -> &'static str {
                match self { $(Key::$key => [$($name),+][0],)* }
            }
        }
    };
}

keys! {
    Escape 0x76 0 0x08 "esc" "escape";
    F1 0x05 0 0x07 "f1";
    F2 0x06 0 0x0F "f2";
    F3 0x04 0 0x17 "f3";
    F4 0x0C 0 0x1F "f4";
    F5 0x03 0 0x27 "f5";
    F6 0x0B 0 0x2F "f6";
    F7 0x83 0 0x37 "f7";
    F8 0x0A 0 0x3F "f8";
    F9 0x01 0 0x47 "f9";
    F10 0x09 0 0x4F "f10";
    F11 0x78 0 0x56 "f11";
    F12 0x07 0 0x5E "f12";
    PrintScreen 0x7C 1 0x57 "print" "sysrq";
    ScrollLock 0x7E 0 0x5F "scroll_lock";
    Pause 0x77 1 0x62 "pause" "break";
    Grave 0x0E 0 0x0E "grave_accent";
    Digit1 0x16 0 0x16 "1";
    Digit2 0x1E 0 0x1E "2";
    Digit3 0x26 0 0x26 "3";
    Digit4 0x25 0 0x25 "4";
    Digit5 0x2E 0 0x2E "5";
    Digit6 0x36 0 0x36 "6";
    Digit7 0x3D 0 0x3D "7";
    Digit8 0x3E 0 0x3E "8";
    Digit9 0x46 0 0x46 "9";
    Digit0 0x45 0 0x45 "0";
    Minus 0x4E 0 0x4E "minus";
    Equal 0x55 0 0x55 "equal";
    Backspace 0x66 0 0x66 "backspace";
    Tab 0x0D 0 0x0D "tab";
    Q 0x15 0 0x15 "q";
    W 0x1D 0 0x1D "w";
    E 0x24 0 0x24 "e";
    R 0x2D 0 0x2D "r";
    T 0x2C 0 0x2C "t";
    Y 0x35 0 0x35 "y";
    U 0x3C 0 0x3C "u";
    I 0x43 0 0x43 "i";
    O 0x44 0 0x44 "o";
    P 0x4D 0 0x4D "p";
    BracketLeft 0x54 0 0x54 "bracket_left";
    BracketRight 0x5B 0 0x5B "bracket_right";
    Backslash 0x5D 0 0x5C "backslash";
    CapsLock 0x58 0 0x14 "caps_lock";
    A 0x1C 0 0x1C "a";
    S 0x1B 0 0x1B "s";
    D 0x23 0 0x23 "d";
    F 0x2B 0 0x2B "f";
    G 0x34 0 0x34 "g";
    H 0x33 0 0x33 "h";
    J 0x3B 0 0x3B "j";
    K 0x42 0 0x42 "k";
    L 0x4B 0 0x4B "l";
    Semicolon 0x4C 0 0x4C "semicolon";
    Apostrophe 0x52 0 0x52 "apostrophe";
    Enter 0x5A 0 0x5A "ret" "enter" "return";
    ShiftLeft 0x12 0 0x12 "shift" "shift_l";
    Less 0x61 0 0x13 "less";
    Z 0x1A 0 0x1A "z";
    X 0x22 0 0x22 "x";
    C 0x21 0 0x21 "c";
    V 0x2A 0 0x2A "v";
    B 0x32 0 0x32 "b";
    N 0x31 0 0x31 "n";
    M 0x3A 0 0x3A "m";
    Comma 0x41 0 0x41 "comma";
    Dot 0x49 0 0x49 "dot";
    Slash 0x4A 0 0x4A "slash";
    ShiftRight 0x59 0 0x59 "shift_r";
    ControlLeft 0x14 0 0x11 "ctrl" "ctrl_l";
    MetaLeft 0x1F 1 0x8B "meta_l" "win";
    AltLeft 0x11 0 0x19 "alt" "alt_l";
    Space 0x29 0 0x29 "spc" "space";
    AltRight 0x11 1 0x39 "alt_r" "altgr";
    MetaRight 0x27 1 0x8C "meta_r";
    Menu 0x2F 1 0x8D "menu" "compose";
    ControlRight 0x14 1 0x58 "ctrl_r";
    Insert 0x70 1 0x67 "insert";
    Delete 0x71 1 0x64 "delete";
    Home 0x6C 1 0x6E "home";
    End 0x69 1 0x65 "end";
    PageUp 0x7D 1 0x6F "pgup";
    PageDown 0x7A 1 0x6D "pgdn";
    Up 0x75 1 0x63 "up";
    Left 0x6B 1 0x61 "left";
    Down 0x72 1 0x60 "down";
    Right 0x74 1 0x6A "right";
    NumLock 0x77 0 0x76 "num_lock";
    KeypadDivide 0x4A 1 0x77 "kp_divide";
    KeypadMultiply 0x7C 0 0x7E "kp_multiply" "asterisk";
    KeypadSubtract 0x7B 0 0x84 "kp_subtract";
    Keypad7 0x6C 0 0x6C "kp_7";
    Keypad8 0x75 0 0x75 "kp_8";
    Keypad9 0x7D 0 0x7D "kp_9";
    KeypadAdd 0x79 0 0x7C "kp_add";
    Keypad4 0x6B 0 0x6B "kp_4";
    Keypad5 0x73 0 0x73 "kp_5";
    Keypad6 0x74 0 0x74 "kp_6";
    Keypad1 0x69 0 0x69 "kp_1";
    Keypad2 0x72 0 0x72 "kp_2";
    Keypad3 0x7A 0 0x7A "kp_3";
    Keypad0 0x70 0 0x70 "kp_0";
    KeypadDecimal 0x71 0 0x71 "kp_decimal";
    KeypadEnter 0x5A 1 0x79 "kp_enter";
}

impl Key {
    /// The key's bit in a set of keys.
    pub(crate) fn bit(self) -> u128 {
        1 << (self as u8)
    }

    /// The key that types an ASCII character on a US keyboard, and whether Shift is held.
    pub fn from_char(character: char) -> Option<(Key, bool)> {
        if character.is_ascii_alphanumeric() {
            let lower = character.to_ascii_lowercase();
            let key = Key::from_name(lower.encode_utf8(&mut [0; 4]))?;
            return Some((key, character.is_ascii_uppercase()));
        }
        Some(match character {
            ' ' => (Key::Space, false),
            '\n' | '\r' => (Key::Enter, false),
            '\t' => (Key::Tab, false),
            '\u{8}' => (Key::Backspace, false),
            '\u{1b}' => (Key::Escape, false),
            '`' => (Key::Grave, false),
            '~' => (Key::Grave, true),
            '!' => (Key::Digit1, true),
            '@' => (Key::Digit2, true),
            '#' => (Key::Digit3, true),
            '$' => (Key::Digit4, true),
            '%' => (Key::Digit5, true),
            '^' => (Key::Digit6, true),
            '&' => (Key::Digit7, true),
            '*' => (Key::Digit8, true),
            '(' => (Key::Digit9, true),
            ')' => (Key::Digit0, true),
            '-' => (Key::Minus, false),
            '_' => (Key::Minus, true),
            '=' => (Key::Equal, false),
            '+' => (Key::Equal, true),
            '[' => (Key::BracketLeft, false),
            '{' => (Key::BracketLeft, true),
            ']' => (Key::BracketRight, false),
            '}' => (Key::BracketRight, true),
            '\\' => (Key::Backslash, false),
            '|' => (Key::Backslash, true),
            ';' => (Key::Semicolon, false),
            ':' => (Key::Semicolon, true),
            '\'' => (Key::Apostrophe, false),
            '"' => (Key::Apostrophe, true),
            ',' => (Key::Comma, false),
            '<' => (Key::Comma, true),
            '.' => (Key::Dot, false),
            '>' => (Key::Dot, true),
            '/' => (Key::Slash, false),
            '?' => (Key::Slash, true),
            _ => return None,
        })
    }

    /// The presses (true) and releases (false) that type a character.
    pub fn sequence(character: char) -> Option<Vec<(Key, bool)>> {
        let (key, shift) = Key::from_char(character)?;
        let strokes = [(Key::ShiftLeft, true), (key, true), (key, false), (Key::ShiftLeft, false)];
        Some(if shift { strokes.to_vec() } else { strokes[1..3].to_vec() })
    }
}

/// What the keyboard controller makes of the codes 00 to 7F of set 2; 83 and 84 have entries of their own.
const SET_1: [u8; 128] = [
    0xFF, 0x43, 0x41, 0x3F, 0x3D, 0x3B, 0x3C, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3E, 0x0F, 0x29, 0x59, //
    0x65, 0x38, 0x2A, 0x70, 0x1D, 0x10, 0x02, 0x5A, 0x66, 0x71, 0x2C, 0x1F, 0x1E, 0x11, 0x03, 0x5B, //
    0x67, 0x2E, 0x2D, 0x20, 0x12, 0x05, 0x04, 0x5C, 0x68, 0x39, 0x2F, 0x21, 0x14, 0x13, 0x06, 0x5D, //
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5E, 0x6A, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5F, //
    0x6B, 0x33, 0x25, 0x17, 0x18, 0x0B, 0x0A, 0x60, 0x6C, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0C, 0x61, //
    0x6D, 0x73, 0x28, 0x74, 0x1A, 0x0D, 0x62, 0x6E, 0x3A, 0x36, 0x1C, 0x1B, 0x75, 0x2B, 0x63, 0x76, //
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7A, 0x0E, 0x7B, 0x7C, 0x4F, 0x7D, 0x4B, 0x47, 0x7E, 0x7F, 0x6F, //
    0x52, 0x53, 0x50, 0x4C, 0x4D, 0x48, 0x01, 0x45, 0x57, 0x4E, 0x51, 0x4A, 0x37, 0x49, 0x46, 0x54, //
];

/// A set 2 byte as the controller's translation gives it; prefixes and responses pass.
pub(crate) fn translate(set2: u8) -> u8 {
    match set2 {
        0x83 => 0x41,
        0x84 => 0x54,
        _ => SET_1.get(usize::from(set2)).copied().unwrap_or(set2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_characters() {
        assert_eq!(Key::from_name("ctrl"), Some(Key::ControlLeft));
        assert_eq!(Key::from_name("ret"), Some(Key::Enter));
        assert_eq!(Key::from_name("nonsense"), None);
        for &key in Key::ALL {
            assert_eq!(Key::from_name(key.key_name()), Some(key));
        }
        for character in (0x20..0x7Fu8).map(char::from) {
            assert!(Key::from_char(character).is_some(), "{character:?}");
        }
        assert_eq!(Key::from_char('A'), Some((Key::A, true)));
        assert!(Key::ALL.len() <= 128);
    }

    #[test]
    fn translation_keeps_known_codes() {
        for (set2, set1) in [(0x1C, 0x1E), (0x5A, 0x1C), (0x76, 0x01), (0x83, 0x41), (0x07, 0x58)] {
            assert_eq!(translate(set2), set1);
        }
        assert_eq!(translate(0xFA), 0xFA);
    }
}
