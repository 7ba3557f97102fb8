//! What the programs work on: made here, the same every time.

/// Files of the guest's /data.
pub fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("text", text(4 << 20)),
        ("program.c", c_program(6)),
        ("pingpong.py", include_bytes!("data/pingpong.py").to_vec()),
        ("objects.py", include_bytes!("data/objects.py").to_vec()),
        ("integers.lua", include_bytes!("data/integers.lua").to_vec()),
        ("floats.lua", include_bytes!("data/floats.lua").to_vec()),
        ("queries.sql", include_bytes!("data/queries.sql").to_vec()),
    ]
}

/// A generator of the usual linear kind; its high half is good enough for words.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (((self.0 >> 32) * u64::from(limit)) >> 32) as u32
    }
}

/// Lines of words and numbers; frequent words are frequent, as in a language.
fn text(size: usize) -> Vec<u8> {
    let mut random = Random(1);
    let words: Vec<String> = (0..4000)
        .map(|_| {
            let letters = 2 + random.below(9);
            (0..letters).map(|_| char::from(b"etaoinshrdlucmfwypvbgkjqxz"[random.skewed(26)])).collect()
        })
        .collect();
    let mut text = Vec::with_capacity(size + 100);
    while text.len() < size {
        for _ in 0..4 + random.below(10) {
            text.extend(words[random.skewed(words.len() as u32)].bytes());
            text.push(b' ');
        }
        text.extend(format!("{}\n", random.below(1_000_000)).bytes());
    }
    text.truncate(size);
    text
}

impl Random {
    /// Small numbers much more often than large ones.
    fn skewed(&mut self, limit: u32) -> usize {
        let first = self.below(limit);
        self.below(first + 1) as usize
    }
}

/// A C file without includes: loops, switches, structures, arithmetic of all widths.
fn c_program(functions: u32) -> Vec<u8> {
    let mut random = Random(2);
    let mut c = String::from("struct node { struct node *next; int key; double weight; char name[16]; };\n");
    for f in 0..functions {
        c += &format!(
            "int f{f}(struct node *n, unsigned *a, long count) {{\n  long s = {};\n",
            random.below(100)
        );
        c += "  for (long i = 0; i < count; i++) {\n    switch (a[i] & 7) {\n";
        for case in 0..8 {
            let (k, shift) = (random.below(1000), 1 + random.below(30));
            c += &format!(
                "    case {case}: s += (a[i] >> {shift}) * {k} ^ s; a[(i + {k}) % count] ^= s; break;\n"
            );
        }
        c += "    }\n  }\n  while (n) {\n";
        c += &format!("    if (n->key > {}) n->weight = n->weight * 1.5 + s;\n", random.below(500));
        c += "    else n->name[s & 15] = (char)(s >> 3);\n    s += n->key; n = n->next;\n  }\n";
        if f > 0 {
            c += &format!("  if (s & 1) s += f{}(n, a, count / 2);\n", random.below(f));
        }
        c += "  return (int)s;\n}\n";
    }
    c.into_bytes()
}
