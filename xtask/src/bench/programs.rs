//! The programs: what each row of the table runs.

/// What a row says most about; each group has a geometric mean of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    Boot,
    System,
    Integer,
    Crypto,
    Float,
}

impl Group {
    pub const ALL: [Group; 5] = [Group::Boot, Group::System, Group::Integer, Group::Crypto, Group::Float];

    pub fn name(self) -> &'static str {
        match self {
            Group::Boot => "boot",
            Group::System => "kernel and processes",
            Group::Integer => "integer programs",
            Group::Crypto => "AES, hashes, big numbers",
            Group::Float => "floating point, SSE, x87",
        }
    }
}

/// One row: shell commands, the same in every column.
pub struct Row {
    pub name: &'static str,
    pub group: Group,
    /// Untimed; its output is dropped.
    setup: &'static str,
    /// Timed; its output is compared between the columns. `{n}` is the amount of work.
    run: &'static str,
    /// 0: the command runs twice at the same time, and has no `{n}`.
    amount: u32,
}

impl Row {
    pub fn setup(&self) -> &'static str {
        self.setup
    }

    /// The timed commands; `quick` is a fifth of the work.
    pub fn run(&self, quick: bool) -> String {
        if self.amount == 0 {
            let command = self.run;
            return format!("({command}) >/tmp/1 & ({command}) >/tmp/2 & wait; cat /tmp/1 /tmp/2");
        }
        let amount = if quick { self.amount.div_ceil(5) } else { self.amount };
        self.run.replace("{n}", &amount.to_string())
    }
}

impl Row {
    /// The same command twice at the same time, its output one after the other.
    pub const fn parallel(name: &'static str, group: Group, run: &'static str) -> Row {
        Row { name, group, setup: "", run, amount: 0 }
    }
}

const fn row(name: &'static str, group: Group, setup: &'static str, amount: u32, run: &'static str) -> Row {
    Row { name, group, setup, run, amount }
}

/// The name of the row that no script runs: from the start of the column's program to the guest's /init.
pub const BOOT: &str = "boot to shell";

use Group::{Crypto, Float, Integer, System};

