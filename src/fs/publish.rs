//! Publishes a draft as a version: takes its content at one change, queues it, and reports the
//! result to waiting programs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::store::NodeId;
use crate::sync::MutexGuard;
use crate::vault::{
    PIECE, Publication, Ticket, Timestamp, Tx, Vault, VaultError, Whose, pieces_of, publish_staged,
    stage_piece,
};

use super::appends::Appends;
use super::blocks::Image;
use super::commits::Commits;
use super::counters::Counters;
use super::draft::Draft;
use super::errno::file_of;
use super::failures::Failures;
use super::handles::{NodeState, OpenNode};
use super::kernel::Kernel;
use super::nodes::Nodes;
use super::reaping::Reaping;
use super::room::DiskRoom;
use super::watchers::Watchers;
use super::{Done, Errno, FileHandle};

/// Number of retries of a publication that nobody waits for, and the pause before each.
pub(super) const RETRIES: u32 = 3;
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(300);

/// A draft's content at one change, on its way to the store.
#[derive(Clone)]
pub(super) struct Pending {
    image: Arc<Image>,
    taken: Instant,
    publication: Publication,
    modified: Option<Timestamp>,
    edits: u64,
    /// In a retry: the only version that it may replace. A later version, whose program was told
    /// that it is published, stays.
    only_over: Option<u64>,
    /// The version that was current at the last attempt, or when it was queued.
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

    /// Data appended to `version`, which may replace no other version.
    pub(super) fn appended(draft: &Draft, version: u64) -> Self {
        Self {
            only_over: Some(version),
            ..Self::of(draft)
        }
    }
}

/// The draft to notify of the result.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Own(FileHandle),
    Shared,
    /// The shared draft, of which appended data is stored unasked.
    Appended,
    /// None: the draft is gone with its handle.
    Nobody,
}

/// Whether a program waits for the publication, and the user whose share of the disk's time it
/// uses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    Yes(Whose),
    No(Whose),
}

/// Publishes drafts, as the module describes.
pub(super) struct Publisher {
    pub(super) vault: Arc<Vault>,
    pub(super) failures: Arc<Failures>,
    pub(super) commits: Arc<Commits>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) reaping: Arc<Reaping>,
    pub(super) room: Arc<DiskRoom>,
    pub(super) counters: Arc<Counters>,
    pub(super) kernel: Arc<Kernel>,
    pub(super) appends: Arc<Appends>,
    pub(super) watchers: Arc<Watchers>,
}

impl Publisher {
    /// Publishes the shared draft now, for truncate(2), which has no handle whose close would
    /// publish it.
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
            return done(Err(spoiled(node.id)));
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

