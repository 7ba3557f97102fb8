//! Instructions as kernels over [`crate::ops::Ops`], one file a group as in SDM Vol. 1, "Instruction Set
//! Summary". The rules stand in `ops.rs`.

pub mod binary_arithmetic;
pub mod bit_byte;
pub mod bit_manipulation;
pub mod control_transfer;
pub mod data_transfer;
pub mod logical;
pub mod shift_rotate;

use crate::insn::Insn;
use crate::ops::Ops;

/// Names the kernels: a translator runs the one that an instruction was decoded to over its own [`Ops`].
macro_rules! kernels {
    ($($name:ident = $path:path,)*) => {
        /// Which kernel an instruction is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Kernel {
            /// None: a helper.
            Helper,
            $($name,)*
        }

        /// Runs a kernel; false: it is a helper, and nothing was done.
        #[inline(always)]
        pub fn perform<E: Ops>(kernel: Kernel, e: &mut E, i: &Insn) -> Result<bool, E::Exit> {
            match kernel {
                Kernel::Helper => return Ok(false),
                $(Kernel::$name => $path(e, i)?,)*
            }
            Ok(true)
        }

        /// The interpreter's handlers of a kernel.
        pub(crate) fn forms(kernel: Kernel) -> Option<&'static crate::decode::Forms> {
            use crate::decode::{forms, widths};
            match kernel {
                Kernel::Helper => None,
                $(Kernel::$name => Some(forms!($path)),)*
            }
        }
    };
}
kernels! {
    Mov = data_transfer::mov,
    Add = binary_arithmetic::add,
    Adc = binary_arithmetic::adc,
    Sub = binary_arithmetic::sub,
    Sbb = binary_arithmetic::sbb,
    Cmp = binary_arithmetic::cmp,
    Inc = binary_arithmetic::inc,
    Dec = binary_arithmetic::dec,
    Neg = binary_arithmetic::neg,
    Not = logical::not,
    And = logical::and,
    Or = logical::or,
    Xor = logical::xor,
    Test = logical::test,
    Xadd = binary_arithmetic::xadd,
    Cmpxchg = binary_arithmetic::cmpxchg,
    Xchg = data_transfer::xchg,
    ImulWide = binary_arithmetic::imul_wide,
    Imul = binary_arithmetic::imul,
    ImulImmediate = binary_arithmetic::imul_immediate,
    Mul = binary_arithmetic::mul,
    Bt = bit_byte::bt,
    Bts = bit_byte::bts,
    Btr = bit_byte::btr,
    Btc = bit_byte::btc,
    Bsf = bit_byte::bsf,
    Bsr = bit_byte::bsr,
    Popcnt = bit_byte::popcnt,
    Movzx = data_transfer::movzx,
    Movsx = data_transfer::movsx,
    Lea = data_transfer::lea,
    Bswap = data_transfer::bswap,
    Movbe = data_transfer::movbe,
    Push = data_transfer::push,
    Pop = data_transfer::pop,
    Convert = data_transfer::convert,
    ConvertWide = data_transfer::convert_wide,
    Nop = data_transfer::nop,
    Jmp = control_transfer::jmp,
    Call = control_transfer::call,
    Ret = control_transfer::ret,
    Leave = data_transfer::leave,
    JmpIndirect = control_transfer::jmp_indirect,
    CallIndirect = control_transfer::call_indirect,
    Loop = control_transfer::r#loop,
    Jrcxz = control_transfer::jrcxz,
    Jcc = control_transfer::jcc,
    Setcc = bit_byte::setcc,
    Cmovcc = data_transfer::cmovcc,
    Shl = shift_rotate::shl,
    Shr = shift_rotate::shr,
    Sar = shift_rotate::sar,
    Rol = shift_rotate::rol,
    Ror = shift_rotate::ror,
    Adcx = bit_manipulation::adcx,
    Adox = bit_manipulation::adox,
    Andn = bit_manipulation::andn,
    Blsi = bit_manipulation::blsi,
    Blsmsk = bit_manipulation::blsmsk,
    Blsr = bit_manipulation::blsr,
    Bzhi = bit_manipulation::bzhi,
    Lzcnt = bit_manipulation::lzcnt,
    Mulx = bit_manipulation::mulx,
    Rorx = bit_manipulation::rorx,
    Sarx = bit_manipulation::sarx,
    Shlx = bit_manipulation::shlx,
    Shrx = bit_manipulation::shrx,
    Tzcnt = bit_manipulation::tzcnt,
}
