//! A store in memory, for tests. It keeps every promise of [`Store`]; it refuses, waits and loses
//! its power on demand; and it breaks one promise if a test plants a [`Flaw`].
//!
//! A [`Medium`] keeps the records, as a disk does. One store at a time is open on it for writing.

mod flaw;
mod tables;
mod tx;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::sync::{Mutex, MutexGuard, Rank};

use super::{
    Abort, Durability, Read, Scrub, Store, StoreError, StoreErrorKind as Kind, TxFn, Write,
};
pub(crate) use flaw::Flaw;
use tables::{Change, Commit, Tables};
use tx::MemoryTx;

/// A moment in the work of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// A read begins.
    Read,
    /// A write transaction begins.
    Write,
    /// The body of a write transaction has ended, and nothing is committed.
    Commit,
    /// A commit is visible, and not on disk.
    Committed,
    /// A sync begins.
    Sync,
    /// A sync has ended, and its caller does not know yet.
    Synced,
    /// A scrub begins.
    Scrub,
}

/// A function that a store calls at each [`Moment`]. It may wait, or cut the power. An error refuses
/// the call, unless the moment is one at which the work is done.
pub(crate) type Hook = Arc<dyn Fn(Moment) -> Result<(), StoreError> + Send + Sync>;

/// Keeps the records, whichever store is open on it.
#[derive(Clone)]
pub(crate) struct Medium(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    flaw: Option<Flaw>,
}

#[derive(Default)]
struct State {
    durable: Arc<Tables>,
    /// The last commit that is durable.
    last: Option<Commit>,
    /// The commits that are not durable yet, in order.
    pending: Vec<Commit>,
    /// Number of commits ever.
    commits: u64,
    /// Number of power cuts: a store from before the last one is dead.
    cuts: u64,
    has_writer: bool,
    /// The number of readers of each earlier or present commit.
    readers: BTreeMap<u64, usize>,
}

impl State {
    fn present(&self) -> &Arc<Tables> {
        self.pending
            .last()
            .map_or(&self.durable, |last| &last.after)
    }

    fn sync(&mut self) {
        if let Some(last) = self.pending.pop() {
            self.durable = Arc::clone(&last.after);
            self.last = Some(last);
            self.pending.clear();
        }
    }
}

impl Medium {
    /// An empty medium.
    pub(crate) fn new(flaw: Option<Flaw>) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(Rank::Readers, State::default()),
            flaw,
        }))
    }

    /// A medium with the records that are on this one, as of the last commit.
    pub(crate) fn copy(&self, flaw: Option<Flaw>) -> Self {
        let present = Arc::clone(self.state().present());
        let copy = Self::new(flaw);
        copy.state().durable = present;
        copy
    }

    /// Cuts the power. Of the commits that are not durable, the first `survivors(number)` survive.
    pub(crate) fn cut_power(&self, survivors: impl FnOnce(usize) -> usize) {
        let mut state = self.state();
        let number = survivors(state.pending.len());
        let survivors = match number.checked_sub(1) {
            None => Arc::clone(&state.durable),
            Some(last) => Arc::clone(&state.pending[last].after),
        };
        state.durable = match &self.0.flaw {
            Some(flaw) => {
                let State {
                    durable,
                    last,
                    pending,
                    ..
                } = &*state;
                flaw.after_cut((durable, last.as_ref(), pending), number, survivors)
            }
            None => survivors,
        };
        state.pending.clear();
        state.last = None;
        state.cuts += 1;
        state.has_writer = false;
        state.readers.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }
}

/// An open store.
pub(crate) struct MemoryStore {
    medium: Medium,
    hook: Hook,
    is_writer: bool,
    /// Number of power cuts when it was opened.
    cuts: u64,
    /// Held over a write transaction.
    writing: Mutex<()>,
    /// Number of commits by this store, and by others before it was opened.
    own: AtomicU64,
    /// Nothing is written any more: a sync failed, or a body panicked.
    has_stopped: AtomicBool,
    reads: AtomicU64,
}

impl MemoryStore {
    /// Opens a store for writing.
    ///
    /// # Errors
    /// `Busy` when another one is open for writing.
    pub(crate) fn writer(medium: &Medium, hook: Hook) -> Result<Self, StoreError> {
        if std::mem::replace(&mut medium.state().has_writer, true) {
            return Err(StoreError::new(Kind::Busy, "another store writes"));
        }
        Ok(Self::new(medium, hook, true))
    }

    /// Opens a store for reading.
    pub(crate) fn reader(medium: &Medium, hook: Hook) -> Self {
        Self::new(medium, hook, false)
    }

    fn new(medium: &Medium, hook: Hook, is_writer: bool) -> Self {
        let state = medium.state();
        Self {
            is_writer,
            hook,
            cuts: state.cuts,
            writing: Mutex::new(Rank::WriteConnection, ()),
            own: AtomicU64::new(state.commits),
            has_stopped: AtomicBool::new(false),
            reads: AtomicU64::new(0),
            medium: medium.clone(),
        }
    }

