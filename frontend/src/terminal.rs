//! `--display terminal`: the VGA's text in this terminal. Graphics are shown coarsely, two pixels a character.

use crate::keys;
use crate::session::Session;
use ratatui::DefaultTerminal;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Style};
use std::sync::Arc;
use std::time::{Duration, Instant};
use trimaran_devices::vga::{Frame, TextScreen};

/// Time between two looks at the screen.
const PERIOD: Duration = Duration::from_millis(33);

/// Shows the machine until it ends, the user quits or the time runs out.
pub fn run(session: &Arc<Session>, deadline: Option<Instant>) -> anyhow::Result<()> {
    let mut terminal = ratatui::try_init()?;
    let result = show(&mut terminal, session, deadline);
    ratatui::restore();
    result
}

fn show(terminal: &mut DefaultTerminal, session: &Session, deadline: Option<Instant>) -> anyhow::Result<()> {
    let mut escape = false;
    let mut frame = Frame::default();
    while session.machine.outcome().is_none() && deadline.is_none_or(|deadline| Instant::now() < deadline) {
        let screen = session.machine.text_screen();
        if screen.is_none() {
            session.machine.render(&mut frame);
        }
        terminal.draw(|canvas| {
            let area = canvas.area();
            match &screen {
                Some(screen) => {
                    draw_text(screen, area, canvas.buffer_mut());
                    let inside = |&(x, y): &(usize, usize)| x < area.width.into() && y < area.height.into();
                    if let Some((x, y)) = screen.cursor.filter(inside) {
                        canvas.set_cursor_position(Position::new(x as u16, y as u16));
                    }
                }
                None => draw_picture(&frame, area, canvas.buffer_mut()),
            }
        })?;
        let until = Instant::now() + PERIOD;
        while event::poll(until.saturating_duration_since(Instant::now()))? {
            let Event::Key(key) = event::read()? else { continue };
            if key.kind == KeyEventKind::Release {
                continue;
            }
            let ctrl_a = key.code == KeyCode::Char('a') && key.modifiers == KeyModifiers::CONTROL;
            match (std::mem::take(&mut escape), key.code) {
                (false, _) if ctrl_a => escape = true,
                (true, KeyCode::Char('x' | 'X')) => {
                    session.quit();
                    return Ok(());
                }
                (true, KeyCode::Char('e' | 'E')) => _ = session.next_engine(),
                _ => keys::from_terminal(&key)
                    .into_iter()
                    .for_each(|(key, down)| session.machine.key(key, down)),
            }
        }
    }
    Ok(())
}

fn draw_text(screen: &TextScreen, area: Rect, buffer: &mut Buffer) {
    for (y, row) in (0..area.height).zip(screen.cells.chunks(screen.columns.max(1))) {
        for (x, &(code, attribute)) in (0..area.width).zip(row) {
            let style = Style::new().fg(colour(attribute & 15)).bg(colour(attribute >> 4 & 7));
            buffer[(x, y)].set_char(character(code)).set_style(style);
        }
    }
}

/// The upper pixel is the character's foreground, the lower one its background.
fn draw_picture(frame: &Frame, area: Rect, buffer: &mut Buffer) {
    if frame.width == 0 || frame.height == 0 {
        return;
    }
    let (width, height) = (usize::from(area.width), usize::from(area.height) * 2);
    let (left, top, w, h) = crate::picture::place(frame, width, height);
    let pixel = |x: usize, y: usize| {
        if x < left || y < top || x >= left + w || y >= top + h {
            return Color::Black;
        }
        let (x, y) = ((x - left) * frame.width / w, (y - top) * frame.height / h);
        let [_, red, green, blue] = frame.pixels[y * frame.width + x].to_be_bytes();
        Color::Rgb(red, green, blue)
    };
    for y in 0..area.height {
        for x in 0..area.width {
            let (column, row) = (usize::from(x), usize::from(y) * 2);
            let style = Style::new().fg(pixel(column, row)).bg(pixel(column, row + 1));
            buffer[(x, y)].set_char('▀').set_style(style);
        }
    }
}

/// A colour of the text mode, as terminals number them.
fn colour(index: u8) -> Color {
    // The VGA has blue in bit 0, terminals have red there.
    const TERMINAL: [u8; 8] = [0, 4, 2, 6, 1, 5, 3, 7];
    Color::Indexed(TERMINAL[usize::from(index & 7)] | index & 8)
}

/// Code page 437, for the codes that are not ASCII.
fn character(code: u8) -> char {
    const LOW: &str = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼";
    const HIGH: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀\
                        αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■ ";
    match code {
        0..0x20 => LOW.chars().nth(code.into()).unwrap_or(' '),
        0x7F => '⌂',
        0x80.. => HIGH.chars().nth(usize::from(code) - 0x80).unwrap_or(' '),
        _ => char::from(code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_page_437_is_whole() {
        for (code, expected) in
            [(0x1Fu8, '▼'), (0x41, 'A'), (0x80, 'Ç'), (0xB3, '│'), (0xDB, '█'), (0xFE, '■')]
        {
            assert_eq!(character(code), expected, "{code:#x}");
        }
    }

    #[test]
    fn screens_of_any_size_fit() {
        let screen = TextScreen { columns: 80, rows: 25, cells: vec![(0x41, 0x1F); 2000], cursor: None };
        for (width, height) in [(1, 1), (80, 25), (200, 60)] {
            let area = Rect::new(0, 0, width, height);
            let mut buffer = Buffer::empty(area);
            draw_text(&screen, area, &mut buffer);
            draw_picture(&Frame { width: 3, height: 2, pixels: vec![0xFF_0000; 6] }, area, &mut buffer);
        }
    }
}
