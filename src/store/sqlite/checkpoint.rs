//! Moves what was committed from the WAL into the database, on a thread of its own, while commits go
//! on. They wait only while the last of it is moved, so that the WAL can be begun anew.
//!
//! It must never be what makes a commit durable, and never touch the files before the first
//! commit: the thread is started by the writer when the WAL has grown.

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

/// Pages in the WAL from which on it is worth moving them: 4 MiB.
const WORTHWHILE: i32 = 1024;

/// Pages committed beside a checkpoint that are few enough to be moved while nobody can write: 2 MiB.
const FEW: i32 = 512;

/// Pages in the WAL from which on any number of them is: 16 MiB. Who writes faster than they are moved
/// (as when all keys are replaced) has to wait some day.
const MANY: i32 = 4 * 1024;

/// How long a checkpoint that begins the WAL anew waits for readers, while nobody can write.
const WAIT_WITH_WRITERS: Duration = Duration::from_millis(2);

/// After one that readers were in the way of, time without trying again.
const LEAVE_READERS: Duration = Duration::from_millis(500);

/// Pages in the WAL from which on new transactions are held up until it could be begun anew: 64 MiB. An
/// unbroken chain of overlapping readers would let it grow forever.
const TOO_MANY: i32 = 16 * 1024;

/// How long they are held up at most, and how long the checkpoint waits for those under way.
const HOLD_UP: Duration = Duration::from_secs(2);
pub(super) const WAIT_FOR_READERS: Duration = Duration::from_millis(1500);

/// After a hold-up that achieved nothing (another process reads and reads), time without one.
const RESPITE: Duration = Duration::from_secs(10);

/// Rest after a checkpoint, so that a pinned WAL does not make for a busy loop.
const REST: Duration = Duration::from_millis(50);

/// What the thread, the writer and the readers share.
#[derive(Debug)]
pub(super) struct Desk {
    orders: Mutex<Orders>,
    changed: Condvar,
    /// New transactions are held up. Beside the mutex, so that a read costs no lock.
    held_up: AtomicBool,
    /// The same for those that write.
    writes_held_up: AtomicBool,
    /// Pages in the WAL after the last commit.
    pages: AtomicI32,
    /// The writer has stopped for good.
    stopped: AtomicBool,
    /// Held by a transaction that writes, or by the checkpoint that begins the WAL anew: SQLite's own lock
    /// between them is waited for asleep, a millisecond at the least.
    ///
    /// The vault lets one transaction write at a time, but it knows of no checkpoints. The lock of the
    /// connection would not do in place of this one: a sync takes it, too, for a moment before and after,
    /// and need not wait for a checkpoint.
    writes: Mutex<()>,
}

#[derive(Debug, Default)]
struct Orders {
    wanted: bool,
    stop: bool,
    /// An I/O error met by the thread.
    failed: Option<StoreError>,
}

impl Default for Desk {
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

impl Desk {
    /// Holds up a new transaction while the WAL is being begun anew; bounded.
    pub(super) fn pass(&self) {
        self.pass_if_not(&self.held_up);
    }

    /// The same for a transaction that writes: no checkpoint begins the WAL anew while this is held. A
    /// checkpoint that waits for that is let in first, or a steady writer would take the lock from it each
    /// time.
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

