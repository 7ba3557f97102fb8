//! Registers of one byte behind accesses of any size.

/// Reads `size` bytes from byte-wide registers, lowest offset first.
pub fn read_each(offset: u64, size: u8, mut register: impl FnMut(u64) -> u8) -> u64 {
    (0..u64::from(size.min(8)))
        .fold(0, |value, i| value | u64::from(register(offset.wrapping_add(i))) << (i * 8))
}

/// Writes `size` bytes to byte-wide registers, lowest offset first.
pub fn write_each(offset: u64, size: u8, value: u64, mut register: impl FnMut(u64, u8)) {
    for i in 0..u64::from(size.min(8)) {
        register(offset.wrapping_add(i), (value >> (i * 8)) as u8);
    }
}

/// Clock ticks of `hertz` that have passed at `now`.
pub fn ticks_at(now: u64, hertz: u64) -> u64 {
    u64::try_from(u128::from(now) * u128::from(hertz) / 1_000_000_000).unwrap_or(u64::MAX)
}

/// The first nanosecond at which [`ticks_at`] gives `tick`.
pub fn time_of_tick(tick: u64, hertz: u64) -> u64 {
    let nanos = (u128::from(tick) * 1_000_000_000).div_ceil(u128::from(hertz.max(1)));
    u64::try_from(nanos).unwrap_or(u64::MAX)
}
