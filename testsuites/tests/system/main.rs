//! System-level behaviour, one function a subject, named after the sections of the SDM that it checks.

mod code_fetch;
mod debug_events;
mod modes;
mod paging;
mod privilege;
mod segmentation;
mod system_calls;
mod tasks;
