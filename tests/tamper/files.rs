//! The raw files: bytes that are changed, zeroed, random, exchanged or cut off in the database and
//! in its log. Either everything reads back as it was written, or there is an error.

use std::fs;
use std::path::PathBuf;

use secretfs::vault::{Failure, OpenOptions, Vault, check};

use crate::sample::Sample;
use crate::support::contents::{Contents, Reading};

const PAGE: usize = 4096;

/// A copy of a vault as its files, written over and over.
struct Files {
    sample: Sample,
    vault: PathBuf,
    database: Vec<u8>,
    log: Vec<u8>,
    contents: Contents,
}

impl Files {
    fn new() -> Self {
        let sample = Sample::new();
        let (database, log) = sample.files();
        let vault = sample.beside("raw");
        fs::create_dir(&vault).expect("made");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&vault, mode).expect("set");
        let mut files = Self {
            sample,
            vault,
            database,
            log,
            contents: Contents::new(),
        };
        files.put(&files.database, &files.log);
        let opened = Vault::open(&files.vault, &files.options()).expect("opened");
        files.contents = Reading::of(&opened).contents;
        assert!(files.database.len() >= 20 * PAGE && files.log.len() >= 8 * PAGE);
        files
    }

    fn options(&self) -> OpenOptions {
        self.sample.options(true)
    }

    fn put(&self, database: &[u8], log: &[u8]) {
        let _ = fs::remove_file(self.vault.join("vault.db-shm"));
        fs::write(self.vault.join("vault.db"), database).expect("written");
        fs::write(self.vault.join("vault.db-wal"), log).expect("written");
    }

    /// True if somebody found it.
    fn is_found(&self, what: &str, database: &[u8], log: &[u8]) -> bool {
        self.put(database, log);
        let clear = |error: &secretfs::vault::VaultError| {
            let told = error.to_string();
            assert!(!told.contains(char::is_control), "{what}: {told:?}");
            // A first page that is no database's is no vault's either.
            let failure = error.failure();
            let right = matches!(failure, Failure::Integrity | Failure::NotAVault)
                || told.contains("use a newer one");
            assert!(right, "{what}: {failure:?}, {told}");
        };
        let found = match Vault::open(&self.vault, &self.options()) {
            Err(error) => {
                clear(&error);
                true
            }
            Ok(vault) => {
                let reading = Reading::of(&vault);
                reading.errors.iter().for_each(clear);
                for (path, told) in &reading.contents {
                    let right = self.contents.get(path) == Some(told);
                    assert!(right, "{what}: {} is wrong", path.escape_ascii());
                }
                let whole = reading.contents.len() == self.contents.len();
                assert!(
                    whole || !reading.errors.is_empty(),
                    "{what}: names are missing"
                );
                !reading.errors.is_empty()
            }
        };
        match check(&self.vault, &self.options()) {
            Ok(report) => found || report.problem_count > 0,
            Err(error) => {
                clear(&error);
                true
            }
        }
    }
}

/// The same numbers in every run.
fn noise(seed: usize, length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ (seed as u64 + 1).wrapping_mul(0xd134_2543_de82_ef95);
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Every way to spoil `file`, by name.
fn spoiled(file: &[u8], step: usize) -> impl Iterator<Item = (String, Vec<u8>)> {
    let over = move |at: usize, bytes: &[u8]| {
        let mut copy = file.to_vec();
        let end = (at + bytes.len()).min(copy.len());
        copy[at..end].copy_from_slice(&bytes[..end - at]);
        copy
    };
    let flips = (0..file.len()).step_by(step).map(move |at| {
        let bit = 1 << (at / step % 8);
        (format!("bit at {at}"), over(at, &[file[at] ^ bit]))
    });
    let pages = move || (0..file.len()).step_by(PAGE);
    let zeroed = pages().map(move |at| (format!("zeroed at {at}"), over(at, &[0; PAGE])));
    let random = pages().map(move |at| (format!("noise at {at}"), over(at, &noise(at, PAGE))));
    let sectors = (0..file.len()).step_by(512 * 3);
    let sectors = sectors.map(move |at| (format!("sector at {at}"), over(at, &[0; 512])));
    let few = (0..200).map(move |round| {
        let places = noise(round, 64);
        let mut copy = file.to_vec();
        for place in places.chunks(8) {
            let at = u32::from_le_bytes([place[0], place[1], place[2], 0]) as usize % copy.len();
            copy[at] = place[7];
        }
        (format!("bytes of round {round}"), copy)
    });
    let cut = pages().map(move |at| (format!("cut at {at}"), file[..at].to_vec()));
    let torn = pages().map(move |at| (format!("cut at {}", at + 99), file[..at + 99].to_vec()));
    let swapped = pages().skip(1).map(move |at| {
        let mut copy = file.to_vec();
        let other = (at + 3 * PAGE) % (file.len() - 2 * PAGE);
        copy.copy_within(other..other + PAGE, at.min(file.len() - PAGE));
        (format!("page {other} at {at}"), copy)
    });
    let more = [1, PAGE, 9 * PAGE]
        .map(|more| (format!("{more} more"), [file, &noise(more, more)].concat()));
    let parts = flips.chain(zeroed).chain(random).chain(sectors).chain(few);
    parts.chain(cut).chain(torn).chain(swapped).chain(more)
}

#[test]
fn a_spoiled_database_file_is_found_or_reads_back_as_it_was_written() {
    let files = Files::new();
    let (mut found, mut all) = (0, 0);
    for (what, database) in spoiled(&files.database, 307) {
        all += 1;
        found += usize::from(files.is_found(&what, &database, &files.log));
    }
    println!("database: {found} of {all} found");
    assert!(found > all / 3);
}

#[test]
fn a_spoiled_log_is_found_or_reads_back_as_it_was_written() {
    let files = Files::new();
    let (mut found, mut all) = (0, 0);
    for (what, log) in spoiled(&files.log, 307) {
        all += 1;
        found += usize::from(files.is_found(&what, &files.database, &log));
    }
    println!("log: {found} of {all} found");
    assert!(found > all / 3);
}
