//! How rotations grow with the vault: their memory does not, and their time is compared with that of
//! the bare work, in the same run.
//!
//! The suite does it with a few secrets and looks at memory alone; `scripts/rotation-scale` does it
//! with many and shows the figures.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::support::layer::{Layer, new_node};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use rusqlite::Connection;
use secretfs::crypto::SecretKey;
use secretfs::crypto::schedule::Role;
use secretfs::store::Durability;
use secretfs::vault::{AttributeChange, Job, Kind, Publication, ROOT, Request, Tx, Vault};

/// Of the suite.
const SECRETS: usize = 4_000;
const IN_A_DIRECTORY: usize = 100;
/// Changed in one transaction.
const BATCH: usize = 256;
/// What a vault may take more for being four times as large, in KiB.
const GROWTH: u64 = 6 << 10;

/// They look at the memory of the whole process, and at processors.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(name: &str, otherwise: usize) -> usize {
    let value = std::env::var(name).ok();
    value.map_or(otherwise, |value| value.parse().expect("a number"))
}

fn transact(vault: &Vault, durability: Durability, job: Job<'_>) {
    for outcome in vault.transact(durability, &mut [job]).expect("committed") {
        outcome.expect("done");
    }
}

/// Makes `count` secrets of `size` bytes, so many in a directory, a hundred in a transaction.
fn fill(vault: &Vault, (count, size): (usize, usize), in_a_directory: usize) {
    let content = vec![7; size];
    for first in (0..count).step_by(IN_A_DIRECTORY) {
        transact(vault, Durability::Soon, &mut |tx: &mut Tx<'_>| {
            let name = format!("d{}", first / in_a_directory);
            let directory = match first % in_a_directory {
                0 => tx.create(ROOT, name.as_bytes(), &new_node(Kind::Directory, 0o700))?,
                _ => vault.lookup(ROOT, name.as_bytes())?.id,
            };
            for n in first..count.min(first + IN_A_DIRECTORY) {
                let name = format!("s{n}");
                let file = tx.create(directory, name.as_bytes(), &new_node(Kind::File, 0o600))?;
                if size > 0 {
                    tx.publish(file, &content, Publication::Replacement, None, &[])?;
                }
            }
            Ok(())
        });
    }
    vault.sync().expect("synced");
}

/// How long something took: on the clock, and of processors, which others may have been using.
#[derive(Clone, Copy)]
struct Took {
    clock: Duration,
    processors: Duration,
}

/// Does it, and says how long it took.
fn timed<T>(deed: impl FnOnce() -> T) -> (T, Took) {
    let spent = || {
        let usage = getrusage(UsageWho::RUSAGE_SELF).expect("usage");
        let [user, system] = [usage.user_time(), usage.system_time()];
        let micros = user.num_microseconds() + system.num_microseconds();
        Duration::from_micros(micros as u64)
    };
    let (began, before) = (Instant::now(), spent());
    let done = deed();
    let took = Took {
        clock: began.elapsed(),
        processors: spent() - before,
    };
    (done, took)
}

impl Took {
    fn times(self, other: Self) -> String {
        let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
        format!(
            "{:.2} (of processor time {:.2})",
            ratio(self.clock, other.clock),
            ratio(self.processors, other.processors)
        )
    }
}

impl std::fmt::Display for Took {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2?} ({:.2?})", self.clock, self.processors)
    }
}

/// Field of /proc/self/status, in KiB.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("readable");
    let line = status.lines().find(|line| line.starts_with(field));
    let words = line.expect("a line").split_whitespace().nth(1);
    words.and_then(|word| word.parse().ok()).expect("a number")
}

/// Runs a rotation to its end: how long, and how much memory it took at most beyond what was there.
fn rotated(layer: &Layer, request: &Request) -> (Took, u64) {
    let vault = Vault::open(&layer.vault(), &layer.options()).expect("opened");
    std::fs::write("/proc/self/clear_refs", "5").expect("the peak is forgotten");
    let before = memory("VmRSS:");
    let ((), took) = timed(|| {
        vault.begin(request).expect("begun");
        vault.drive(&|| ControlFlow::Continue(())).expect("driven");
    });
    (took, memory("VmHWM:").saturating_sub(before))
}

fn filled(secrets: (usize, usize), in_a_directory: usize) -> (Layer, Took) {
    let layer = Layer::new();
    let vault = Vault::open(&layer.vault(), &layer.options()).expect("opened");
    let ((), took) = timed(|| fill(&vault, secrets, in_a_directory));
    (layer, took)
}

