//! The figures of `--stats`.

use trimaran_machine::Stats;

/// Share of `total` that did not miss, in per cent.
fn hits(misses: u64, total: u64) -> f64 {
    if total == 0 { 100.0 } else { 100.0 * (1.0 - misses as f64 / total as f64).max(0.0) }
}

/// A table for people.
pub fn describe(stats: &Stats) -> String {
    let sum = |field: fn(&trimaran_cpu::Counters) -> u64| stats.counters.iter().map(field).sum::<u64>();
    let mips = stats.instructions as f64 / stats.seconds.max(1e-9) / 1e6;
    let (entered, decoded) = (sum(|c| c.blocks_entered), sum(|c| c.blocks_decoded));
    let (jumps, tlb) = (sum(|c| c.jump_cache_misses), sum(|c| c.tlb_misses));
    let mut text = format!(
        "engine              {}, {} vCPU\n\
         instructions        {}\n\
         seconds             {:.2} (guest clock {:.2})\n\
         MIPS                {mips:.1}\n\
         block cache         {:.3} % hits, {decoded} blocks decoded, {:.1} instructions an entry\n\
         jump cache          {:.3} % hits\n\
         TLB                 {:.4} % hits by instruction, {tlb} misses, {} flushes\n",
        stats.engine,
        stats.counters.len(),
        stats.instructions,
        stats.seconds,
        stats.nanoseconds as f64 / 1e9,
        hits(decoded, entered),
        stats.instructions as f64 / entered.max(1) as f64,
        hits(jumps, entered),
        hits(tlb, stats.instructions),
        sum(|c| c.tlb_flushes),
    );
    for (name, count) in [
        ("port accesses", sum(|c| c.port_io)),
        ("device memory", sum(|c| c.mmio)),
        ("interrupts", sum(|c| c.interrupts)),
        ("exceptions", sum(|c| c.exceptions)),
        ("code changed", sum(|c| c.code_invalidations)),
        ("not implemented", sum(|c| c.unimplemented)),
    ] {
        text += &format!("{name:<19} {count}\n");
    }
    text + &stats.translator.concat()
}