    fn at(&self, moment: Moment) -> Result<(), StoreError> {
        (self.hook)(moment)
    }

    /// The medium, if the power was not cut.
    fn powered(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.medium.state();
        match state.cuts == self.cuts {
            true => Ok(state),
            false => Err(StoreError::new(Kind::Io, "the power was cut")),
        }
    }

    fn must_write(&self) -> Result<(), StoreError> {
        if !self.is_writer {
            let why = "the store was opened for reading only";
            return Err(StoreError::new(Kind::ReadOnly, why));
        }
        match self.has_stopped_writing() {
            true => Err(StoreError::new(
                Kind::Io,
                "nothing is written any more until the vault is reopened",
            )),
            false => Ok(()),
        }
    }

    /// Stops writing if `outcome` is an error.
    fn latched<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        if outcome.is_err() {
            self.has_stopped.store(true, Ordering::Release);
        }
        outcome
    }

    fn commit(&self, changes: Vec<Change>, after: Arc<Tables>) -> Result<(), StoreError> {
        self.at(Moment::Commit)?;
        let mut state = self.powered()?;
        let before = Arc::clone(state.present());
        state.pending.push(Commit {
            before,
            changes,
            after,
        });
        state.commits += 1;
        drop(state);
        self.own.fetch_add(1, Ordering::AcqRel);
        // The commit is done, whatever the hook says.
        let _ = self.at(Moment::Committed);
        self.powered().map(drop)
    }
}

/// Stops the writer if a body panics: nobody knows what else is half done.
struct StopsOnPanic<'s>(&'s AtomicBool);

impl Drop for StopsOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Release);
        }
    }
}

/// A reader of a commit, until dropped.
struct Snapshot<'s> {
    store: &'s MemoryStore,
    commit: u64,
}

impl Drop for Snapshot<'_> {
    fn drop(&mut self) {
        let mut state = self.store.medium.state();
        if let Some(readers) = state.readers.get_mut(&self.commit) {
            *readers -= 1;
            if *readers == 0 {
                state.readers.remove(&self.commit);
            }
        }
    }
}

impl Store for MemoryStore {
    fn read(&self, body: TxFn<'_, dyn Read>) -> Result<Result<(), Abort>, StoreError> {
        self.at(Moment::Read)?;
        let mut state = self.powered()?;
        let read = self.reads.fetch_add(1, Ordering::Relaxed);
        let tables = match (&self.medium.0.flaw, state.pending.last()) {
            (Some(flaw), Some(last)) if flaw.is_stale(read) => Arc::clone(&last.before),
            _ => Arc::clone(state.present()),
        };
        let commit = state.commits;
        *state.readers.entry(commit).or_default() += 1;
        drop(state);
        let _snapshot = Snapshot {
            store: self,
            commit,
        };
        Ok(body(&mut MemoryTx::reading(tables)))
    }

    fn write(
        &self,
        durability: Durability,
        body: TxFn<'_, dyn Write>,
    ) -> Result<Result<(), Abort>, StoreError> {
        let writing = self.writing.lock();
        self.must_write()?;
        self.at(Moment::Write)?;
        let tables = Arc::clone(self.powered()?.present());
        let mut tx = MemoryTx::writing(tables, self.medium.0.flaw);
        let unless_it_panics = StopsOnPanic(&self.has_stopped);
        let outcome = body(&mut tx);
        drop(unless_it_panics);
        if outcome.is_err() {
            return Ok(outcome);
        }
        let (changes, after) = tx.into_changes()?;
        self.commit(changes, after)?;
        drop(writing);
        match durability {
            Durability::Now => self.sync().map(Ok),
            Durability::Soon => Ok(Ok(())),
        }
    }

    fn sync(&self) -> Result<(), StoreError> {
        if !self.is_writer {
            self.powered()?.sync();
            return Ok(());
        }
        self.must_write()?;
        self.latched(self.at(Moment::Sync))?;
        let mut state = self.latched(self.powered())?;
        if !self.medium.0.flaw.is_some_and(|flaw| flaw.skips_syncs()) {
            state.sync();
        }
        drop(state);
        let _ = self.at(Moment::Synced);
        self.latched(self.powered()).map(drop)
    }

    fn scrub(&self) -> Result<Scrub, StoreError> {
        self.must_write()?;
        self.at(Moment::Scrub)?;
        self.sync()?;
        let state = self.powered()?;
        let commits = state.commits;
        match state.readers.keys().all(|commit| *commit == commits) {
            true => Ok(Scrub::Scrubbed),
            false => Ok(Scrub::ReaderInTheWay),
        }
    }

    fn foreign_changes(&self) -> Result<u64, StoreError> {
        // Read first: a commit between the two would make the difference negative.
        let own = self.own.load(Ordering::Acquire);
        Ok(self.powered()?.commits.wrapping_sub(own))
    }

    fn has_stopped_writing(&self) -> bool {
        self.has_stopped.load(Ordering::Acquire)
    }

    fn drop_caches(&self) {}
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        if self.is_writer
            && let Ok(mut state) = self.powered()
        {
            state.sync();
            state.has_writer = false;
        }
    }
}
