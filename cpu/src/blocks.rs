//! Decoded blocks and how they are found again.
//!
//! A block is a run of instructions of one page (its last may reach into the next page). It is cached by the RAM
//! page it came from, the offset in it, and the [`BlockKey`]: so it outlives changes of the mapping, and is found
//! under every linear address. Two short cuts lead to it: a *link* from the block before, and the *jump
//! cache*, by linear address. Both are valid for one space of code only ([`crate::tlb::Tlb::space`]).
//!
//! A block is stale when its page's generation (see `ram.rs`) has moved on.

use crate::insn::Insn;
use crate::insn::prefix;
use crate::state::{CpuState, attr, cr0, cr4, seg};
use rustc_hash::FxHashMap;

/// The mode bits that change what bytes mean, or what handlers may leave out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BlockKey(u16);

impl BlockKey {
    /// 64-bit mode.
    const CODE64: u16 = 1;
    /// CS.D: 32-bit code.
    const CODE32: u16 = 2;
    /// SS.B, or 64-bit mode: the stack pointer is ESP or RSP.
    const STACK32: u16 = 4;
    /// DS, ES, SS are flat: base 0, limit 4 GiB, of a type that allows what data accesses do.
    const FLAT_DS: u16 = 8;
    const FLAT_ES: u16 = 16;
    const FLAT_SS: u16 = 32;
    /// CPL 3: what a page lets a program execute depends on it.
    const USER: u16 = 64;
    /// CS is flat: an offset in it is a linear address.
    const FLAT_CS: u16 = 128;
    /// SSE instructions may run: CR0.EM = CR0.TS = 0, CR4.OSFXSR = 1.
    const SSE: u16 = 256;
    /// MXCSR's controls are those of reset: all exceptions masked, nearest, neither DAZ nor FTZ.
    const DEFAULT_MXCSR: u16 = 512;
    /// Neither real nor virtual-8086 mode: there are VEX prefixes.
    const PROTECTED: u16 = 1024;
    /// Vector instructions with a VEX prefix may run: so, and CR0.TS = 0, CR4.OSXSAVE = 1, XCR0 has SSE and AVX.
    const AVX: u16 = 2048;

    /// The key of the current mode.
    pub fn of(s: &CpuState) -> Self {
        let cs = &s.seg[seg::CS];
        let mut key = if s.cpl == 3 { Self::USER } else { 0 };
        if s.cr0 & (cr0::EM | cr0::TS) == 0 && s.cr4 & cr4::OSFXSR != 0 {
            key |= Self::SSE;
        }
        if s.mxcsr & !0x3F == 0x1F80 {
            key |= Self::DEFAULT_MXCSR;
        }
        if !s.real_or_v86() {
            key |= Self::PROTECTED;
            if s.cr0 & cr0::TS == 0 && s.avx_enabled() {
                key |= Self::AVX;
            }
        }
        if s.long_mode() && cs.has(attr::L) {
            return BlockKey(key | Self::CODE64 | Self::STACK32 | Self::FLAT_CS);
        }
        let mut set = |on: bool, bit: u16| {
            if on {
                key |= bit;
            }
        };
        set(cs.big(), Self::CODE32);
        set(cs.base == 0 && cs.limit == !0, Self::FLAT_CS);
        set(s.seg[seg::SS].big(), Self::STACK32);
        let real = s.real_or_v86();
        let flat = |n: usize| {
            let d = &s.seg[n];
            !real
                && d.usable()
                && d.base == 0
                && d.limit == !0
                && d.attributes & (attr::CODE | attr::EC) == 0
                && d.has(attr::RW)
        };
        set(flat(seg::DS), Self::FLAT_DS);
        set(flat(seg::ES), Self::FLAT_ES);
        set(flat(seg::SS), Self::FLAT_SS);
        BlockKey(key)
    }
    /// As a number of ten bits.
    pub fn bits(self) -> u16 {
        self.0
    }
    /// CPL 3.
    pub fn user(self) -> bool {
        self.0 & Self::USER != 0
    }
    pub fn code64(self) -> bool {
        self.0 & Self::CODE64 != 0
    }
    pub fn flat_code(self) -> bool {
        self.0 & Self::FLAT_CS != 0
    }
    /// SSE instructions need no check.
    pub fn sse(self) -> bool {
        self.0 & Self::SSE != 0
    }
    /// VEX prefixes exist.
    pub fn protected(self) -> bool {
        self.0 & Self::PROTECTED != 0
    }
    /// Vector instructions with a VEX prefix need no check.
    pub fn avx(self) -> bool {
        self.0 & Self::AVX != 0
    }
    /// MXCSR's controls are those of reset.
    pub fn default_mxcsr(self) -> bool {
        self.0 & Self::DEFAULT_MXCSR != 0
    }
    pub fn stack32(self) -> bool {
        self.0 & Self::STACK32 != 0
    }
    pub fn flat_stack(self) -> bool {
        self.0 & Self::FLAT_SS != 0
    }
    /// Default operand and address size in bytes: 2, 4 or 8.
    pub fn code_size(self) -> u8 {
        match self.0 & (Self::CODE64 | Self::CODE32) {
            0 => 2,
            Self::CODE32 => 4,
            _ => 8,
        }
    }
    /// The segment to use for a memory operand, and the prefix bits with CHECKED where checks are needed.
    pub fn segment_for(self, segment: u8, bits: u16) -> (u8, u16) {
        let n = usize::from(segment);
        let flat = if n == seg::SS { seg::FLAT_STACK } else { seg::FLAT } as u8;
        if self.code64() {
            return if n >= seg::FS { (segment, bits) } else { (flat, bits) };
        }
        let known = match n {
            seg::DS => Self::FLAT_DS,
            seg::ES => Self::FLAT_ES,
            seg::SS => Self::FLAT_SS,
            _ => 0,
        };
        if self.0 & known != 0 { (flat, bits) } else { (segment, bits | prefix::CHECKED) }
    }
}

