//! When a draft becomes a version.
//!
//! A FLUSH publishes written data only if it comes from the process that opened the handle: a
//! child that inherited the descriptor, or the duplicate that a shell closes before it writes,
//! publishes nothing. `fsync` publishes whatever there is. The last RELEASE publishes what is
//! still unpublished, and has nobody to tell when that fails.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use crate::store::NodeId;
use crate::vault::{PIECE, Publication, Timestamp, Tx, VaultError, pieces_of};

use super::blocks::Image;
use super::draft::Draft;
use super::handles::{Handle, NodeState, OpenNode};
use super::queue::{Ticket, Whose};
use super::{Caller, Done, Errno, FileHandle, FileSystem, process};

/// How often a publication is tried again that nobody waits for, and how long after.
pub(super) const RETRIES: u32 = 3;
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(300);

/// A draft's content as of one change, on its way to the store.
#[derive(Clone)]
pub(super) struct Pending {
    image: Arc<Image>,
    taken: Instant,
    publication: Publication,
    modified: Option<Timestamp>,
    edits: u64,
    /// When it is tried again: the version that it may take the place of. What others published
    /// since, and were told so, stays.
    only_over: Option<u64>,
    /// The version that was current when it was tried last, or queued.
    tried_over: Arc<AtomicU64>,
}

impl Pending {
    pub(super) fn of(draft: &Draft) -> Self {
        Self {
            image: Arc::new(draft.image().clone()),
            taken: Instant::now(),
            publication: draft.publication,
            modified: Some(draft.modified.unwrap_or(draft.edited_at)),
            edits: draft.edits(),
            only_over: None,
            tried_over: Arc::default(),
        }
    }

    /// What was appended to `version`, and goes nowhere else.
    pub(super) fn appended(draft: &Draft, version: u64) -> Self {
        Self {
            only_over: Some(version),
            ..Self::of(draft)
        }
    }
}

/// Whose draft it was, to be told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Own(FileHandle),
    Shared,
    /// The shared one, of which nothing but appends is stored, and no program has asked for it.
    Appended,
    /// The draft is gone with its handle.
    Nobody,
}

impl Source {
    /// Whose draft it is that a handle writes to.
    fn of(state: &NodeState, fh: FileHandle) -> Self {
        match state.handles.get(&fh).is_some_and(|h| h.own.is_some()) {
            true => Self::Own(fh),
            false => Self::Shared,
        }
    }
}

/// Whether a program waits until it is published, and whose share of the disk's time that takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    Yes(Whose),
    No(Whose),
}

/// Whether whoever publishes what programs write now has waited for those that came before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Asked,
    Come,
}

impl FileSystem {
    /// A descriptor was closed, one of perhaps several of this handle.
    pub fn flush(self: &Arc<Self>, fh: FileHandle, pid: u32, lock_owner: u64, done: Done<()>) {
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
        let whose = own.whose;
        if state.is_spoiled(fh) {
            drop(state);
            return done(Err(self.spoiled(handle.node.id)));
        }
        let unpublished = state
            .draft_of(fh)
            .is_some_and(|draft| !draft.has_published(wrote));
        if wrote == 0 || !unpublished || !is_opener(&handle, pid, by_owner) {
            return done(Ok(()));
        }
        if turn == Turn::Asked && state.somebody_waits() {
            let fs = Arc::clone(self);
            let then = move || fs.flush_in_turn(fh, (pid, lock_owner), Turn::Come, done);
            return state.wait(then);
        }
        let Some(pending) = state.draft_of(fh).map(|draft| Pending::of(draft)) else {
            return done(Ok(()));
        };
        let source = Source::of(&state, fh);
        self.publish(
            &handle.node,
            state,
            pending,
            (source, Awaited::Yes(whose)),
            done,
        );
    }

    /// Why a draft is not published: it may lack what was written to a mapping.
    fn spoiled(&self, node: NodeId) -> Errno {
        tracing::error!(
            "what was written to node {node} through a mapping is lost, and what was there stays: \
             another program emptied the file meanwhile; write it again"
        );
        Errno(libc::EIO)
    }

    /// `fsync`: publishes whatever the handle's draft has, and makes everything durable.
    pub fn fsync(self: &Arc<Self>, fh: FileHandle, done: Done<()>) {
        self.fsync_in_turn(fh, Turn::Asked, done);
    }

