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
    amount: u32,
}

impl Row {
    pub fn setup(&self) -> &'static str {
        self.setup
    }

    /// The timed commands; `quick` is a fifth of the work.
    pub fn run(&self, quick: bool) -> String {
        let amount = if quick { self.amount.div_ceil(5) } else { self.amount };
        self.run.replace("{n}", &amount.to_string())
    }
}

const fn row(name: &'static str, group: Group, setup: &'static str, amount: u32, run: &'static str) -> Row {
    Row { name, group, setup, run, amount }
}

/// The name of the row that no script runs: from the start of the column's program to the guest's /init.
pub const BOOT: &str = "boot to shell";

use Group::{Integer, System};

/// Amounts are for about 0.1 to 0.4 s on the host itself. Loops are in the programs' own languages where they have
/// one, and in the shell over a longer piece of work where not.
pub const ROWS: &[Row] = &[
    row(
        "fork and exec",
        System,
        "",
        400,
        "i=0; while [ $i -lt {n} ]; do /bin/true; i=$((i+1)); done; echo $i",
    ),
    row(
        "pipe ping-pong",
        System,
        "python3 -I -S /data/pingpong.py 1",
        20000,
        "python3 -I -S /data/pingpong.py {n}",
    ),
    row("system calls", System, "", 500_000, "dd if=/dev/zero bs=1 count={n} status=none | cksum"),
    row("gzip", Integer, "head -c {n}k /data/text >/tmp/in", 4000, "head -c {n}k /data/text | gzip -6 -n"),
];
