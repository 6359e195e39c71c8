//! When a draft becomes a version.
//!
//! A FLUSH publishes written data only if it comes from the process that opened the handle: a
//! child that inherited the descriptor, or the duplicate that a shell closes before it writes,
//! publishes nothing. `fsync` publishes whatever there is. The last RELEASE publishes what is
//! still unpublished, and has nobody to tell when that fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::store::NodeId;
use crate::vault::{PIECE, Publication, Timestamp, Tx, VaultError, pieces_of};

use super::blocks::Image;
use super::draft::Draft;
use super::handles::{Handle, OpenNode, Reaper};
use super::queue::{Ticket, Whose};
use super::{Caller, Done, Errno, FileHandle, FileSystem, control, process};

/// How a mount ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was unmounted: the kernel has discarded closes that it had queued, so what is left is
    /// published.
    Orderly,
    /// Files are still open, and their programs will not be waited for any longer. A replacement
    /// that is not complete must not take the place of what is; edits in place are kept.
    CutOff,
    /// The connection was cut: only what was flushed counts.
    Aborted,
}

/// How often a publication is tried again that nobody waits for, and how long after.
const RETRIES: u32 = 3;
const RETRY_AFTER: Duration = Duration::from_millis(300);
/// How long the end of a mount waits beyond that.
const PATIENCE: Duration = Duration::from_secs(10);

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
}

