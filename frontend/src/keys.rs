//! The guest's keys by what windows and terminals call them.

use ratatui::crossterm::event::{KeyCode as TerminalKey, KeyEvent, KeyModifiers};
use trimaran_devices::ps2::key::Key;
use winit::keyboard::KeyCode;

/// A physical key of a window.
pub fn from_window(code: KeyCode) -> Option<Key> {
    use KeyCode as W;
    Some(match code {
        W::Backquote => Key::Grave,
        W::Backslash => Key::Backslash,
        W::BracketLeft => Key::BracketLeft,
        W::BracketRight => Key::BracketRight,
        W::Comma => Key::Comma,
        W::Digit0 => Key::Digit0,
        W::Digit1 => Key::Digit1,
        W::Digit2 => Key::Digit2,
        W::Digit3 => Key::Digit3,
        W::Digit4 => Key::Digit4,
        W::Digit5 => Key::Digit5,
        W::Digit6 => Key::Digit6,
        W::Digit7 => Key::Digit7,
        W::Digit8 => Key::Digit8,
        W::Digit9 => Key::Digit9,
        W::Equal => Key::Equal,
        W::IntlBackslash => Key::Less,
        W::KeyA => Key::A,
        W::KeyB => Key::B,
        W::KeyC => Key::C,
        W::KeyD => Key::D,
        W::KeyE => Key::E,
        W::KeyF => Key::F,
        W::KeyG => Key::G,
        W::KeyH => Key::H,
        W::KeyI => Key::I,
        W::KeyJ => Key::J,
        W::KeyK => Key::K,
        W::KeyL => Key::L,
        W::KeyM => Key::M,
        W::KeyN => Key::N,
        W::KeyO => Key::O,
        W::KeyP => Key::P,
        W::KeyQ => Key::Q,
        W::KeyR => Key::R,
        W::KeyS => Key::S,
        W::KeyT => Key::T,
        W::KeyU => Key::U,
        W::KeyV => Key::V,
        W::KeyW => Key::W,
        W::KeyX => Key::X,
        W::KeyY => Key::Y,
        W::KeyZ => Key::Z,
        W::Minus => Key::Minus,
        W::Period => Key::Dot,
        W::Quote => Key::Apostrophe,
        W::Semicolon => Key::Semicolon,
        W::Slash => Key::Slash,
        W::AltLeft => Key::AltLeft,
        W::AltRight => Key::AltRight,
        W::Backspace => Key::Backspace,
        W::CapsLock => Key::CapsLock,
        W::ContextMenu => Key::Menu,
        W::ControlLeft => Key::ControlLeft,
        W::ControlRight => Key::ControlRight,
        W::Enter => Key::Enter,
        W::SuperLeft => Key::MetaLeft,
        W::SuperRight => Key::MetaRight,
        W::ShiftLeft => Key::ShiftLeft,
        W::ShiftRight => Key::ShiftRight,
        W::Space => Key::Space,
        W::Tab => Key::Tab,
        W::Delete => Key::Delete,
        W::End => Key::End,
        W::Home => Key::Home,
        W::Insert => Key::Insert,
        W::PageDown => Key::PageDown,
        W::PageUp => Key::PageUp,
        W::ArrowDown => Key::Down,
        W::ArrowLeft => Key::Left,
        W::ArrowRight => Key::Right,
        W::ArrowUp => Key::Up,
        W::NumLock => Key::NumLock,
        W::Numpad0 => Key::Keypad0,
        W::Numpad1 => Key::Keypad1,
        W::Numpad2 => Key::Keypad2,
        W::Numpad3 => Key::Keypad3,
        W::Numpad4 => Key::Keypad4,
        W::Numpad5 => Key::Keypad5,
        W::Numpad6 => Key::Keypad6,
        W::Numpad7 => Key::Keypad7,
        W::Numpad8 => Key::Keypad8,
        W::Numpad9 => Key::Keypad9,
        W::NumpadAdd => Key::KeypadAdd,
        W::NumpadDecimal => Key::KeypadDecimal,
        W::NumpadDivide => Key::KeypadDivide,
        W::NumpadEnter => Key::KeypadEnter,
        W::NumpadMultiply => Key::KeypadMultiply,
        W::NumpadSubtract => Key::KeypadSubtract,
        W::Escape => Key::Escape,
        W::PrintScreen => Key::PrintScreen,
        W::ScrollLock => Key::ScrollLock,
        W::Pause => Key::Pause,
        W::F1 => Key::F1,
        W::F2 => Key::F2,
        W::F3 => Key::F3,
        W::F4 => Key::F4,
        W::F5 => Key::F5,
        W::F6 => Key::F6,
        W::F7 => Key::F7,
        W::F8 => Key::F8,
        W::F9 => Key::F9,
        W::F10 => Key::F10,
        W::F11 => Key::F11,
        W::F12 => Key::F12,
        _ => return None,
    })
}

/// Presses and releases for a key that a terminal reports: it knows characters, not keys.
pub fn from_terminal(event: &KeyEvent) -> Vec<(Key, bool)> {
    let (key, mut shift) = match event.code {
        TerminalKey::Char(character) => match Key::from_char(character) {
            Some(found) => found,
            None => return Vec::new(),
        },
        code => match special(code) {
            Some(key) => (key, event.modifiers.contains(KeyModifiers::SHIFT)),
            None => return Vec::new(),
        },
    };
    if event.code == TerminalKey::BackTab {
        shift = true;
    }
    let held = [
        (event.modifiers.contains(KeyModifiers::CONTROL), Key::ControlLeft),
        (event.modifiers.contains(KeyModifiers::ALT), Key::AltLeft),
        (shift, Key::ShiftLeft),
    ];
    let held: Vec<Key> = held.into_iter().filter_map(|(down, key)| down.then_some(key)).collect();
    let press = held.iter().copied().chain([key]).map(|key| (key, true));
    let release = [key].into_iter().chain(held.iter().rev().copied()).map(|key| (key, false));
    press.chain(release).collect()
}

fn special(code: TerminalKey) -> Option<Key> {
    use TerminalKey as T;
    const FUNCTION: [Key; 12] = [
        Key::F1,
        Key::F2,
        Key::F3,
        Key::F4,
        Key::F5,
        Key::F6,
        Key::F7,
        Key::F8,
        Key::F9,
        Key::F10,
        Key::F11,
        Key::F12,
    ];
    Some(match code {
        T::Backspace => Key::Backspace,
        T::Enter => Key::Enter,
        T::Left => Key::Left,
        T::Right => Key::Right,
        T::Up => Key::Up,
        T::Down => Key::Down,
        T::Home => Key::Home,
        T::End => Key::End,
        T::PageUp => Key::PageUp,
        T::PageDown => Key::PageDown,
        T::Tab | T::BackTab => Key::Tab,
        T::Delete => Key::Delete,
        T::Insert => Key::Insert,
        T::Esc => Key::Escape,
        T::F(n) => *FUNCTION.get(usize::from(n).checked_sub(1)?)?,
        T::PrintScreen => Key::PrintScreen,
        T::ScrollLock => Key::ScrollLock,
        T::Pause => Key::Pause,
        T::Menu => Key::Menu,
        _ => return None,
    })
}
