//! What the parts of a request take, without a kernel: `scripts/bench --micro`. The vault is a real
//! one, on the disk of the target directory.

use std::cell::RefCell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use divan::{Bencher, black_box};
use rusqlite::wal::CheckpointMode;
use secretfs::crypto::SecretKey;
use secretfs::crypto::schedule::{ChunkKey, ContentKey, Context, Role, VaultId};
use secretfs::kms::{KeyUri, KmsSettings};
use secretfs::store::{Durability, NodeId};
use secretfs::vault::{
    InitOptions, Kind, NewNode, NothingOpen, OpenOptions, Publication, ROOT, RenameMode, Tx, Vault,
    VaultError, init,
};

#[path = "compare/src/floor/rows.rs"]
mod rows;

use rows::{Mover, Rows};

const VAULT: VaultId = VaultId([7; 16]);
const SIZES: [usize; 2] = [1 << 10, 1 << 16];
const NAMES: usize = 10_000;
/// Of which so many are replaced in turn.
const REPLACED: usize = 8;
const CONTEXT: Context<'static> = Context::Chunk {
    node: 2,
    version: 1,
    index: 0,
    last: true,
};

fn main() {
    divan::main();
    remove();
}

fn chunk_key() -> ChunkKey {
    ChunkKey::derive(&ContentKey(SecretKey::generate().expect("random bytes")))
}

#[divan::bench(args = SIZES)]
fn seal(bencher: Bencher<'_, '_>, size: usize) {
    let (key, plain) = (chunk_key(), vec![1; size]);
    bencher.bench(|| key.seal(VAULT, CONTEXT, black_box(&plain)).expect("a seal"));
}

#[divan::bench(args = SIZES)]
fn open(bencher: Bencher<'_, '_>, size: usize) {
    let key = chunk_key();
    let sealed = key.seal(VAULT, CONTEXT, &vec![1; size]).expect("a seal");
    bencher.bench(|| {
        key.open(VAULT, CONTEXT, black_box(&sealed))
            .expect("opened")
    });
}

#[divan::bench]
fn wrap(bencher: Bencher<'_, '_>) {
    let keyring = shared().vault.keyring();
    let key = SecretKey::generate().expect("random bytes");
    bencher.bench(|| keyring.wrap(2, ROLE, black_box(&key)).expect("wrapped"));
}

#[divan::bench]
fn unwrap(bencher: Bencher<'_, '_>) {
    let keyring = shared().vault.keyring();
    let key = SecretKey::generate().expect("random bytes");
    let (generation, wrapped) = keyring.wrap(2, ROLE, &key).expect("wrapped");
    bencher.bench(|| {
        keyring
            .unwrap(generation, 2, ROLE, black_box(&wrapped))
            .expect("unwrapped")
    });
}

const ROLE: Role = Role::Content { version: 1 };

/// The node of a name in a directory of 10,000.
#[divan::bench]
fn lookup(bencher: Bencher<'_, '_>) {
    let next = AtomicUsize::new(0);
    bencher
        .with_inputs(move || name(next.fetch_add(7919, Ordering::Relaxed) % NAMES))
        .bench_values(|name| {
            shared()
                .vault
                .lookup(shared().directory, &name)
                .expect("found")
        });
}

/// A content of 1 KiB: read, unwrapped and opened.
#[divan::bench]
fn content(bencher: Bencher<'_, '_>) {
    let file = shared().file;
    bencher.bench(|| {
        shared()
            .vault
            .content(black_box(file), 1 << 17)
            .expect("a content")
    });
}

/// A version of 1 KiB in a transaction of its own, which the disk need not have.
#[divan::bench(max_time = 2)]
fn publish(bencher: Bencher<'_, '_>) {
    bencher.bench(|| shared().publish(Durability::Soon));
}

/// The same, with the sync that makes it durable.
#[divan::bench(max_time = 2)]
fn publish_durably(bencher: Bencher<'_, '_>) {
    bencher.bench(|| shared().publish(Durability::Now));
}

/// Create, publish durably and rename over, as a program that replaces a secret asks for it.
#[divan::bench(max_time = 3)]
fn replace(bencher: Bencher<'_, '_>) {
    let next = AtomicUsize::new(0);
    bencher.bench(|| {
        let over = name(next.fetch_add(1, Ordering::Relaxed) % REPLACED);
        shared().replace(&over).expect("replaced");
    });
}

/// What a replacement takes in SQLite alone: the same three transactions and the sync. The WAL is begun
/// anew outside of the timing.
#[divan::bench(max_time = 3)]
fn replace_in_sqlite_alone(bencher: Bencher<'_, '_>) {
    // It has registered the way to the files that is used here, too.
    shared();
    let alone = RefCell::new(Alone::make(&place().join("alone.db")).expect("a database"));
    bencher
        .with_inputs(|| {
            alone
                .borrow()
                .begin_wal_anew_at_times()
                .expect("checkpointed")
        })
        .bench_local_values(|()| alone.borrow_mut().replace().expect("replaced"));
}