impl Pending {
    fn of(draft: &Draft) -> Self {
        Self {
            image: Arc::new(draft.image().clone()),
            taken: Instant::now(),
            publication: draft.publication,
            modified: Some(draft.modified.unwrap_or(draft.edited_at)),
            edits: draft.edits(),
            only_over: None,
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

/// Whether a program waits until it is published, and whose share of the disk's time that takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    Yes(Whose),
    No(Whose),
}

impl FileSystem {
    /// A descriptor was closed, one of perhaps several of this handle.
    pub fn flush(self: &Arc<Self>, fh: FileHandle, pid: u32, lock_owner: u64, done: Done<()>) {
        if control::is_control_handle(fh) {
            return done(Ok(()));
        }
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
        let is_own = own.own.is_some();
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
        let Some(pending) = state.draft_of(fh).map(|draft| Pending::of(draft)) else {
            return done(Ok(()));
        };
        state.publishing += 1;
        drop(state);
        let source = if is_own {
            Source::Own(fh)
        } else {
            Source::Shared
        };
        self.publish(&handle.node, pending, source, Awaited::Yes(whose), done);
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
        if control::is_control_handle(fh) {
            return done(Ok(()));
        }
        let handle = match self.table.get(fh) {
            Ok(handle) => handle,
            Err(error) => return done(Err(error)),
        };
        let mut state = handle.node.lock();
        if state.is_spoiled(fh) {
            drop(state);
            return done(Err(self.spoiled(handle.node.id)));
        }
        let is_own = state.handles.get(&fh).is_some_and(|h| h.own.is_some());
        let whose = state.user_of(fh);
        let draft = state.draft_of(fh).filter(|draft| draft.is_unpublished());
        match draft.map(|draft| Pending::of(draft)) {
            Some(pending) => {
                state.publishing += 1;
                drop(state);
                let source = if is_own {
                    Source::Own(fh)
                } else {
                    Source::Shared
                };
                self.publish(&handle.node, pending, source, Awaited::Yes(whose), done);
            }
            None => {
                drop(state);
                self.barrier_by(Ticket::awaited(whose).on(handle.node.id), done);
            }
        }
    }

    /// Makes durable what was acknowledged before.
    pub fn barrier(&self, caller: Caller, done: Done<()>) {
        self.barrier_by(Ticket::awaited(caller.whose()), done);
    }

    fn barrier_by(&self, ticket: Ticket, done: Done<()>) {
        match &self.writer {
            Some(writer) => writer.barrier(ticket, move |outcome| done(super::told(outcome))),
            // A reader has nothing to make durable.
            None => done(Ok(())),
        }
    }

    /// Publishes the shared draft now, for truncate(2), which has no handle to close.
    pub(super) fn publish_shared(
        self: &Arc<Self>,
        node: &Arc<OpenNode>,
        whose: Whose,
        done: Done<()>,
    ) {
        let mut state = node.lock();
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
        state.publishing += 1;
        drop(state);
        self.publish(node, pending, Source::Shared, Awaited::Yes(whose), done);
    }

    /// The caller has raised `publishing`.
    pub(super) fn publish(
        self: &Arc<Self>,
        node: &Arc<OpenNode>,
        pending: Pending,
        source: Source,
        awaited: Awaited,
        done: Done<()>,
    ) {
        let writer = match self.writer() {
            Ok(writer) => writer,
            Err(error) => {
                put_off(node, source);
                self.settle(node);
                return done(Err(error));
            }
        };
        let keep = node.lock().keep_pinned();
        let id = node.id;
        let bytes = pending.image.len();
        let pieces = pieces_of(bytes);
        let job = pending.clone();
        let fs = Arc::clone(self);
        let node = Arc::clone(node);
        let (place, open) = (Arc::clone(self), Arc::clone(&node));
        // Where there is little room, a content that does not fit must leave the room that there is.
        let mut in_pieces = pieces > 1;
        let run = move |tx: &mut Tx<'_>, piece: u32| {
            if let Some(version) = job.only_over
                && tx.current_version(id)? != version
            {
                return Ok(None);
            }
            let parts = job.image.parts();
            let (publication, modified) = (job.publication, job.modified);
            if piece + 1 < pieces {
                if piece == 0 {
                    in_pieces = place.has_room_for(bytes);
                }
                if in_pieces {
                    tx.stage(id, &parts, piece)?;
                }
                return Ok(None);
            }
            let published = match in_pieces {
                false => tx.publish_parts(id, &parts, publication, modified, &keep),
                true => {
                    // What is read by now, which others may have begun since the first piece.
                    let keep = open.lock().keep_pinned();
                    tx.publish_staged(id, &parts, publication, modified, &keep)
                }
            };
            published.map(Some)
        };
        let done = move |outcome: Result<Option<u64>, VaultError>| {
            let published = matches!(outcome, Ok(Some(_)));
            let is_left = outcome.is_err() && pieces > 1;
            match outcome {
                Ok(Some(_)) => {
                    fs.counters.published.fetch_add(1, Ordering::Relaxed);
                    fs.note_published(&node, &pending, source);
                    if matches!(source, Source::Shared | Source::Appended)
                        && let Ok(content) = fs.node(id).and_then(|now| Ok(now.file()?.replaced))
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
                fs.reap(id);
            }
            done(match super::told(outcome) {
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err(Errno(libc::ESTALE)),
                Err(error) => Err(error),
            });
            // Whoever is woken reads what was published, and nobody has waited for that.
            if published {
                fs.wake_watchers(id);
            }
        };
        let ticket = match awaited {
            Awaited::Yes(whose) => Ticket::awaited(whose),
            // What its program does next must not come before it.
            Awaited::No(whose) => Ticket::unattended(whose),
        };
        let ticket = ticket.on(id).with_bytes(bytes.min(PIECE));
        writer.submit_in_steps(ticket.in_steps(pieces), run, done);
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
            self.drop_pages(node.id);
        }
    }

    /// A publication is over: those who waited for it go on.
    fn settle(&self, node: &Arc<OpenNode>) {
        let waiting = {
            let mut state = node.lock();
            state.publishing = state.publishing.saturating_sub(1);
            match state.publishing {
                0 => {
                    self.watch_appended(node.id, &mut state);
                    std::mem::take(&mut state.waiting)
                }
                _ => Vec::new(),
            }
        };
        for then in waiting {
            then();
        }
        self.tidy(node.id);
    }

    /// The last descriptor of a handle was closed.
    pub fn release(self: &Arc<Self>, fh: FileHandle) {
        if control::is_control_handle(fh) {
            return self.release_control(fh);
        }
        let Some(handle) = self.table.take(fh) else {
            return;
        };
        let node = Arc::clone(&handle.node);
        if let Some((pending, source, whose)) = self.left_behind(&node, fh) {
            self.publish_unattended(&node, pending, (source, whose), RETRIES);
        }
        let paged = node.lock().paged;
        if paged {
            self.drop_pages(node.id);
        }
        self.tidy(node.id);
    }

    /// What a handle that goes leaves to be published; raises `publishing` if there is anything, in
    /// one step with taking it out: a node with neither is forgotten.
    fn left_behind(&self, node: &OpenNode, fh: FileHandle) -> Option<(Pending, Source, Whose)> {
        let mut state = node.lock();
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
            self.spoiled(node.id);
            let failed = &self.counters.failed_publications;
            failed.fetch_add(1, Ordering::Relaxed);
        }
        if pending.is_some() {
            state.publishing += 1;
        } else if !state.has_writers_in_place() && state.publishing == 0 {
            state.shared = None;
        }
        pending
    }

