//! What hangs on the two PS/2 connectors.

pub mod key;
pub mod keyboard;
pub mod mouse;
