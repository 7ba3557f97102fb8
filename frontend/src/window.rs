//! `--display window`: winit for the window and its input, softbuffer for its pixels.

use crate::picture;
use crate::session::Session;
use crate::{Failure, keys};
use anyhow::{Context, anyhow};
use std::collections::HashSet;
use std::num::NonZeroU32;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use trimaran_devices::ps2::key::Key;
use trimaran_devices::ps2::mouse::button;
use trimaran_devices::vga::Screen;
use winit::application::ApplicationHandler;
use winit::dpi::PhysicalSize;
use winit::event::{
    DeviceEvent, DeviceId, ElementState, KeyEvent, MouseButton, MouseScrollDelta, WindowEvent,
};
use winit::event_loop::{ActiveEventLoop, ControlFlow, EventLoop};
use winit::keyboard::PhysicalKey;
use winit::window::{CursorGrabMode, Window, WindowId};

/// Time between two looks at the guest's screen: while it runs, and while it stands.
const PERIOD: Duration = Duration::from_millis(20);
const STANDING: Duration = Duration::from_millis(200);
/// The first size, until the guest shows a picture.
const FIRST_SIZE: PhysicalSize<u32> = PhysicalSize::new(720, 400);
/// Libraries that winit opens at run time, and the Debian packages that have them.
const LIBRARIES: [(&str, &str); 6] = [
    ("libX11.so.6", "libx11-6"),
    ("libX11-xcb.so.1", "libx11-xcb1"),
    ("libXcursor.so.1", "libxcursor1"),
    ("libXi.so.6", "libxi6"),
    ("libxkbcommon.so.0", "libxkbcommon0"),
    ("libxkbcommon-x11.so.0", "libxkbcommon-x11-0"),
];
const FOLDERS: [&str; 7] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/local/lib",
];

/// Whether a window can be opened, or why not. winit panics where libxkbcommon is missing, so it is looked for first.
pub fn available() -> Result<(), String> {
    if std::env::var_os("DISPLAY").is_none_or(|display| display.is_empty()) {
        return Err("there is no display, DISPLAY is not set".into());
    }
    let own = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let folders: Vec<&str> = own.split(':').filter(|f| !f.is_empty()).chain(FOLDERS).collect();
    // Without any of these folders the libraries are kept elsewhere (as NixOS does): hope for the best.
    if !FOLDERS.iter().any(|folder| Path::new(folder).join("libc.so.6").exists()) {
        return Ok(());
    }
    let missing = |file: &str| !folders.iter().any(|folder| Path::new(folder).join(file).exists());
    let packages: Vec<&str> =
        LIBRARIES.iter().filter(|(file, _)| missing(file)).map(|(_, package)| *package).collect();
    if packages.is_empty() {
        Ok(())
    } else {
        Err(format!("libraries are missing; on Debian: apt install {}", packages.join(" ")))
    }
}

/// Shows the machine until it ends, the window is closed or the time runs out.
pub fn run(session: &Arc<Session>, deadline: Option<Instant>) -> Result<(), Failure> {
    let event_loop = EventLoop::new().context("cannot reach the display")?;
    let mut app = App::new(session.clone(), deadline);
    event_loop.run_app(&mut app)?;
    app.failure.map_or(Ok(()), |error| Err(error.into()))
}

type Surface = softbuffer::Surface<Rc<Window>, Rc<Window>>;

struct App {
    session: Arc<Session>,
    deadline: Option<Instant>,
    view: Option<(Rc<Window>, Surface)>,
    screen: Screen,
    title: String,
    captured: bool,
    /// Keys and mouse buttons that the guest sees down.
    down: HashSet<Key>,
    buttons: u8,
    /// Mouse movement that was less than a count.
    rest: (f64, f64),
    failure: Option<anyhow::Error>,
}

impl App {
    fn new(session: Arc<Session>, deadline: Option<Instant>) -> Self {
        App {
            session,
            deadline,
            view: None,
            screen: Screen::default(),
            title: String::new(),
            captured: false,
            down: HashSet::new(),
            buttons: 0,
            rest: (0.0, 0.0),
            failure: None,
        }
    }

