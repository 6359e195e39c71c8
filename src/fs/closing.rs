//! The moment when a draft becomes a version.
//!
//! A FLUSH publishes written data only if it comes from the process that opened the handle: a child
//! that inherited the descriptor, or a shell that closes a duplicate before it writes, publishes
//! nothing. `fsync` publishes all data of the handle. The last RELEASE publishes the rest, and no
//! program gets an error if that fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::store::NodeId;
use crate::sync::MutexGuard;

use super::commits::Commits;
use super::counters::Counters;
use super::handles::{Handle, NodeState, OpenNode};
use super::kernel::Kernel;
use super::publish::{Awaited, Pending, Publisher, RETRIES, Source, spoiled};
use super::reaping::Reaping;
use super::table::Table;
use super::{Caller, Done, FileHandle};
use crate::os::process;
use crate::vault::{Ticket, Whose};

/// Whether a publication has waited for those before it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Asked,
    Come,
}

/// Flush, fsync and release, as the module describes.
pub(super) struct Closing {
    pub(super) table: Arc<Table>,
    pub(super) commits: Arc<Commits>,
    pub(super) publisher: Arc<Publisher>,
    pub(super) reaping: Arc<Reaping>,
    pub(super) counters: Arc<Counters>,
    pub(super) kernel: Arc<Kernel>,
}

impl Closing {
    /// Handles the close of a descriptor; the handle may have others.
    pub(super) fn flush(
        self: &Arc<Self>,
        fh: FileHandle,
        pid: u32,
        lock_owner: u64,
        done: Done<()>,
    ) {
        self.flush_in_turn(fh, (pid, lock_owner), Turn::Asked, done);
    }

    fn flush_in_turn(
        self: &Arc<Self>,
        fh: FileHandle,
        (pid, lock_owner): (u32, u64),
        turn: Turn,
        done: Done<()>,
    ) {
        let handle = match self.table.get(fh) {
            Ok(handle) => handle,
            Err(error) => return done(Err(error)),
        };
        if !handle.access.write {
            return done(Ok(()));
        }
        let mut state = handle.node.lock();
        let Some(own) = state.handles.get_mut(&fh) else {
            return done(Ok(()));
        };
        own.flushed = true;
        let wrote = own.wrote;
        let by_owner = own.owners.contains(&lock_owner);
        if state.mapped().is_spoiled(fh) {
            drop(state);
            return done(Err(spoiled(handle.node.id)));
        }
        let unpublished = state
            .draft_of(fh)
            .is_some_and(|draft| !draft.has_published(wrote));
        if wrote == 0 || !unpublished || !is_opener(&handle, pid, by_owner) {
            return done(Ok(()));
        }
        if turn == Turn::Asked && state.somebody_waits() {
            let closing = Arc::clone(self);
            let then = move || closing.flush_in_turn(fh, (pid, lock_owner), Turn::Come, done);
            return state.wait(then);
        }
        let Some(pending) = state.draft_of(fh).map(|draft| Pending::of(draft)) else {
            return done(Ok(()));
        };
        self.publish(fh, &handle.node, state, pending, done);
    }

    /// Publishes what a program waits for.
    fn publish(
        &self,
        fh: FileHandle,
        node: &Arc<OpenNode>,
        state: MutexGuard<'_, NodeState>,
        pending: Pending,
        done: Done<()>,
    ) {
        let source = source_of(&state, fh);
        let awaited = Awaited::Yes(state.user_of(fh));
        self.publisher
            .publish(node, state, pending, (source, awaited), done);
    }

    /// `fsync`: publishes the handle's draft, and makes everything durable.
    pub(super) fn fsync(self: &Arc<Self>, fh: FileHandle, done: Done<()>) {
        self.fsync_in_turn(fh, Turn::Asked, done);
    }

    fn fsync_in_turn(self: &Arc<Self>, fh: FileHandle, turn: Turn, done: Done<()>) {
        let handle = match self.table.get(fh) {
            Ok(handle) => handle,
            Err(error) => return done(Err(error)),
        };
        let mut state = handle.node.lock();
        if state.mapped().is_spoiled(fh) {
            drop(state);
            return done(Err(spoiled(handle.node.id)));
        }
        let draft = state.draft_of(fh).filter(|draft| draft.is_unpublished());
        match draft.map(|draft| Pending::of(draft)) {
            Some(_) if turn == Turn::Asked && state.somebody_waits() => {
                let closing = Arc::clone(self);
                state.wait(move || closing.fsync_in_turn(fh, Turn::Come, done));
            }
            Some(pending) => self.publish(fh, &handle.node, state, pending, done),
            None => {
                let whose = state.user_of(fh);
                drop(state);
                self.commits
                    .barrier(Ticket::awaited(whose).on(handle.node.id), done);
            }
        }
    }

    /// Makes everything acknowledged before durable.
    pub(super) fn barrier(&self, caller: Caller, done: Done<()>) {
        self.commits.barrier(Ticket::awaited(caller.whose()), done);
    }

    /// Handles the close of a handle's last descriptor.
    pub(super) fn release(self: &Arc<Self>, fh: FileHandle) {
        let Some(handle) = self.table.take(fh) else {
            return;
        };
        let node = Arc::clone(&handle.node);
        let mut state = node.lock();
        if let Some((pending, source, whose)) = self.left_behind(node.id, &mut state, fh) {
            self.publisher
                .publish_unattended(&node, state, pending, (source, whose), RETRIES);
        } else {
            drop(state);
        }
        let paged = node.lock().paged;
        if paged {
            self.kernel.drop_pages(node.id);
        }
        self.reaping.tidy(node.id);
    }

    /// Removes a handle; returns the data it leaves to publish.
    fn left_behind(
        &self,
        node: NodeId,
        state: &mut NodeState,
        fh: FileHandle,
    ) -> Option<(Pending, Source, Whose)> {
        let is_spoiled = state.mapped().is_spoiled(fh);
        let own = state.handles.remove(&fh)?;
        state.pages.let_go(fh);
        let draft = match &own.own {
            Some(draft) => Some((draft, Source::Nobody)),
            None if own.write && !state.has_writers_in_place() => {
                state.shared.as_ref().map(|shared| (shared, Source::Shared))
            }
            None => None,
        };
        let draft = draft.filter(|(draft, _)| draft.is_unpublished());
        let is_lost = is_spoiled && draft.is_some();
        let pending = draft
            .filter(|_| !is_lost)
            .map(|(draft, source)| (Pending::of(draft), source, own.whose));
        if is_lost {
            spoiled(node);
            let failed = &self.counters.failed_publications;
            failed.fetch_add(1, Ordering::Relaxed);
        }
        if pending.is_none() && !state.has_writers_in_place() && state.publishing == 0 {
            state.shared = None;
        }
        pending
    }
}

/// The source of the draft that a handle writes to.
fn source_of(state: &NodeState, fh: FileHandle) -> Source {
    match state.handles.get(&fh).is_some_and(|h| h.own.is_some()) {
        true => Source::Own(fh),
        false => Source::Shared,
    }
}

/// Whether a FLUSH from `pid` comes from the process that opened the handle.
fn is_opener(handle: &Handle, pid: u32, by_owner: bool) -> bool {
    match (handle.opener, process::thread_group(pid)) {
        (Some(opener), Some(closer)) => opener == closer,
        (_, _) => by_owner,
    }
}