    /// The writer stops for good: what is on disk is not certain.
    pub(super) fn stop_writing(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_stopped_writing(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// The error that the thread met, if any: what it could not sync may be lost.
    pub(super) fn failed(&self) -> Option<StoreError> {
        self.orders().failed.clone()
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock()
    }

    /// Runs `work` while new transactions wait that look at `held_up`.
    fn holding_up<T>(&self, held_up: &AtomicBool, work: impl FnOnce() -> T) -> T {
        held_up.store(true, Ordering::Release);
        let outcome = work();
        held_up.store(false, Ordering::Release);
        // The lock orders this with one that has just looked and is about to wait.
        drop(self.orders());
        self.changed.notify_all();
        outcome
    }
}

/// The thread, once there is one.
#[derive(Debug)]
pub(super) struct Checkpointer {
    place: Arc<Place>,
    opened: Arc<Opened>,
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    pub(super) fn new(place: Arc<Place>, opened: Arc<Opened>, desk: Arc<Desk>) -> Self {
        Self {
            place,
            opened,
            desk,
            thread: None,
        }
    }

    /// What it shares with the readers.
    pub(super) fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Told by the writer how many pages the WAL has after a commit.
    pub(super) fn wal_has(&mut self, pages: i32) {
        self.desk.pages.store(pages, Ordering::Relaxed);
        if pages < WORTHWHILE {
            return;
        }
        let known = std::mem::replace(&mut self.desk.orders().wanted, true);
        if self.thread.is_some() {
            if !known {
                self.desk.changed.notify_all();
            }
            return;
        }
        let (place, opened) = (Arc::clone(&self.place), Arc::clone(&self.opened));
        let desk = Arc::clone(&self.desk);
        // Without the thread the WAL grows, but nothing is lost: the next commit tries again.
        self.thread = std::thread::Builder::new()
            .name("checkpoint".into())
            .spawn(move || run(&place, &opened, &desk))
            .ok();
    }

    /// Ends the thread and waits for it.
    pub(super) fn stop(&mut self) {
        self.desk.orders().stop = true;
        self.desk.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(place: &Place, opened: &Opened, desk: &Desk) {
    let connection = match connection::open_another(place, opened, Purpose::Write) {
        Ok(connection) => connection,
        Err(error) => {
            tracing::warn!(%error, "no checkpoints: the WAL will grow until the vault is closed");
            return;
        }
    };
    // When it is tried again to begin the WAL anew, and to hold everybody up for that.
    let (mut anew_from, mut hold_up_from) = (Instant::now(), Instant::now());
    // After an I/O error the WAL may have what the database has not: it must not be begun anew.
    while next_order(desk) && desk.failed().is_none() {
        // It was begun anew since somebody asked for this.
        if desk.pages.load(Ordering::Relaxed) < WORTHWHILE {
            continue;
        }
        // Most of the work, while others go on to commit.
        let (pages, moved) = match move_and_sync(&connection) {
            Ok(outcome) => outcome,
            Err(error) => {
                fail(desk, error);
                continue;
            }
        };
        let left = desk.pages.load(Ordering::Relaxed).saturating_sub(moved);
        if (left <= FEW || pages >= MANY) && Instant::now() >= anew_from {
            match begin_anew(&connection, desk) {
                Ok(()) => continue,
                Err(error) if error.kind == Kind::Busy => {
                    anew_from = Instant::now() + LEAVE_READERS;
                }
                Err(error) => {
                    fail(desk, error);
                    continue;
                }
            }
        }
        if pages < TOO_MANY || Instant::now() < hold_up_from {
            continue;
        }
        let truncated = desk.holding_up(&desk.held_up, || {
            connection::waiting(&connection, WAIT_FOR_READERS, |connection| {
                checkpoint(connection, CheckpointMode::TRUNCATE)
            })
        });
        match truncated {
            Ok(_) => {}
            Err(error) if error.kind == Kind::Busy => hold_up_from = Instant::now() + RESPITE,
            Err(error) => fail(desk, error),
        }
    }
}

/// Moves what was committed so far, and has it on disk: SQLite itself leaves that to the checkpoint that
/// moves the last of it, and then nobody can write meanwhile.
fn move_and_sync(connection: &Connection) -> Result<(i32, i32), StoreError> {
    let outcome = checkpoint(connection, CheckpointMode::PASSIVE)?;
    vfs::sync_database(connection)
        .map_err(|error| failure::of(connection, "cannot sync the database", error))?;
    Ok(outcome)
}

/// Moves what was committed since the last checkpoint, while nobody writes, so that the next commit
/// begins the WAL anew. Where commits follow each other closely, it would grow for as long as they do,
/// and to sync a file that grows takes more than twice as long.
fn begin_anew(connection: &Connection, desk: &Desk) -> Result<(), StoreError> {
    // Else one that writes again and again would have the lock again and again.
    desk.holding_up(&desk.writes_held_up, || {
        let _nobody_writes = desk.writes.lock();
        connection::waiting(connection, WAIT_WITH_WRITERS, |connection| {
            checkpoint(connection, CheckpointMode::RESTART).map(drop)
        })
    })
}

/// Waits until there is something to do; false when it is to stop.
fn next_order(desk: &Desk) -> bool {
    let mut orders = desk.orders();
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
        orders = desk.changed.wait_timeout(orders, timeout);
    }
}

pub(super) fn fail(desk: &Desk, error: StoreError) {
    tracing::warn!(%error, "a checkpoint failed");
    // A full disk or a lock is nothing to give up for: all of it still is in the WAL.
    if matches!(error.kind, Kind::Io | Kind::ReadOnly) {
        desk.orders().failed.get_or_insert(error);
        // The writer sees that, too, at its next transaction.
        desk.stop_writing();
    }
}

/// Runs a checkpoint; returns the pages in the WAL and how many of them were moved.
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