/// No block.
pub const NONE: u32 = !0;

/// Where a link or jump-cache entry leads, and when that was true.
#[derive(Clone, Copy)]
pub(crate) struct Link {
    pub address: u64,
    pub space: u32,
    pub block: u32,
}

impl Link {
    pub const EMPTY: Link = Link { address: 0, space: 0, block: NONE };
}

/// Decoded instructions, to be run from the first to the last.
pub struct Block {
    pub insns: Box<[Insn]>,
    pub key: BlockKey,
    /// RAM page and its generation when the bytes were read.
    pub page: u32,
    pub generation: u32,
    /// Second page of a block that crosses into it, or [`NONE`].
    pub page2: u32,
    pub generation2: u32,
    /// What was decoded, of the first page.
    pub bytes: Box<[u8]>,
    /// The last two ways out.
    pub(crate) links: [Link; 2],
    /// How often it ran, as far as a translator counts.
    pub heat: u32,
    /// A translator's name for what it made of it, or [`NONE`].
    pub translation: u32,
}

impl Block {
    /// Where it went last: a linear address.
    pub fn last_target(&self) -> Option<u64> {
        (self.links[0].block != NONE).then_some(self.links[0].address)
    }
}

const JUMP_CACHE: usize = 4096;

/// All blocks of a vCPU.
pub(crate) struct BlockCache {
    pub blocks: Vec<Block>,
    by_place: FxHashMap<(u64, BlockKey), u32>,
    /// How often the cache was emptied: indices are good for one such time.
    pub clears: u32,
    jump: Box<[(Link, BlockKey)]>,
}

impl Default for BlockCache {
    fn default() -> Self {
        BlockCache {
            blocks: Vec::new(),
            by_place: FxHashMap::default(),
            clears: 0,
            jump: vec![(Link::EMPTY, BlockKey::default()); JUMP_CACHE].into(),
        }
    }
}

impl BlockCache {
    /// At most so many blocks; then the cache starts again.
    pub const LIMIT: usize = 1 << 18;

    #[inline(always)]
    fn jump_slot(address: u64) -> usize {
        (address ^ address >> 12) as usize & (JUMP_CACHE - 1)
    }
    #[inline(always)]
    pub fn jump(&self, address: u64, space: u32, key: BlockKey) -> u32 {
        let (link, k) = &self.jump[Self::jump_slot(address)];
        if link.address == address && link.space == space && *k == key { link.block } else { NONE }
    }
    pub fn set_jump(&mut self, link: Link, key: BlockKey) {
        self.jump[Self::jump_slot(link.address)] = (link, key);
    }
    /// The block at byte `place` of RAM.
    pub fn at(&self, place: u64, key: BlockKey) -> Option<u32> {
        self.by_place.get(&(place, key)).copied()
    }
    /// Adds a block, in place of a stale one if there is one.
    pub fn insert(&mut self, place: u64, block: Block) -> u32 {
        let key = (place, block.key);
        if let Some(&old) = self.by_place.get(&key) {
            self.blocks[old as usize] = block;
            return old;
        }
        let index = self.blocks.len() as u32;
        self.by_place.insert(key, index);
        self.blocks.push(block);
        index
    }
    pub fn clear(&mut self) {
        *self = BlockCache { clears: self.clears.wrapping_add(1), ..BlockCache::default() };
    }
}