/// Amounts are for about 0.1 to 0.4 s on the host itself. Loops are in the programs' own languages where they have
/// one, and in the shell over a longer piece of work where not.
#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("fork and exec", System, "", 150,
        "i=0; while [ $i -lt {n} ]; do /bin/true; i=$((i+1)); done; echo $i"),
    row("shell subprocesses", System, "", 400,
        "i=0; while [ $i -lt {n} ]; do x=$(echo $i); i=$((x+1)); done; echo $i"),
    // The first start compiles Python's library.
    row("pipe ping-pong", System, "python3 -I -S /data/pingpong.py 1", 20000,
        "python3 -I -S /data/pingpong.py {n}"),
    row("small reads and writes", System, "", 200_000,
        "dd if=/dev/zero bs=1 count={n} status=none | cksum"),
    row("gzip", Integer, "", 4000, "head -c {n}k /data/text | gzip -6 -n"),
    row("gzip -d", Integer, "gzip -1 -n </data/text >/tmp/in", 5,
        "i=0; while [ $i -lt {n} ]; do gzip -dc </tmp/in; i=$((i+1)); done"),
    row("xz", Integer, "", 300, "head -c {n}k /data/text | xz -6 -T1"),
    row("xz -d", Integer, "head -c 2000k /data/text | xz -0 >/tmp/in", 5,
        "i=0; while [ $i -lt {n} ]; do xz -dc /tmp/in; i=$((i+1)); done"),
    row("zstd -9", Integer, "", 2500, "head -c {n}k /data/text | zstd -q -9 --single-thread -c"),
    row("zstd -d", Integer, "zstd -q -1 -c </data/text >/tmp/in", 10,
        "i=0; while [ $i -lt {n} ]; do zstd -dcq /tmp/in; i=$((i+1)); done"),
    row("7z PPMd", Integer, "", 1000,
        "head -c {n}k /data/text >text; 7zz a -t7z -m0=PPMd -mmt=1 -mtm=off -mtc=off -mta=off -bd x.7z text \
         >/dev/null; cat x.7z"),
    row("cc1 -O2", Integer, "", 2,
        "i=0; while [ $i -lt {n} ]; do cc1 -quiet -fpreprocessed -O2 /data/program.c -o -; i=$((i+1)); done"),
    row("Lua, integers and strings", Integer, "", 10, "lua5.4 /data/integers.lua {n}"),
    row("Python", Integer, "python3 -I -S /data/objects.py 1", 10, "python3 -I -S /data/objects.py {n}"),
    row("SQLite", Integer, "", 60000, "sqlite3 :memory: 'create table size(n); insert into size values({n})' \
         '.read /data/queries.sql'"),
    row("mawk", Integer, "", 4000,
        "head -c {n}k /data/text | mawk '{ for (i = 1; i <= NF; i++) n[$i]++ } \
         END { for (w in n) s += n[w] * length(w); print s }'"),
    row("gawk", Integer, "", 4000,
        "head -c {n}k /data/text | gawk '{ gsub(/[aeiou]+/, \"<&>\"); if (/t.*<e>/) c += length($0) } END { print c }'"),
    row("sort", Integer, "", 4000, "head -c {n}k /data/text >in; sort in; sort -k 2 in"),
    row("bc", Integer, "", 600, "echo 'scale={n}; 4*a(1); l(2); e(1)' | bc -l"),
    row("stress-ng queens", Integer, "", 120, "stress-ng --cpu 1 --cpu-method queens --cpu-ops {n} 2>&1 | drop"),
    row("stress-ng crc16", Integer, "", 150, "stress-ng --cpu 1 --cpu-method crc16 --cpu-ops {n} 2>&1 | drop"),
    row("stress-ng memcpy", Integer, "", 50, "stress-ng --memcpy 1 --memcpy-ops {n} 2>&1 | drop"),
    row("SHA-512, busybox", Crypto, "", 40, "head -c {n}M /dev/zero | busybox sha512sum"),
    row("SHA-256, OpenSSL", Crypto, "", 50, "head -c {n}M /dev/zero | openssl dgst -sha256"),
    row("AES-256-CBC, OpenSSL", Crypto, "", 50,
        "key=00112233445566778899aabbccddeeff; head -c {n}M /dev/zero | \
         openssl enc -aes-256-cbc -K $key$key -iv $key | tail -c 16 | cksum"),
    row("ChaCha20, OpenSSL", Crypto, "", 60,
        "key=00112233445566778899aabbccddeeff; head -c {n}M /dev/zero | \
         openssl enc -chacha20 -K $key$key -iv $key | tail -c 16 | cksum"),
    // A Mersenne prime of 1279 bits.
    row("big numbers, OpenSSL", Crypto, "", 5,
        "i=0; while [ $i -lt {n} ]; do openssl prime -hex 7F$(head -c 318 /dev/zero | busybox tr '\\0' F); \
         i=$((i+1)); done"),
    row("Lua, floating point", Float, "", 10, "lua5.4 /data/floats.lua {n}"),
    row("stress-ng matrix", Float, "", 100,
        "stress-ng --matrix 1 --matrix-method prod --matrix-ops {n} 2>&1 | drop"),
    row("stress-ng fft", Float, "", 250, "stress-ng --cpu 1 --cpu-method fft --cpu-ops {n} 2>&1 | drop"),
    row("stress-ng double", Float, "", 100, "stress-ng --cpu 1 --cpu-method double --cpu-ops {n} 2>&1 | drop"),
    row("stress-ng long double (x87)", Float, "", 100,
        "stress-ng --cpu 1 --cpu-method longdouble --cpu-ops {n} 2>&1 | drop"),
    row("stress-ng vecmath (SSE integers)", Float, "", 300,
        "stress-ng --vecmath 1 --vecmath-ops {n} 2>&1 | drop"),
    row("stress-ng vecfp (SSE)", Float, "", 100, "stress-ng --vecfp 1 --vecfp-ops {n} 2>&1 | drop"),
];
