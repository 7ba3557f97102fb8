//! The translator against the interpreter; see `trimaran_testsuites::differential`.

mod random;
