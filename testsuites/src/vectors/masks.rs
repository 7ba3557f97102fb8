//! What a suite's folder says beside its vectors: defined flags by file, and void tests.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// Defined bits of FLAGS by file name without the size prefixes, and revoked hashes.
#[derive(Default)]
pub struct Notes {
    flags: BTreeMap<String, u32>,
    revoked: HashSet<String>,
}

impl Notes {
    /// Reads `metadata.json` (8088, 286), `80386.csv` and `revocation_list.txt`, those that are there.
    pub fn read(folder: &Path) -> Result<Self, String> {
        let read = |name: &str| {
            let path = folder.join(name);
            match std::fs::read_to_string(&path) {
                Ok(text) => Ok(Some(text)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(format!("{}: {e}", path.display())),
            }
        };
        let mut notes = Notes::default();
        if let Some(text) = read("metadata.json")? {
            notes.metadata(&text)?;
        }
        if let Some(text) = read("80386.csv")? {
            notes.table(&text)?;
        }
        let list = read("revocation_list.txt")?.unwrap_or_default();
        let hashes = list.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        notes.revoked = hashes.map(str::to_lowercase).collect();
        Ok(notes)
    }

    pub fn revoked(&self, hash: &str) -> bool {
        self.revoked.contains(hash)
    }

    /// Of a file by its name: `00`, `F7.6`, `0FA5`, or with size prefixes `676601`.
    pub fn flags(&self, file: &str) -> u32 {
        let mut name = file;
        loop {
            if let Some(&mask) = self.flags.get(name) {
                return mask;
            }
            // 66 and 67 are opcodes of their own only where nothing follows.
            match name.strip_prefix("66").or_else(|| name.strip_prefix("67")) {
                Some(rest) if !rest.is_empty() && !rest.starts_with('.') => name = rest,
                _ => return 0xFFFF,
            }
        }
    }

    fn metadata(&mut self, text: &str) -> Result<(), String> {
        let json: serde_json::Value =
            serde_json::from_str(text).map_err(|e| format!("metadata.json: {e}"))?;
        let mut note = |name: String, v: &serde_json::Value| {
            if let Some(mask) = v["flags-mask"].as_u64() {
                self.flags.insert(name, mask as u32);
            }
        };
        for (opcode, v) in json["opcodes"].as_object().ok_or("metadata.json: no opcodes")? {
            note(opcode.clone(), v);
            for (reg, v) in v["reg"].as_object().into_iter().flatten() {
                note(format!("{opcode}.{reg}"), v);
            }
        }
        Ok(())
    }

    /// Columns `op`, `ex` (the opcode's extension, perhaps none) and `f_umask`.
    fn table(&mut self, text: &str) -> Result<(), String> {
        let mut lines = text.lines().map(|line| line.split(',').map(str::trim).collect::<Vec<_>>());
        let header = lines.next().ok_or("80386.csv is empty")?;
        let column = |name: &str| {
            let found = header.iter().position(|h| h.trim_start_matches('\u{feff}') == name);
            found.ok_or_else(|| format!("80386.csv: no column {name}"))
        };
        let (op, extension, mask) = (column("op")?, column("ex")?, column("f_umask")?);
        for line in lines {
            let field = |n: usize| line.get(n).copied().unwrap_or_default();
            let Ok(mask) = u32::from_str_radix(field(mask).trim_start_matches("0x"), 16) else { continue };
            // A mask of undefined bits never has the reserved ones; one of defined bits does.
            let defined = if mask & 0x8000 != 0 { mask } else { !mask & 0xFFFF };
            let name = match field(extension) {
                "" => field(op).to_uppercase(),
                extension => format!("{}.{extension}", field(op).to_uppercase()),
            };
            self.flags.insert(name, defined);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_by_file() {
        let mut notes = Notes::default();
        notes
            .metadata(
                r#"{"opcodes": {"08": {"flags-mask": 65519}, "F7": {"reg": {"6": {"flags-mask": 1}}}}}"#,
            )
            .expect("metadata");
        assert_eq!((notes.flags("08"), notes.flags("F7.6"), notes.flags("00")), (0xFFEF, 1, 0xFFFF));
        notes.table("op,ex,x,f_umask\n0FA5,,1,0x0810\n66,,,\nd3,4,,F7EF\n").expect("a table");
        assert_eq!(
            (notes.flags("67660FA5"), notes.flags("66D3.4"), notes.flags("66")),
            (0xF7EF, 0xF7EF, 0xFFFF)
        );
        assert!(notes.table("a,b\n").is_err());
        assert!(notes.metadata("[]").is_err());
    }
}
