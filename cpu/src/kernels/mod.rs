//! Instructions as kernels over [`crate::ops::Ops`], one file a group as in SDM Vol. 1, "Instruction Set
//! Summary". The rules stand in `ops.rs`.

pub mod binary_arithmetic;
pub mod bit_byte;
pub mod control_transfer;
pub mod data_transfer;
pub mod logical;
pub mod shift_rotate;