    fn fsync_in_turn(self: &Arc<Self>, fh: FileHandle, turn: Turn, done: Done<()>) {
        let handle = match self.table.get(fh) {
            Ok(handle) => handle,
            Err(error) => return done(Err(error)),
        };
        let mut state = handle.node.lock();
        if state.is_spoiled(fh) {
            drop(state);
            return done(Err(self.spoiled(handle.node.id)));
        }
        let whose = state.user_of(fh);
        let draft = state.draft_of(fh).filter(|draft| draft.is_unpublished());
        match draft.map(|draft| Pending::of(draft)) {
            Some(_) if turn == Turn::Asked && state.somebody_waits() => {
                let fs = Arc::clone(self);
                state.wait(move || fs.fsync_in_turn(fh, Turn::Come, done));
            }
            Some(pending) => {
                let source = Source::of(&state, fh);
                self.publish(
                    &handle.node,
                    state,
                    pending,
                    (source, Awaited::Yes(whose)),
                    done,
                );
            }
            None => {
                drop(state);
                self.commits.barrier(Ticket::awaited(whose).on(handle.node.id), done);
            }
        }
    }

    /// Makes durable what was acknowledged before.
    pub fn barrier(&self, caller: Caller, done: Done<()>) {
        self.commits.barrier(Ticket::awaited(caller.whose()), done);
    }

    /// Publishes the shared draft now, for truncate(2), which has no handle to close.
    pub(super) fn publish_shared(
        self: &Arc<Self>,
        node: &Arc<OpenNode>,
        whose: Whose,
        done: Done<()>,
    ) {
        let state = node.lock();
        if state
            .shared
            .as_ref()
            .is_some_and(|shared| shared.is_spoiled)
        {
            drop(state);
            return done(Err(self.spoiled(node.id)));
        }
        let Some(pending) = state.shared.as_ref().map(Pending::of) else {
            drop(state);
            return done(Ok(()));
        };
        self.publish(
            node,
            state,
            pending,
            (Source::Shared, Awaited::Yes(whose)),
            done,
        );
    }

