//! What programs were told of their files: what each may hold now, and which errors they met.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use super::tree::closed;

/// Files of one directory, and all that may be in each; `None` where there may be no file.
pub struct Ledger {
    at: PathBuf,
    possible: BTreeMap<String, Vec<Option<Vec<u8>>>>,
    /// The errors that programs were told of.
    pub refused: Vec<i32>,
    /// How often they were told that all was well.
    pub acknowledged: usize,
}

/// A content that tells which one it is.
pub fn content(number: usize, size: usize) -> Vec<u8> {
    let line = format!("content {number} of {size} bytes;");
    line.as_bytes().repeat(size / line.len() + 1)[..size].to_vec()
}

impl Ledger {
    /// Of files below `at`, of which there are none.
    pub fn new(at: PathBuf) -> Self {
        Self {
            at,
            possible: BTreeMap::new(),
            refused: Vec::new(),
            acknowledged: 0,
        }
    }

    fn told(&mut self, outcome: io::Result<()>) {
        match outcome {
            Ok(()) => self.acknowledged += 1,
            Err(error) => self.refused.push(error.raw_os_error().expect("a number")),
        }
    }

    /// Replaces a file, or makes it; whether that was acknowledged.
    pub fn write(&mut self, name: &str, content: &[u8]) -> bool {
        let path = self.at.join(name);
        let possible = self.possible.entry(name.to_owned());
        let possible = possible.or_insert_with(|| vec![None]);
        if possible.contains(&None) {
            // Made, and not filled.
            possible.push(Some(Vec::new()));
        }
        possible.push(Some(content.to_vec()));
        let mut accepted = 0;
        let written = File::create(path).and_then(|mut file| {
            while accepted < content.len() {
                let part = &content[accepted..content.len().min(accepted + 100_000)];
                // Who closes after a refused write keeps what was written, as everywhere.
                accepted += file.write(part)?;
            }
            closed(file)
        });
        if accepted < content.len() {
            possible.push(Some(content[..accepted].to_vec()));
        }
        let done = written.is_ok();
        if done {
            *possible = vec![Some(content.to_vec())];
        }
        self.told(written);
        done
    }

    /// Adds to the end of a file and syncs it; whether that was acknowledged.
    pub fn append(&mut self, name: &str, more: &[u8]) -> bool {
        let path = self.at.join(name);
        let possible = self.possible.get_mut(name).expect("a file");
        let longer: Vec<_> = possible
            .iter()
            .flatten()
            .map(|old| Some([old, more].concat()))
            .collect();
        possible.extend(longer.clone());
        let opened = File::options().append(true).open(path);
        let written = opened.and_then(|mut file| {
            file.write_all(more)?;
            file.sync_all()?;
            closed(file)
        });
        let done = written.is_ok();
        if done {
            *possible = longer;
        }
        self.told(written);
        done
    }

    /// Removes a file; whether that was acknowledged. Where it was not, the file is there.
    pub fn remove(&mut self, name: &str) -> bool {
        let removed = fs::remove_file(self.at.join(name));
        let done = removed.is_ok();
        if done {
            self.possible.insert(name.to_owned(), vec![None]);
        }
        self.told(removed);
        done
    }

    /// Renames a file; whether that was acknowledged. Where it was not, nothing has changed.
    pub fn rename(&mut self, from: &str, to: &str) -> bool {
        let renamed = fs::rename(self.at.join(from), self.at.join(to));
        let done = renamed.is_ok();
        if done {
            let moved = self.possible.insert(from.to_owned(), vec![None]);
            self.possible.insert(to.to_owned(), moved.expect("a file"));
        }
        self.told(renamed);
        done
    }

    /// Every file holds what it may hold, and no other is there.
    #[track_caller]
    pub fn holds(&self, stage: &str) {
        for (name, possible) in &self.possible {
            let found = match fs::read(self.at.join(name)) {
                Ok(bytes) => Some(bytes),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => panic!("{stage}: {name}: {error}"),
            };
            let sizes: Vec<_> = possible.iter().map(|p| p.as_ref().map(Vec::len)).collect();
            assert!(
                possible.contains(&found),
                "{stage}: {name} has {:?} bytes, and may have {sizes:?}",
                found.map(|found| found.len())
            );
        }
        let unknown = fs::read_dir(&self.at).expect("listed").find(|entry| {
            let name = entry.as_ref().expect("an entry").file_name();
            !name.to_str().is_some_and(|n| self.possible.contains_key(n))
        });
        assert!(unknown.is_none(), "{stage}: {unknown:?}");
    }

    /// The errors since this was asked last, each once.
    pub fn errors(&mut self) -> Vec<i32> {
        let mut errors = std::mem::take(&mut self.refused);
        errors.sort_unstable();
        errors.dedup();
        errors
    }
}
