//! Whole database files and logs, opened as a vault for reading, read through, and checked. What
//! can be read is what was written; anything else is an error.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::OnceLock;

use secretfs::kms::KmsSettings;
use secretfs::vault::{Failure, OpenOptions, Vault, VaultError, check, decode_anchor};

use contents::{Contents, Reading};

use super::sample::{ANCHOR, DATABASE, KEY, LOG};
use super::split;

#[path = "../../support/contents.rs"]
mod contents;

struct World {
    directory: tempfile::TempDir,
    closed: Contents,
    killed: Contents,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let directory = super::directory();
        let private = |name: &str| {
            let path = directory.path().join(name);
            let mut builder = fs::DirBuilder::new();
            builder.mode(0o700).create(&path).expect("made");
            path
        };
        private("vault");
        private("none");
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut file = options
            .open(private("kms").join("default.key"))
            .expect("made");
        std::io::Write::write_all(&mut file, KEY).expect("written");
        private("anchors");
        let mut world = World {
            directory,
            closed: Contents::new(),
            killed: Contents::new(),
        };
        world.put(DATABASE, None);
        world.closed = world.read(None).expect("the sample, as it was closed");
        world.put(DATABASE, Some(LOG));
        world.killed = world
            .read(Some(ANCHOR))
            .expect("the sample, as it was killed");
        assert_ne!(world.closed, world.killed);
        world
    })
}

pub(super) fn run(input: &[u8]) {
    let world = world();
    match split(input, 4) {
        Some((0, edits)) => world.try_out(&edited(DATABASE, edits), None),
        Some((1, edits)) => world.try_out(DATABASE, Some(&edited(LOG, edits))),
        Some((2, file)) => world.try_out(file, None),
        Some((3, log)) => world.try_out(DATABASE, Some(log)),
        _ => {}
    }
}

/// `base` with edits: three bytes of place, one of length, and what is laid over it.
fn edited(base: &[u8], mut edits: &[u8]) -> Vec<u8> {
    let mut bytes = base.to_vec();
    while let [a, b, c, length, rest @ ..] = edits {
        let at = u32::from_le_bytes([*a, *b, *c, 0]) as usize % bytes.len().max(1);
        // To cut it off is an edit, too.
        if *length == 0xff {
            bytes.truncate(at);
        }
        let length = (usize::from(*length) % 32).min(rest.len());
        let end = (at + length).min(bytes.len());
        bytes[at..end].copy_from_slice(&rest[..end - at]);
        edits = &rest[length..];
    }
    bytes
}

impl World {
    fn vault(&self) -> PathBuf {
        self.directory.path().join("vault")
    }

    fn put(&self, database: &[u8], log: Option<&[u8]>) {
        let vault = self.vault();
        for end in ["-wal", "-shm"] {
            let _ = fs::remove_file(vault.join(format!("vault.db{end}")));
        }
        fs::write(vault.join("vault.db"), database).expect("written");
        if let Some(log) = log {
            fs::write(vault.join("vault.db-wal"), log).expect("written");
        }
    }

    fn options(&self, anchor: Option<&[u8]>) -> OpenOptions {
        let anchors = self.directory.path().join("anchors");
        if let Some(text) = anchor {
            let name = decode_anchor(text).expect("an anchor").vault;
            fs::write(anchors.join(format!("{name}.json")), text).expect("written");
        }
        OpenOptions {
            read_only: true,
            kms: KmsSettings {
                local_dir: Some(self.directory.path().join("kms")),
                ..KmsSettings::default()
            },
            anchor_dir: anchor.map(|_| anchors),
            ..OpenOptions::default()
        }
    }

    /// A log is tried on a host that has seen what is in it; a database on one that has not.
    fn try_out(&self, database: &[u8], log: Option<&[u8]>) {
        let (anchor, expected) = match log {
            Some(_) => (Some(ANCHOR), &self.killed),
            None => (None, &self.closed),
        };
        self.put(database, log);
        match self.read(anchor) {
            Ok(found) => assert!(found == *expected, "other contents than were written"),
            Err(error) => must_be_clear(&error),
        }
        match check(&self.vault(), &self.options(anchor)) {
            Ok(report) => assert_eq!(report.problem_count > 0, !report.problems.is_empty()),
            Err(error) => must_be_clear(&error),
        }
    }

    fn read(&self, anchor: Option<&[u8]>) -> Result<Contents, VaultError> {
        let vault = Vault::open(&self.vault(), &self.options(anchor))?;
        let reading = Reading::of(&vault);
        match reading.errors.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(reading.contents),
        }
    }
}

/// Whatever is done to a database, it is damage, another vault, or no vault.
fn must_be_clear(error: &VaultError) {
    let told = error.to_string();
    assert!(
        !told.is_empty() && !told.contains(char::is_control),
        "{told:?}"
    );
    let right = matches!(
        error.failure(),
        Failure::Integrity | Failure::NotAVault | Failure::KeyDenied
    );
    assert!(
        right || told.contains("use a newer one"),
        "{:?}: {told}",
        error.failure()
    );
}
