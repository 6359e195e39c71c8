//! Moves commits from the WAL into the database, on a thread of its own, while new commits go on.
//! New commits wait only while the last pages are moved, so that the WAL can restart.
//!
//! No commit may depend on a checkpoint to become durable, and the thread must not touch the files
//! before the first commit: the writer starts it when the WAL has grown.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, ErrorCode};

use crate::store::place::{Opened, Place};
use crate::store::{StoreError, StoreErrorKind as Kind};
use crate::sync::{Condvar, Mutex, MutexGuard, Rank};

use super::connection::{self, Purpose};
use super::{failure, vfs};

/// A checkpoint begins once the WAL has this many pages: 4 MiB.
const WORTHWHILE: i32 = 1024;

/// A checkpoint blocks writers to move at most this many remaining pages: 2 MiB.
const FEW: i32 = 512;

/// Once the WAL has this many pages (16 MiB), a checkpoint blocks writers however many remain. A
/// writer that is faster than the checkpoint, such as one that replaces all keys, would starve it
/// otherwise.
const MANY: i32 = 4 * 1024;

/// Limit on waiting for readers while a checkpoint blocks writers.
const WAIT_WITH_WRITERS: Duration = Duration::from_millis(2);

/// Pause after readers were in the way of such a checkpoint.
const LEAVE_READERS: Duration = Duration::from_millis(500);

/// Once the WAL has this many pages (64 MiB), new transactions wait until it restarts. An unbroken
/// chain of overlapping readers would let it grow forever otherwise.
const TOO_MANY: i32 = 16 * 1024;

/// Limit on the wait of new transactions, and on the checkpoint's wait for those under way.
const HOLD_UP: Duration = Duration::from_secs(2);
pub(super) const WAIT_FOR_READERS: Duration = Duration::from_millis(1500);

/// Pause after such a wait was in vain, because another process reads without end.
const RESPITE: Duration = Duration::from_secs(10);

/// Pause after each checkpoint, so that a pinned WAL causes no busy loop.
const REST: Duration = Duration::from_millis(50);

/// The state that the thread, the writer and the readers share.
#[derive(Debug)]
pub(super) struct CheckpointGate {
    orders: Mutex<Orders>,
    changed: Condvar,
    /// New transactions wait. An atomic outside the mutex, so that a read takes no lock.
    held_up: AtomicBool,
    /// New write transactions wait.
    writes_held_up: AtomicBool,
    /// Pages in the WAL after the last commit.
    pages: AtomicI32,
    /// The writer refuses to write until the vault is reopened.
    stopped: AtomicBool,
    /// Held by a write transaction, or by the checkpoint that restarts the WAL: SQLite's own lock
    /// between them would make a waiting thread sleep for at least a millisecond.
    ///
    /// The vault runs one write transaction at a time, but does not know of checkpoints. The lock
    /// of the connection cannot take the place of this one: a sync takes it, too, for a moment
    /// before and after, and need not wait for a checkpoint.
    writes: Mutex<()>,
}

#[derive(Debug, Default)]
struct Orders {
    wanted: bool,
    stop: bool,
    /// The first I/O error of the thread.
    failed: Option<StoreError>,
}

impl Default for CheckpointGate {
    fn default() -> Self {
        Self {
            orders: Mutex::new(Rank::Checkpoints, Orders::default()),
            changed: Condvar::new(),
            held_up: AtomicBool::new(false),
            writes_held_up: AtomicBool::new(false),
            pages: AtomicI32::new(0),
            stopped: AtomicBool::new(false),
            writes: Mutex::new(Rank::Writes, ()),
        }
    }
}

impl CheckpointGate {
    /// Makes a new transaction wait while the WAL restarts, for a limited time.
    pub(super) fn pass(&self) {
        self.pass_if_not(&self.held_up);
    }