    /// Publishes what nobody waits for: a failure is tried again, then logged and counted.
    fn publish_unattended(
        self: &Arc<Self>,
        node: &Arc<OpenNode>,
        pending: Pending,
        (source, whose): (Source, Whose),
        retries: u32,
    ) {
        // Until it has come to an end, retries and all: whoever opens the file waits for it.
        node.lock().publishing += 1;
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
            Err(Errno(errno)) if retries == 0 || fs.ending.load(Ordering::Relaxed) => {
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
                if kept.only_over.is_none() {
                    let file = fs.vault.node(again.id).and_then(|node| Ok(*node.file()?));
                    kept.only_over = file.ok().map(|file| file.version);
                }
                let (lost_fs, lost) = (Arc::clone(&fs), Arc::clone(&again));
                let retry = move || {
                    std::thread::sleep(RETRY_AFTER);
                    again.lock().publishing += 1;
                    fs.publish_unattended(&again, kept, (source, whose), retries - 1);
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
        self.publish(node, pending, source, Awaited::No(whose), done);
    }

    fn drop_idle_draft(&self, node: &Arc<OpenNode>) {
        let mut state = node.lock();
        if !state.has_writers_in_place() {
            state.shared = None;
        }
    }

    /// Forgets a node that nothing is open of, and reaps what was kept for its handles. One without
    /// a name that the kernel knows goes when it is forgotten.
    pub(super) fn tidy(&self, id: NodeId) {
        let Some(kept) = self.table.forget_if_idle(id) else {
            return;
        };
        let goes = match self.is_nameless(id) {
            true => !self.table.keep_if_known(id),
            false => kept,
        };
        if goes {
            self.reap(id);
        }
    }

    /// Deletes a node without a name, or versions before the current one, that no handle needs.
    pub(super) fn reap(&self, id: NodeId) {
        let Ok(writer) = self.writer() else { return };
        let reaper = self.reaper();
        writer.submit_later(
            move |tx| {
                let open = reaper.table.node(id);
                let (mut keep, publishes) = open
                    .map(|node| {
                        let mut state = node.lock();
                        (state.keep_pinned(), state.publishing > 0)
                    })
                    .unwrap_or_default();
                // Pieces of it may be there already.
                if publishes && let Ok(version) = tx.current_version(id) {
                    keep.push(version + 1);
                }
                tx.reap(id, &keep, &reaper)
            },
            move |outcome| {
                if let Err(error) = outcome {
                    tracing::warn!("left-overs of node {id} stay until the next mount: {error}");
                }
            },
        );
    }

    pub(super) fn reaper(&self) -> Reaper {
        Reaper::new(Arc::clone(&self.table))
    }

    /// Ends the mount: publishes what is left if it ended in an orderly way, makes everything
    /// durable, and remembers how far the vault has come.
    ///
    /// # Errors
    /// When something could not be published or made durable.
    pub fn finish(self: &Arc<Self>, ending: Ending) -> Result<(), VaultError> {
        let failed = self.counters.failed_publications.load(Ordering::Relaxed);
        self.appends.stop();
        self.keeper.begin_to_stop();
        self.vault.stop_counting();
        if ending != Ending::Aborted {
            self.publish_all(ending);
        }
        self.await_publications();
        self.keeper.stop();
        self.ending.store(true, Ordering::Relaxed);
        self.touches.end("the mount has ended");
        if let Some(follower) = self.follower.get() {
            follower.stop();
        }
        for routine in self.routines.get().into_iter().flatten() {
            routine.stop();
        }
        let Some(writer) = &self.writer else {
            return Ok(());
        };
        writer.close();
        // Nobody comes back to what was open, and what the kernel has forgotten last it may not have
        // told any more.
        if ending != Ending::Aborted
            && !self.vault.is_condemned()
            && let Err(error) = self.vault.reap_orphans()
        {
            tracing::warn!("left-overs stay until the next mount: {error}");
        }
        self.vault.sync()?;
        if let Err(error) = self.vault.record_findings() {
            tracing::error!("the history does not say what was found: {error}");
        }
        if let Err(error) = self.vault.keep_anchor() {
            tracing::warn!("{error}; this host does not remember how far the vault has come");
        }
        if self.counters.failed_publications.load(Ordering::Relaxed) > failed {
            return Err(VaultError::Unpublished);
        }
        Ok(())
    }

    /// Waits for what is being published or tried again; bounded, since each is tried so often.
    fn await_publications(&self) {
        let deadline = Instant::now() + RETRY_AFTER * (RETRIES + 1) + PATIENCE;
        let is_busy = |node: &Arc<OpenNode>| node.lock().publishing > 0;
        while self.table.all_nodes().iter().any(is_busy) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Publishes what was written and not published yet, handles still being open.
    fn publish_all(self: &Arc<Self>, ending: Ending) {
        for node in self.table.all_nodes() {
            let mut state = node.lock();
            let mut left = Vec::new();
            for (fh, handle) in &state.handles {
                let own = handle.own.as_ref().filter(|own| own.is_unpublished());
                let is_whole = ending == Ending::Orderly && !handle.spoiled;
                if let Some(own) = own.filter(|_| is_whole) {
                    left.push((*fh, Pending::of(own), Source::Own(*fh), handle.whose));
                }
            }
            // In the order in which they were opened, so that the last opened wins.
            left.sort_by_key(|(fh, ..)| *fh);
            let in_place = state.user_in_place();
            let shared = state.shared.as_ref().filter(|s| s.is_unpublished());
            // One that was cut to nothing is a replacement, too.
            let is_whole = |shared: &Draft| {
                ending == Ending::Orderly || shared.publication == Publication::InPlace
            };
            let shared = shared.filter(|shared| is_whole(shared) && !shared.is_spoiled);
            if let Some(shared) = shared {
                left.push((0, Pending::of(shared), Source::Shared, in_place));
            }
            state.publishing += left.len() as u32;
            drop(state);
            for (_, pending, source, whose) in left {
                self.publish_unattended(&node, pending, (source, whose), 0);
            }
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
