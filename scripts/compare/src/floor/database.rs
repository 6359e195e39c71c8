//! What a store takes, beside FUSE: SQLite behind the floor. A name that is made or moved is committed
//! before that is acknowledged, a content is on disk before its fsync is, and one sync serves all that
//! wait for one. The way to the WAL is that of secretfs.

use std::fs::File;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use fuser::{Errno, ReplyEmpty};
use rusqlite::wal::CheckpointMode;

use super::rows::{Mover, Name, Rows};

#[path = "../../../../src/store/sqlite/vfs.rs"]
#[allow(dead_code)]
mod vfs;

/// The WAL is begun anew after so many syncs, or it would grow, which takes longer.
const SYNCS: u64 = 64;

pub struct Database {
    rows: Mutex<Rows>,
    wal: File,
    /// Whoever waits for a sync.
    waiting: Mutex<Vec<ReplyEmpty>>,
    more: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn told(outcome: rusqlite::Result<()>) -> Result<(), Errno> {
    outcome.map_err(|_| Errno::EIO)
}

impl Database {
    /// Makes an empty one, and starts the threads that sync and move the WAL into it.
    pub fn make(path: &Path) -> Result<Arc<Self>, String> {
        let fail = |e: &dyn std::fmt::Display| format!("cannot make {}: {e}", path.display());
        let vfs = vfs::name().ok_or_else(|| fail(&"SQLite has no way to files"))?;
        let rows = Rows::make(path, vfs).map_err(|e| fail(&e))?;
        let mover = Mover::open(path).map_err(|e| fail(&e))?;
        let made = Arc::new(Self {
            rows: Mutex::new(rows),
            wal: File::open(format!("{}-wal", path.display())).map_err(|e| fail(&e))?,
            waiting: Mutex::default(),
            more: Condvar::new(),
        });
        let (at_times, times) = sync_channel(1);
        let (syncing, moving) = (Arc::clone(&made), Arc::clone(&made));
        std::thread::spawn(move || {
            for count in 1.. {
                syncing.sync();
                if count % SYNCS == 0 {
                    let _ = at_times.try_send(());
                }
            }
        });
        std::thread::spawn(move || moving.begin_wal_anew(&mover, &times));
        Ok(made)
    }

    pub fn create(&self, node: u64, name: Name<'_>) -> Result<(), Errno> {
        told(lock(&self.rows).create(node, name))
    }

    pub fn rename(
        &self,
        node: u64,
        replaced: Option<u64>,
        from: Name<'_>,
        to: Name<'_>,
    ) -> Result<(), Errno> {
        told(lock(&self.rows).rename(node, replaced, from, to))
    }

    /// Stores a content of 1 KiB, and answers when it is on disk.
    pub fn publish(&self, node: u64, reply: ReplyEmpty) {
        let stored = told(lock(&self.rows).publish(node));
        match stored {
            Ok(()) => {
                lock(&self.waiting).push(reply);
                self.more.notify_one();
            }
            Err(error) => reply.error(error),
        }
    }

    /// Syncs once for all that wait, when somebody does.
    fn sync(&self) {
        let waiting = {
            let mut waiting = lock(&self.waiting);
            while waiting.is_empty() {
                let woken = self.more.wait(waiting);
                waiting = woken.unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::take(&mut *waiting)
        };
        let synced = self.wal.sync_data();
        for reply in waiting {
            match &synced {
                Ok(()) => reply.ok(),
                Err(_) => reply.error(Errno::EIO),
            }
        }
    }

    /// Moves the WAL into the database while others write, and what came meanwhile while they wait.
    fn begin_wal_anew(&self, mover: &Mover, times: &Receiver<()>) {
        for () in times {
            let moved = mover.checkpoint(CheckpointMode::PASSIVE).and_then(|()| {
                let _writers = lock(&self.rows);
                mover.checkpoint(CheckpointMode::RESTART)
            });
            if let Err(error) = moved {
                eprintln!("the WAL cannot be begun anew: {error}");
                // What is measured from now on would be too slow.
                std::process::exit(1);
            }
        }
    }
}