    /// The same for a write transaction: no checkpoint restarts the WAL while it holds the guard.
    /// A checkpoint that waits for this goes first, or a steady writer would take the lock from it
    /// each time.
    pub(super) fn keep_off_checkpoint(&self) -> MutexGuard<'_, ()> {
        self.pass_if_not(&self.held_up);
        self.pass_if_not(&self.writes_held_up);
        self.writes.lock()
    }

    fn pass_if_not(&self, held_up: &AtomicBool) {
        if !held_up.load(Ordering::Acquire) {
            return;
        }
        let deadline = Instant::now() + HOLD_UP;
        let mut orders = self.orders();
        while held_up.load(Ordering::Acquire) && !orders.stop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            orders = self.changed.wait_timeout(orders, left);
        }
    }

    /// Notes that the writer has stopped, because nobody knows what is on disk.
    pub(super) fn stop_writing(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_stopped_writing(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// The I/O error of the thread, if any: pages that it could not sync may be lost.
    pub(super) fn failed(&self) -> Option<StoreError> {
        self.orders().failed.clone()
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock()
    }

    /// Runs `work` while new transactions that check `held_up` wait.
    fn holding_up<T>(&self, held_up: &AtomicBool, work: impl FnOnce() -> T) -> T {
        held_up.store(true, Ordering::Release);
        let outcome = work();
        held_up.store(false, Ordering::Release);
        // Take the lock once: a transaction that has seen the flag is waiting before the
        // notification.
        drop(self.orders());
        self.changed.notify_all();
        outcome
    }
}

/// Starts and stops the thread.
#[derive(Debug)]
pub(super) struct Checkpointer {
    place: Arc<Place>,
    opened: Arc<Opened>,
    gate: Arc<CheckpointGate>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    pub(super) fn new(place: Arc<Place>, opened: Arc<Opened>, gate: Arc<CheckpointGate>) -> Self {
        Self {
            place,
            opened,
            gate,
            thread: None,
        }
    }

    /// The state shared with the readers.
    pub(super) fn gate(&self) -> &CheckpointGate {
        &self.gate
    }

    /// The writer reports the number of pages in the WAL after a commit.
    pub(super) fn wal_has(&mut self, pages: i32) {
        self.gate.pages.store(pages, Ordering::Relaxed);
        if pages < WORTHWHILE {
            return;
        }
        let known = std::mem::replace(&mut self.gate.orders().wanted, true);
        if self.thread.is_some() {
            if !known {
                self.gate.changed.notify_all();
            }
            return;
        }
        let (place, opened) = (Arc::clone(&self.place), Arc::clone(&self.opened));
        let gate = Arc::clone(&self.gate);
        // Without the thread the WAL grows, but nothing is lost, and the next commit tries again.
        self.thread = std::thread::Builder::new()
            .name("checkpoint".into())
            .spawn(move || run(&place, &opened, &gate))
            .ok();
    }

    /// Ends the thread and waits for it.
    pub(super) fn stop(&mut self) {
        self.gate.orders().stop = true;
        self.gate.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(place: &Place, opened: &Opened, gate: &CheckpointGate) {
    let connection = match connection::open_another(place, opened, Purpose::Write) {
        Ok(connection) => connection,
        Err(error) => {
            tracing::warn!(%error, "no checkpoints: the WAL will grow until the vault is closed");
            return;
        }
    };
    // The earliest time of the next restart of the WAL, and of the next one that makes all wait.
    let (mut anew_from, mut hold_up_from) = (Instant::now(), Instant::now());
    // After an I/O error the WAL may hold pages that the database lacks, so it must not restart.
    while next_order(gate) && gate.failed().is_none() {
        // The WAL has restarted since the writer asked for this.
        if gate.pages.load(Ordering::Relaxed) < WORTHWHILE {
            continue;
        }
        // Most of the work, while other threads commit.
        let (pages, moved) = match move_and_sync(&connection) {
            Ok(outcome) => outcome,
            Err(error) => {
                fail(gate, error);
                continue;
            }
        };
        let left = gate.pages.load(Ordering::Relaxed).saturating_sub(moved);
        if (left <= FEW || pages >= MANY) && Instant::now() >= anew_from {
            match begin_anew(&connection, gate) {
                Ok(()) => continue,
                Err(error) if error.kind == Kind::Busy => {
                    anew_from = Instant::now() + LEAVE_READERS;
                }
                Err(error) => {
                    fail(gate, error);
                    continue;
                }
            }
        }
        if pages < TOO_MANY || Instant::now() < hold_up_from {
            continue;
        }
        let truncated = gate.holding_up(&gate.held_up, || {
            connection::waiting(&connection, WAIT_FOR_READERS, |connection| {
                checkpoint(connection, CheckpointMode::TRUNCATE)
            })
        });
        match truncated {
            Ok(_) => {}
            Err(error) if error.kind == Kind::Busy => hold_up_from = Instant::now() + RESPITE,
            Err(error) => fail(gate, error),
        }
    }
}

/// Moves all commits so far into the database and syncs it. SQLite itself syncs only in the
/// checkpoint that moves the last page, and writers would wait for that.
fn move_and_sync(connection: &Connection) -> Result<(i32, i32), StoreError> {
    let outcome = checkpoint(connection, CheckpointMode::PASSIVE)?;
    vfs::sync_database(connection)
        .map_err(|error| failure::of(connection, "cannot sync the database", error))?;
    Ok(outcome)
}

/// Moves the commits since the last checkpoint while writers wait, so that the next commit restarts
/// the WAL. It would grow for as long as commits follow each other closely, and syncing a growing
/// file takes more than twice as long.
fn begin_anew(connection: &Connection, gate: &CheckpointGate) -> Result<(), StoreError> {
    // Without this, a busy writer would take the lock again and again.
    gate.holding_up(&gate.writes_held_up, || {
        let _nobody_writes = gate.writes.lock();
        connection::waiting(connection, WAIT_WITH_WRITERS, |connection| {
            checkpoint(connection, CheckpointMode::RESTART).map(drop)
        })
    })
}

/// Waits for work; false if the thread must stop.
fn next_order(gate: &CheckpointGate) -> bool {
    let mut orders = gate.orders();
    let rest = Instant::now() + REST;
    loop {
        if orders.stop {
            return false;
        }
        let left = rest.saturating_duration_since(Instant::now());
        if orders.wanted && left.is_zero() {
            orders.wanted = false;
            return true;
        }
        let timeout = if orders.wanted {
            left
        } else {
            Duration::from_secs(3600)
        };
        orders = gate.changed.wait_timeout(orders, timeout);
    }
}

pub(super) fn fail(gate: &CheckpointGate, error: StoreError) {
    tracing::warn!(%error, "a checkpoint failed");
    // After a full disk or a busy lock everything still is in the WAL, so go on.
    if matches!(error.kind, Kind::Io | Kind::ReadOnly) {
        gate.orders().failed.get_or_insert(error);
        // The writer sees the error at its next transaction, too.
        gate.stop_writing();
    }
}

/// Runs a checkpoint; returns the number of pages in the WAL, and how many of them are moved.
pub(super) fn checkpoint(
    connection: &Connection,
    mode: CheckpointMode,
) -> Result<(i32, i32), StoreError> {
    match connection.wal_checkpoint_v2(Some(rusqlite::MAIN_DB), mode) {
        Ok(pages) => Ok(pages),
        Err(rusqlite::Error::SqliteFailure(failed, _))
            if failed.code == ErrorCode::DatabaseBusy
                && matches!(mode, CheckpointMode::PASSIVE) =>
        {
            // Another connection is checkpointing.
            Ok((0, 0))
        }
        Err(error) => Err(failure::of(connection, "cannot checkpoint", error)),
    }
}