    fn open(&mut self, event_loop: &ActiveEventLoop) -> anyhow::Result<()> {
        let attributes = Window::default_attributes().with_title("Trimaran").with_inner_size(FIRST_SIZE);
        let window = Rc::new(event_loop.create_window(attributes)?);
        let failed = |error: softbuffer::SoftBufferError| anyhow!("cannot draw on the display: {error}");
        let context = softbuffer::Context::new(window.clone()).map_err(failed)?;
        let surface = softbuffer::Surface::new(&context, window.clone()).map_err(failed)?;
        self.view = Some((window, surface));
        Ok(())
    }

    fn fail(&mut self, event_loop: &ActiveEventLoop, error: anyhow::Error) {
        self.failure.get_or_insert(error);
        event_loop.exit();
    }

    /// Looks at the guest; asks for a redraw where its picture changed.
    fn look(&mut self) {
        let Some((window, _)) = &self.view else { return };
        let size = |screen: &Screen| (screen.frame().width, screen.frame().height);
        let before = size(&self.screen);
        if self.session.machine.look(&mut self.screen) {
            window.request_redraw();
        }
        let (width, height) = size(&self.screen);
        if (width, height) != before && width > 0 {
            let _ = window.request_inner_size(PhysicalSize::new(width as u32, height as u32));
        }
        let state = match (self.session.machine.outcome(), self.session.machine.paused()) {
            (Some(_), _) => ", ended",
            (None, true) => ", paused",
            (None, false) => "",
        };
        let hint = if self.captured { "Ctrl+Alt+G releases the mouse" } else { "click to use the mouse" };
        let engine = self.session.machine.engine_name();
        let title = format!("Trimaran - {} ({engine}{state}) - {hint}", self.session.guest);
        if title != self.title {
            window.set_title(&title);
            self.title = title;
        }
    }

    fn draw(&mut self) -> anyhow::Result<()> {
        let Some((window, surface)) = &mut self.view else { return Ok(()) };
        let size = window.inner_size();
        let (Some(width), Some(height)) = (NonZeroU32::new(size.width), NonZeroU32::new(size.height)) else {
            return Ok(());
        };
        let failed = |error: softbuffer::SoftBufferError| anyhow!("cannot draw on the display: {error}");
        surface.resize(width, height).map_err(failed)?;
        let mut pixels = surface.buffer_mut().map_err(failed)?;
        picture::draw(self.screen.frame(), &mut pixels, size.width as usize, size.height as usize);
        pixels.present().map_err(failed)
    }

    /// Gives the mouse to the guest, or takes it back.
    fn capture(&mut self, on: bool) {
        let Some((window, _)) = &self.view else { return };
        let grabbed = if on {
            let confined = window.set_cursor_grab(CursorGrabMode::Confined);
            confined.or_else(|_| window.set_cursor_grab(CursorGrabMode::Locked))
        } else {
            window.set_cursor_grab(CursorGrabMode::None)
        };
        if let Err(error) = grabbed {
            tracing::warn!("the mouse cannot be grabbed: {error}");
        }
        window.set_cursor_visible(!on);
        self.captured = on;
        if !on && self.buttons != 0 {
            self.buttons = 0;
            self.session.machine.mouse_buttons(0);
        }
    }

    /// Lets go of all keys, so that none stays down in the guest.
    fn release_keys(&mut self) {
        self.down.drain().for_each(|key| self.session.machine.key(key, false));
    }