/// Unwraps and wraps as many data keys, and updates as many records of a table in batches.
fn bare_work(layer: &Layer, count: usize) -> Took {
    let vault = Vault::open(&layer.vault(), &layer.options()).expect("opened");
    let keyring = vault.keyring();
    let role = Role::Metadata;
    let wrapped: Vec<_> = (0..count as u64)
        .map(|node| {
            let key = SecretKey::generate().expect("a key");
            keyring.wrap(node, role, &key).expect("wrapped")
        })
        .collect();
    let dir = tempfile::tempdir().expect("a directory");
    let mut database = Connection::open(dir.path().join("bare.db")).expect("open");
    let sql = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; \
               CREATE TABLE record (id INTEGER PRIMARY KEY, generation INTEGER NOT NULL, \
               value BLOB NOT NULL) STRICT";
    database.execute_batch(sql).expect("made");
    // Of the size of a node's.
    let size = {
        let vault = Connection::open(layer.vault().join("vault.db")).expect("open");
        let sql = "SELECT length(value) FROM node ORDER BY id DESC LIMIT 1";
        vault
            .query_row(sql, [], |row| row.get::<_, u32>(0))
            .expect("a size")
    };
    let insert = database.transaction().expect("begun");
    for id in 0..count as i64 {
        let sql = "INSERT INTO record VALUES (?1, 1, ?2)";
        let mut statement = insert.prepare_cached(sql).expect("prepared");
        statement
            .execute((id, vec![1; size as usize]))
            .expect("inserted");
    }
    insert.commit().expect("committed");
    let work = || {
        for (node, (generation, wrapped)) in (0..).zip(&wrapped) {
            let key = keyring
                .unwrap(*generation, node, role, wrapped)
                .expect("unwrapped");
            keyring.wrap(node, role, &key).expect("wrapped");
        }
        let value = vec![2; size as usize];
        for first in (0..count as i64).step_by(BATCH) {
            let batch = database.transaction().expect("begun");
            for id in first..(count as i64).min(first + BATCH as i64) {
                let sql = "UPDATE record SET generation = 2, value = ?2 WHERE id = ?1";
                let mut statement = batch.prepare_cached(sql).expect("prepared");
                statement.execute((id, &value)).expect("updated");
            }
            batch.commit().expect("committed");
        }
    };
    timed(work).1
}

#[test]
fn the_memory_of_a_rotation_does_not_grow_with_the_number_of_secrets() {
    let _alone = alone();
    let count = number("SECRETFS_SCALE_SECRETS", SECRETS);
    let size = number("SECRETFS_SCALE_SIZE", 300);
    let mut small = Vec::new();
    let (layer, _) = filled((count / 4, size), IN_A_DIRECTORY);
    for request in [Request::Rotate, Request::Reencrypt] {
        small.push(rotated(&layer, &request).1);
    }
    let (layer, written) = filled((count, size), IN_A_DIRECTORY);
    let bare = bare_work(&layer, count);
    println!("{count} secrets of {size} bytes: written in {written}, bare work {bare}");
    for (request, small) in [Request::Rotate, Request::Reencrypt].iter().zip(small) {
        let (took, peak) = rotated(&layer, request);
        println!(
            "{}: {took}, {} times the bare work, {} times the writing; memory {peak} KiB, \
             and {small} KiB for a quarter of it",
            request.name(),
            took.times(bare),
            took.times(written),
        );
        assert!(
            peak < small + GROWTH,
            "{peak} KiB, and {small} KiB for a quarter of it"
        );
    }
    drop(layer);
}

/// How others fared who wrote all the time while a vault was reencrypted.
struct Beside {
    /// The longest that one of their transactions took.
    longest: Duration,
    /// Most transactions of the reencryption in a row without one of theirs between.
    passed_over: u32,
}

fn reencrypt_beside_a_writer(vault: &Vault) -> Beside {
    let (ended, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut passed_over = 0;
    let longest = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !ended.load(Ordering::Relaxed) {
                let began = Instant::now();
                transact(vault, Durability::Soon, &mut |tx: &mut Tx<'_>| {
                    tx.set_attributes(ROOT, &AttributeChange::default())
                });
                writes.fetch_add(1, Ordering::Relaxed);
                longest = longest.max(began.elapsed());
            }
            longest
        });
        let seen = Cell::new((vault.state().commit, 0, 0));
        let most = Cell::new(0);
        vault.begin(&Request::Reencrypt).expect("begun");
        // Asked between any two transactions.
        let go_on = || {
            let (commit, written) = (vault.state().commit, writes.load(Ordering::Relaxed));
            let (commit_before, written_before, alone) = seen.get();
            let alone = match written > written_before {
                true => 0,
                false => alone + u32::from(commit > commit_before),
            };
            most.set(most.get().max(alone));
            seen.set((commit, written, alone));
            ControlFlow::Continue(())
        };
        vault.drive(&go_on).expect("driven");
        passed_over = most.get();
        ended.store(true, Ordering::Relaxed);
        writer.join().expect("a writer")
    });
    Beside {
        longest,
        passed_over,
    }
}

#[test]
fn the_memory_of_a_reencryption_does_not_grow_with_the_number_of_names_in_a_directory() {
    let _alone = alone();
    let count = number("SECRETFS_SCALE_SECRETS", SECRETS * 10);
    // Names are what is looked at.
    let size = 0;
    let (layer, _) = filled((count / 4, size), count);
    let (_, small) = rotated(&layer, &Request::Reencrypt);
    let (layer, _) = filled((count, size), count);
    let (took, peak) = rotated(&layer, &Request::Reencrypt);
    println!(
        "reencrypt of one directory of {count}: {took}; memory {peak} KiB, and {small} KiB for a \
         quarter of it"
    );
    assert!(
        peak < small + GROWTH,
        "{peak} KiB, and {small} KiB for a quarter of it"
    );
}

#[test]
fn who_writes_is_not_passed_over_while_a_large_directory_is_reencrypted() {
    let _alone = alone();
    let count = number("SECRETFS_SCALE_SECRETS", SECRETS * 10);
    let (layer, _) = filled((count, 0), count);
    let vault = Vault::open(&layer.vault(), &layer.options()).expect("opened");
    let others = reencrypt_beside_a_writer(&vault);
    println!(
        "reencrypt of one directory of {count}: others waited for it at most {:.1?}, for {} of its \
         transactions without a turn",
        others.longest, others.passed_over
    );
    // It waits for them for ten milliseconds, but a machine may be slow to let them run.
    assert!(others.passed_over < 30, "{}", others.passed_over);
}
