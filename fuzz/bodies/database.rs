//! Whole database files and logs, opened as a vault for reading, read through, and checked. What
//! can be read is what was written; anything else is an error.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use secretfs::kms::KmsSettings;
use secretfs::vault::{
    Body, Content, Failure, OpenOptions, ROOT, Vault, VaultError, check, decode_anchor,
};

use super::sample::{ANCHOR, DATABASE, KEY, LOG};
use super::split;

/// What a vault holds: paths and contents, targets or nothing.
type Tree = BTreeMap<Vec<u8>, Vec<u8>>;

struct World {
    directory: tempfile::TempDir,
    closed: Tree,
    killed: Tree,
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
            closed: Tree::new(),
            killed: Tree::new(),
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

    fn read(&self, anchor: Option<&[u8]>) -> Result<Tree, VaultError> {
        let vault = Vault::open(&self.vault(), &self.options(anchor))?;
        let mut tree = Tree::new();
        walk(&vault, ROOT, Path::new(""), &mut tree)?;
        Ok(tree)
    }
}

fn walk(vault: &Vault, id: u64, path: &Path, tree: &mut Tree) -> Result<(), VaultError> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let mut after = None;
    loop {
        let listing = vault.list(id, after.as_ref(), 7)?;
        for entry in &listing.entries {
            let path = path.join(OsStr::from_bytes(&entry.name));
            let node = vault.lookup(id, &entry.name)?;
            let mut told = match &node.attributes.body {
                Body::File(_) => match vault.content(node.id, u64::MAX)?.1 {
                    Content::Whole { bytes, .. } => bytes.to_vec(),
                    Content::Unpublished => Vec::new(),
                    Content::Pieces(_) => unreachable!("all was asked for"),
                },
                Body::Directory(_) => {
                    walk(vault, node.id, &path, tree)?;
                    Vec::new()
                }
                Body::Symlink(target) => target.clone(),
                Body::Special(number) => number.to_le_bytes().to_vec(),
            };
            for (name, value) in &node.attributes.xattrs {
                told.extend(name);
                told.extend(value);
            }
            tree.insert(path.as_os_str().as_bytes().to_vec(), told);
        }
        after = listing.entries.last().map(|entry| entry.tag);
        if listing.complete {
            return Ok(());
        }
    }
}

/// Whatever is done to a database, it is damage, another vault, or no vault.
fn must_be_clear(error: &VaultError) {
    let told = error.to_string();
    assert!(!told.is_empty() && !told.contains('\n'), "{told:?}");
    assert!(
        matches!(
            error.failure(),
            Failure::Integrity | Failure::NotAVault | Failure::KeyDenied | Failure::Failed
        ),
        "{:?}: {told}",
        error.failure()
    );
}