    fn key(&mut self, event: &KeyEvent) {
        let PhysicalKey::Code(code) = event.physical_key else { return };
        let Some(key) = keys::from_window(code) else { return };
        // The guest's keyboard repeats by itself.
        if event.repeat {
            return;
        }
        let down = event.state == ElementState::Pressed;
        let held = |keys: [Key; 2]| keys.iter().any(|key| self.down.contains(key));
        let ctrl_alt = held([Key::ControlLeft, Key::ControlRight]) && held([Key::AltLeft, Key::AltRight]);
        if down && key == Key::G && ctrl_alt {
            self.release_keys();
            self.capture(!self.captured);
            return;
        }
        if down && key == Key::E && ctrl_alt {
            self.release_keys();
            eprint!("{}", self.session.next_engine());
            return;
        }
        if down {
            self.down.insert(key);
        } else if !self.down.remove(&key) {
            return;
        }
        self.session.machine.key(key, down);
    }

    fn button(&mut self, which: MouseButton, state: ElementState) {
        if !self.captured {
            if which == MouseButton::Left && state == ElementState::Pressed {
                self.capture(true);
            }
            return;
        }
        let bit = match which {
            MouseButton::Left => button::LEFT,
            MouseButton::Right => button::RIGHT,
            MouseButton::Middle => button::MIDDLE,
            MouseButton::Back => button::FOURTH,
            MouseButton::Forward => button::FIFTH,
            MouseButton::Other(_) => return,
        };
        match state {
            ElementState::Pressed => self.buttons |= bit,
            ElementState::Released => self.buttons &= !bit,
        }
        self.session.machine.mouse_buttons(self.buttons);
    }

    fn motion(&mut self, dx: f64, dy: f64) {
        self.rest = (self.rest.0 + dx, self.rest.1 + dy);
        let whole = (self.rest.0.trunc(), self.rest.1.trunc());
        self.rest = (self.rest.0 - whole.0, self.rest.1 - whole.1);
        if whole != (0.0, 0.0) {
            self.session.machine.mouse_move(whole.0 as i32, whole.1 as i32, 0);
        }
    }
}

impl ApplicationHandler for App {
    fn resumed(&mut self, event_loop: &ActiveEventLoop) {
        if self.view.is_none()
            && let Err(error) = self.open(event_loop)
        {
            self.fail(event_loop, error);
        }
    }

    fn window_event(&mut self, event_loop: &ActiveEventLoop, _: WindowId, event: WindowEvent) {
        match event {
            WindowEvent::CloseRequested => {
                self.session.quit();
                event_loop.exit();
            }
            WindowEvent::RedrawRequested => {
                if let Err(error) = self.draw() {
                    self.fail(event_loop, error);
                }
            }
            WindowEvent::Resized(_) => {
                if let Some((window, _)) = &self.view {
                    window.request_redraw();
                }
            }
            WindowEvent::Focused(false) => {
                self.release_keys();
                self.capture(false);
            }
            WindowEvent::KeyboardInput { event, is_synthetic: false, .. } => self.key(&event),
            WindowEvent::MouseInput { state, button, .. } => self.button(button, state),
            WindowEvent::MouseWheel { delta, .. } if self.captured => {
                let lines = match delta {
                    MouseScrollDelta::LineDelta(_, y) => f64::from(y),
                    MouseScrollDelta::PixelDelta(position) => position.y / 40.0,
                };
                self.session.machine.mouse_move(0, 0, -lines.round() as i32);
            }
            _ => {}
        }
    }

    fn device_event(&mut self, _: &ActiveEventLoop, _: DeviceId, event: DeviceEvent) {
        if let DeviceEvent::MouseMotion { delta: (dx, dy) } = event
            && self.captured
        {
            self.motion(dx, dy);
        }
    }

    fn about_to_wait(&mut self, event_loop: &ActiveEventLoop) {
        let now = Instant::now();
        let ended = self.session.machine.outcome().is_some() || self.session.quitting();
        if ended || self.deadline.is_some_and(|deadline| now >= deadline) {
            event_loop.exit();
            return;
        }
        self.look();
        let period = if self.session.machine.paused() { STANDING } else { PERIOD };
        let next = self.deadline.map_or(now + period, |deadline| deadline.min(now + period));
        event_loop.set_control_flow(ControlFlow::WaitUntil(next));
    }
}