/// Of them, and of what waits for the disk.
struct Alone {
    rows: Rows,
    wal: File,
    mover: Mover,
    done: u64,
    /// The node that each name has.
    nodes: [Option<u64>; REPLACED],
}

impl Alone {
    fn make(path: &Path) -> rusqlite::Result<Self> {
        let rows = Rows::make(path, c"secretfs")?;
        let mut alone = Self {
            rows,
            wal: File::open(format!("{}-wal", path.display())).expect("a WAL"),
            mover: Mover::open(path)?,
            done: 0,
            nodes: [None; REPLACED],
        };
        for _ in 0..100 {
            alone.replace()?;
        }
        Ok(alone)
    }

    /// As often as a mount does.
    fn begin_wal_anew_at_times(&self) -> rusqlite::Result<()> {
        if !self.done.is_multiple_of(64) {
            return Ok(());
        }
        self.mover.checkpoint(CheckpointMode::RESTART)
    }

    fn replace(&mut self) -> rusqlite::Result<()> {
        const DIRECTORY: u64 = 1;
        self.done += 1;
        let (new, place) = (DIRECTORY + self.done, self.done as usize % REPLACED);
        let name = place.to_string();
        let (temporary, name) = (
            (DIRECTORY, "temporary".as_ref()),
            (DIRECTORY, name.as_ref()),
        );
        self.rows.create(new, temporary)?;
        self.rows.publish(new)?;
        self.wal.sync_data().expect("synced");
        let replaced = self.nodes[place].replace(new);
        self.rows.rename(new, replaced, temporary, name)
    }
}

struct Shared {
    vault: Vault,
    /// Has 10,000 names.
    directory: NodeId,
    /// Has 1 KiB.
    file: NodeId,
}

fn place() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("micro")
}

fn remove() {
    match std::fs::remove_dir_all(place()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            panic!("cannot remove {}: {e}", place().display())
        }
        _ => {}
    }
}

fn name(number: usize) -> Vec<u8> {
    format!("secret-{number:05}").into_bytes()
}

fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        remove();
        Shared::make().expect("a vault")
    })
}

impl Shared {
    fn make() -> Result<Self, VaultError> {
        let (path, anchors) = (place().join("vault"), place().join("anchors"));
        std::fs::create_dir_all(place()).expect("a directory");
        let kms = KmsSettings {
            local_dir: Some(place().join("kms")),
            ..KmsSettings::default()
        };
        init(
            &path,
            &InitOptions {
                kms_keys: vec![KeyUri::default_local()],
                uid: 0,
                gid: 0,
                kms: kms.clone(),
                anchor_dir: Some(anchors.clone()),
            },
        )?;
        let options = OpenOptions {
            kms,
            anchor_dir: Some(anchors),
            ..OpenOptions::default()
        };
        let mut shared = Self {
            vault: Vault::open(&path, &options)?,
            directory: ROOT,
            file: ROOT,
        };
        let (mut directory, mut file) = (ROOT, ROOT);
        shared.transact(Durability::Now, &mut |tx| {
            directory = tx.create(ROOT, b"directory", &new(Kind::Directory))?;
            for number in 0..NAMES {
                file = tx.create(directory, &name(number), &new(Kind::File))?;
            }
            Ok(())
        })?;
        (shared.directory, shared.file) = (directory, file);
        shared.publish(Durability::Now);
        Ok(shared)
    }

    fn transact(
        &self,
        durability: Durability,
        job: &mut dyn FnMut(&mut Tx<'_>) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        let outcomes = self.vault.transact(durability, &mut [job])?;
        outcomes.into_iter().collect()
    }

    fn replace(&self, over: &[u8]) -> Result<(), VaultError> {
        let temporary = b"temporary";
        let mut file = ROOT;
        self.transact(Durability::Soon, &mut |tx| {
            file = tx.create(self.directory, temporary, &new(Kind::File))?;
            Ok(())
        })?;
        self.transact(Durability::Now, &mut |tx| {
            tx.publish(file, &[1; 1024], Publication::Replacement, None, &[])
                .map(drop)
        })?;
        self.transact(Durability::Soon, &mut |tx| {
            let (from, to) = ((self.directory, &temporary[..]), (self.directory, over));
            tx.rename(from, to, RenameMode::Replace, &NothingOpen)
        })
    }

    fn publish(&self, durability: Durability) {
        let mut job = |tx: &mut Tx<'_>| {
            tx.publish(self.file, &[1; 1024], Publication::Replacement, None, &[])
                .map(drop)
        };
        self.transact(durability, &mut job).expect("published");
    }
}

fn new(kind: Kind) -> NewNode {
    NewNode {
        kind,
        mode: 0o700,
        uid: 0,
        gid: 0,
        device: 0,
        target: Vec::new(),
    }
}