    /// Publishes the content taken from `node` under its lock `state`. It is queued before that
    /// lock is released, so a content taken later is stored later.
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
                self.finish(node);
                return done(Err(error));
            }
        };
        let keep = state.keep_pinned();
        let id = node.id;
        let bytes = pending.image.len();
        // If disk space is short, a content that does not fit must not use up the rest.
        let pieces = match pieces_of(bytes) {
            pieces if pieces > 1 && self.room.has_for(bytes) => pieces,
            _ => 1,
        };
        let in_pieces = if pieces > 1 { bytes } else { 0 };
        let all = &self.counters.in_pieces;
        all.fetch_add(in_pieces, Ordering::Relaxed);
        // Whether the store may have some of several pieces.
        let is_staged = (pieces > 1).then(Arc::<AtomicBool>::default);
        let has_staged = is_staged.clone();
        let job = pending.clone();
        let publisher = Arc::clone(self);
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
                if let Some(is_staged) = &is_staged {
                    is_staged.store(true, Ordering::Relaxed);
                }
                stage_piece(tx, id, &parts, piece)?;
                return Ok(None);
            }
            let published = match pieces {
                1 => tx.publish_parts(id, &parts, publication, modified, &keep),
                _ => {
                    // Ask for pins now: readers may have begun since the first piece.
                    let keep = open.lock().keep_pinned();
                    publish_staged(tx, id, &parts, publication, modified, &keep)
                }
            };
            published.map(Some)
        };
        let done = move |outcome: Result<Option<u64>, VaultError>| {
            let node = published_of;
            let published = matches!(outcome, Ok(Some(_)));
            let is_left = outcome.is_err()
                && has_staged.is_some_and(|has_staged| has_staged.load(Ordering::Relaxed));
            let all = &publisher.counters.in_pieces;
            all.fetch_sub(in_pieces, Ordering::Relaxed);
            match outcome {
                Ok(Some(_)) => {
                    publisher.counters.published.fetch_add(1, Ordering::Relaxed);
                    publisher.note_published(&node, &pending, source);
                    if matches!(source, Source::Shared | Source::Appended)
                        && let Ok(content) = publisher
                            .nodes
                            .stored_or_held(id)
                            .and_then(|now| Ok(file_of(&now)?.replaced))
                    {
                        node.lock().mapped().name_pages(content);
                    }
                }
                Ok(None) => {}
                Err(_) => put_off(&node, source),
            }
            // Otherwise the program's next write would have to copy blocks.
            drop(pending);
            if is_left {
                node.lock().leave_pieces();
            }
            publisher.finish(&node);
            // Not before a retry: only when that has ended.
            if is_left {
                publisher.reaping.reap(id);
            }
            done(match publisher.failures.to_errno(outcome) {
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err(Errno(libc::ESTALE)),
                Err(error) => Err(error),
            });
            // Wake watchers last: no program waits for that.
            if published {
                publisher.watchers.wake(id);
            }
        };
        let ticket = match awaited {
            Awaited::Yes(whose) => Ticket::awaited(whose),
            // The program's next request must not overtake it.
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
                        // Later writes edit the published content.
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
        // A replacement does not touch an in-place draft that has changes: if that is published
        // later, it wins as a whole. A draft without changes is dropped, and begins again with the
        // new content.
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

    /// Ends a publication, and continues the requests that waited for it.
    fn finish(&self, node: &Arc<OpenNode>) {
        let mut state = node.lock();
        state.publishing = state.publishing.saturating_sub(1);
        if state.publishing == 0 {
            self.appends.watch(node.id, &mut state);
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

    /// Publishes data that no program waits for: a failure is retried, then logged and counted.
    pub(super) fn publish_unattended(
        self: &Arc<Self>,
        node: &Arc<OpenNode>,
        mut state: MutexGuard<'_, NodeState>,
        pending: Pending,
        (source, whose): (Source, Whose),
        retries: u32,
    ) {
        // Opens of the file wait until this ends, with all its retries.
        state.publishing += 1;
        if let Ok(now) = self.vault.node(node.id)
            && let Ok(file) = now.file()
        {
            pending.tried_over.store(file.version, Ordering::Relaxed);
        }
        let publisher = Arc::clone(self);
        let again = Arc::clone(node);
        let mut kept = pending.clone();
        let done: Done<()> = Box::new(move |outcome| match outcome {
            Ok(()) => {
                drop(kept);
                publisher.finish(&again);
            }
            // The file was removed meanwhile, or has a newer content.
            Err(Errno(libc::ENOENT | libc::ESTALE)) => {
                publisher.drop_idle_draft(&again);
                publisher.finish(&again);
            }
            Err(Errno(errno)) if retries == 0 || publisher.kernel.has_ended() => {
                publisher
                    .counters
                    .failed_publications
                    .fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    "what was last written to node {} could not be stored when its last descriptor was \
                     closed ({}); only a close or fsync that failed before has told a program",
                    again.id,
                    Errno(errno).name()
                );
                publisher.drop_idle_draft(&again);
                publisher.finish(&again);
            }
            Err(_) => {
                // Not the version that is current now: its program may know by now that it is
                // published.
                let tried_over = kept.tried_over.load(Ordering::Relaxed);
                kept.only_over.get_or_insert(tried_over);
                let (last, lost) = (Arc::clone(&publisher), Arc::clone(&again));
                let retry = move || {
                    std::thread::sleep(RETRY_AFTER);
                    let state = again.lock();
                    publisher.publish_unattended(&again, state, kept, (source, whose), retries - 1);
                    publisher.finish(&again);
                };
                if std::thread::Builder::new()
                    .name("retry".into())
                    .spawn(retry)
                    .is_err()
                {
                    tracing::error!("what was last written to a node is lost: no thread to retry");
                    last.finish(&lost);
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

/// Delays the next attempt for data that could not be stored.
fn put_off(node: &OpenNode, source: Source) {
    if source == Source::Appended
        && let Some(shared) = &mut node.lock().shared
    {
        shared.put_off();
    }
}

/// The error for a draft that is not published because it may lack bytes written to a mapping.
pub(super) fn spoiled(node: NodeId) -> Errno {
    tracing::error!(
        "what was written to node {node} through a mapping is lost, and what was there stays: \
         another program emptied the file meanwhile; write it again"
    );
    Errno(libc::EIO)
}