    /// Publishes what was taken from `node` while it has been locked as `state`. It is queued before
    /// that lock is let go of: what is taken later is stored later.
    pub(super) fn publish(
        self: &Arc<Self>,
        node: &Arc<OpenNode>,
        mut state: MutexGuard<'_, NodeState>,
        pending: Pending,
        (source, awaited): (Source, Awaited),
        done: Done<()>,
    ) {
        state.publishing += 1;
        let queue = match self.commits.queue() {
            Ok(queue) => queue,
            Err(error) => {
                drop(state);
                put_off(node, source);
                self.settle(node);
                return done(Err(error));
            }
        };
        let keep = state.keep_pinned();
        let id = node.id;
        let bytes = pending.image.len();
        // Where there is little room, a content that does not fit must leave the room that there is.
        let pieces = match pieces_of(bytes) {
            pieces if pieces > 1 && self.room.has_for(bytes) => pieces,
            _ => 1,
        };
        let in_pieces = if pieces > 1 { bytes } else { 0 };
        let all = &self.counters.in_pieces;
        all.fetch_add(in_pieces, Ordering::Relaxed);
        let job = pending.clone();
        let fs = Arc::clone(self);
        let published_of = Arc::clone(node);
        let open = Arc::clone(node);
        let run = move |tx: &mut Tx<'_>, piece: u32| {
            let current = tx.current_version(id)?;
            job.tried_over.store(current, Ordering::Relaxed);
            if job.only_over.is_some_and(|version| version != current) {
                return Ok(None);
            }
            fail::fail_point!("publication-fails", |_| Err(VaultError::Invalid));
            let parts = job.image.parts();
            let (publication, modified) = (job.publication, job.modified);
            if piece + 1 < pieces {
                tx.stage(id, &parts, piece)?;
                return Ok(None);
            }
            let published = match pieces {
                1 => tx.publish_parts(id, &parts, publication, modified, &keep),
                _ => {
                    // What is read by now, which others may have begun since the first piece.
                    let keep = open.lock().keep_pinned();
                    tx.publish_staged(id, &parts, publication, modified, &keep)
                }
            };
            published.map(Some)
        };
        let done = move |outcome: Result<Option<u64>, VaultError>| {
            let node = published_of;
            let published = matches!(outcome, Ok(Some(_)));
            let is_left = outcome.is_err() && pieces > 1;
            let all = &fs.counters.in_pieces;
            all.fetch_sub(in_pieces, Ordering::Relaxed);
            match outcome {
                Ok(Some(_)) => {
                    fs.counters.published.fetch_add(1, Ordering::Relaxed);
                    fs.note_published(&node, &pending, source);
                    if matches!(source, Source::Shared | Source::Appended)
                        && let Ok(content) = fs.nodes.node(id).and_then(|now| Ok(now.file()?.replaced))
                    {
                        node.lock().name_pages(content);
                    }
                }
                Ok(None) => {}
                Err(_) => put_off(&node, source),
            }
            // Or what its program writes next would have to be copied.
            drop(pending);
            if is_left {
                node.lock().leave_pieces();
            }
            fs.settle(&node);
            // Not if it is tried again: when that has come to its end.
            if is_left {
                fs.reaping.reap(id);
            }
            done(match super::to_errno(outcome) {
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err(Errno(libc::ESTALE)),
                Err(error) => Err(error),
            });
            // Whoever is woken reads what was published, and nobody has waited for that.
            if published {
                fs.watchers.wake(id);
            }
        };
        let ticket = match awaited {
            Awaited::Yes(whose) => Ticket::awaited(whose),
            // What its program does next must not come before it.
            Awaited::No(whose) => Ticket::unattended(whose),
        };
        let ticket = match pieces {
            1 => ticket.with_bytes(bytes),
            pieces => ticket.with_bytes(PIECE).in_steps(pieces),
        };
        fail::fail_point!("publication-queues");
        let queued = queue.enqueue(ticket.on(id), run, done);
        drop(state);
        if let Err(refusal) = queued {
            refusal.tell();
        }
    }

    fn note_published(&self, node: &Arc<OpenNode>, pending: &Pending, source: Source) {
        let mut state = node.lock();
        match source {
            Source::Own(fh) => {
                if let Some(own) = state.handles.get_mut(&fh).and_then(|h| h.own.as_mut()) {
                    own.note_published(pending.edits, pending.taken);
                }
            }
            Source::Shared => {
                if let Some(shared) = &mut state.shared {
                    shared.note_published(pending.edits, pending.taken);
                    if !shared.is_unpublished() {
                        // What is written from here on edits it.
                        shared.publication = Publication::InPlace;
                    }
                }
            }
            Source::Appended => {
                if let Some(shared) = &mut state.shared {
                    shared.note_appended(pending.edits, pending.taken);
                    if !shared.is_unstored() {
                        shared.publication = Publication::InPlace;
                    }
                }
            }
            Source::Nobody => {}
        }
        for (fh, other) in &mut state.handles {
            if let Some(own) = other.own.as_mut().filter(|_| source != Source::Own(*fh)) {
                own.note_overtaken();
            }
        }
        let of_shared = matches!(source, Source::Shared | Source::Appended);
        let replaced = !of_shared && pending.publication == Publication::Replacement;
        let idle = !state.has_writers_in_place();
        // A replacement leaves an in-place draft with changes of its own alone: if that is
        // published later, it wins whole. One without changes begins anew with the new content.
        let is_over = |shared: &Draft| match replaced {
            true => !shared.is_unstored(),
            false => idle && !shared.is_unpublished(),
        };
        if state.shared.as_ref().is_some_and(is_over) {
            state.shared = None;
        }
        if replaced && let Some(shared) = &mut state.shared {
            shared.note_overtaken();
        }
        if state.paged {
            drop(state);
            self.kernel.drop_pages(node.id);
        }
    }

    /// A publication is over: those who waited for it go on.
    fn settle(&self, node: &Arc<OpenNode>) {
        let mut state = node.lock();
        state.publishing = state.publishing.saturating_sub(1);
        if state.publishing == 0 {
            self.watch_appended(node.id, &mut state);
        }
        while let Some(waiting) = state.take_waiting() {
            drop(state);
            for then in waiting {
                then();
            }
            state = node.lock();
            state.resuming = false;
        }
        drop(state);
        self.reaping.tidy(node.id);
    }

    /// The last descriptor of a handle was closed.
    pub fn release(self: &Arc<Self>, fh: FileHandle) {
        let Some(handle) = self.table.take(fh) else {
            return;
        };
        let node = Arc::clone(&handle.node);
        let mut state = node.lock();
        if let Some((pending, source, whose)) = self.left_behind(node.id, &mut state, fh) {
            self.publish_unattended(&node, state, pending, (source, whose), RETRIES);
        } else {
            drop(state);
        }
        let paged = node.lock().paged;
        if paged {
            self.kernel.drop_pages(node.id);
        }
        self.reaping.tidy(node.id);
    }

    /// Takes a handle out that goes: what it leaves to be published.
    fn left_behind(
        &self,
        node: NodeId,
        state: &mut NodeState,
        fh: FileHandle,
    ) -> Option<(Pending, Source, Whose)> {
        let is_spoiled = state.is_spoiled(fh);
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
            self.spoiled(node);
            let failed = &self.counters.failed_publications;
            failed.fetch_add(1, Ordering::Relaxed);
        }
        if pending.is_none() && !state.has_writers_in_place() && state.publishing == 0 {
            state.shared = None;
        }
        pending
    }

    /// Publishes what nobody waits for: a failure is tried again, then logged and counted.
    pub(super) fn publish_unattended(
        self: &Arc<Self>,
        node: &Arc<OpenNode>,
        mut state: MutexGuard<'_, NodeState>,
        pending: Pending,
        (source, whose): (Source, Whose),
        retries: u32,
    ) {
        // Until it has come to an end, retries and all: whoever opens the file waits for it.
        state.publishing += 1;
        if let Ok(now) = self.vault.node(node.id)
            && let Ok(file) = now.file()
        {
            pending.tried_over.store(file.version, Ordering::Relaxed);
        }
        let fs = Arc::clone(self);
        let again = Arc::clone(node);
        let mut kept = pending.clone();
        let done: Done<()> = Box::new(move |outcome| match outcome {
            Ok(()) => {
                drop(kept);
                fs.settle(&again);
            }
            // The file was removed meanwhile, and its content with it, or has a newer one.
            Err(Errno(libc::ENOENT | libc::ESTALE)) => {
                fs.drop_idle_draft(&again);
                fs.settle(&again);
            }
            Err(Errno(errno)) if retries == 0 || fs.kernel.has_ended() => {
                fs.counters
                    .failed_publications
                    .fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    "what was last written to node {} could not be stored, and nobody was waiting \
                     for it (error {errno})",
                    again.id
                );
                fs.drop_idle_draft(&again);
                fs.settle(&again);
            }
            Err(_) => {
                // Not what is current now: somebody may have been told since that his is.
                let tried_over = kept.tried_over.load(Ordering::Relaxed);
                kept.only_over.get_or_insert(tried_over);
                let (lost_fs, lost) = (Arc::clone(&fs), Arc::clone(&again));
                let retry = move || {
                    std::thread::sleep(RETRY_AFTER);
                    let state = again.lock();
                    fs.publish_unattended(&again, state, kept, (source, whose), retries - 1);
                    fs.settle(&again);
                };
                if std::thread::Builder::new()
                    .name("retry".into())
                    .spawn(retry)
                    .is_err()
                {
                    tracing::error!("what was last written to a node is lost: no thread to retry");
                    lost_fs.settle(&lost);
                }
            }
        });
        self.publish(node, state, pending, (source, Awaited::No(whose)), done);
    }

    fn drop_idle_draft(&self, node: &Arc<OpenNode>) {
        let mut state = node.lock();
        if !state.has_writers_in_place() {
            state.shared = None;
        }
    }
}

/// What could not be stored is not tried again at once.
fn put_off(node: &OpenNode, source: Source) {
    if source == Source::Appended
        && let Some(shared) = &mut node.lock().shared
    {
        shared.put_off();
    }
}

/// Whether a FLUSH from `pid` comes from the process that opened the handle.
fn is_opener(handle: &Handle, pid: u32, by_owner: bool) -> bool {
    match (handle.opener, process::thread_group(pid)) {
        (Some(opener), Some(closer)) => opener == closer,
        (_, _) => by_owner,
    }
}
