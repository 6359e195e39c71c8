//! The end of a mount: what is left of what programs have written, and when it is all on disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::vault::{Publication, VaultError};

use super::handles::{NodeState, OpenNode};
use super::publish::{Pending, RETRIES, RETRY_AFTER, Source};
use super::queue::Whose;
use super::{FileHandle, FileSystem};

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

/// How long the end of a mount waits beyond the tries.
const PATIENCE: Duration = Duration::from_secs(10);

/// A file system of which what was left is published, as far as that could be done.
#[derive(Clone, Copy, Debug)]
#[must_use = "it is to be closed"]
pub(super) struct Drained {
    ending: Ending,
    /// Publications that had failed before.
    failed: u64,
}

impl FileSystem {
    /// Publishes what is left if the mount ended in an orderly way, and waits for what is being
    /// published.
    pub(super) fn drain(self: &Arc<Self>, ending: Ending) -> Drained {
        let failed = self.counters.failed_publications.load(Ordering::Relaxed);
        self.appends.stop();
        self.vault.stop_counting();
        if ending != Ending::Aborted {
            self.publish_all(ending);
        }
        self.await_publications();
        Drained { ending, failed }
    }

    /// Makes everything durable, and remembers how far the vault has come.
    ///
    /// # Errors
    /// When something could not be published or made durable.
    pub(super) fn close(&self, drained: Drained) -> Result<(), VaultError> {
        let Drained { ending, failed } = drained;
        self.kernel.end();
        self.touches.end("the mount has ended");
        if let Some(follower) = self.follower.get() {
            follower.stop();
        }
        for routine in self.routines.get().into_iter().flatten() {
            routine.stop();
        }
        if !self.commits.close() {
            return Ok(());
        }
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
            // In the order in which they were opened, so that the last opened wins; what is edited in
            // place comes last.
            let mut handles: Vec<_> = node.lock().handles.keys().copied().collect();
            handles.sort_unstable();
            for fh in handles.into_iter().map(Some).chain([None]) {
                let state = node.lock();
                if let Some((pending, source, whose)) = left_of(&state, fh, ending) {
                    self.publisher.publish_unattended(&node, state, pending, (source, whose), 0);
                }
            }
        }
    }
}

/// What is still to be published of a handle's own draft, or of the one that is edited in place.
fn left_of(
    state: &NodeState,
    handle: Option<FileHandle>,
    ending: Ending,
) -> Option<(Pending, Source, Whose)> {
    let Some(fh) = handle else {
        let shared = state.shared.as_ref()?;
        // One that was cut to nothing is a replacement, too.
        let is_whole = ending == Ending::Orderly || shared.publication == Publication::InPlace;
        let counts = shared.is_unpublished() && is_whole && !shared.is_spoiled;
        return counts.then(|| (Pending::of(shared), Source::Shared, state.user_in_place()));
    };
    let handle = state.handles.get(&fh)?;
    let own = handle.own.as_ref()?;
    let counts = own.is_unpublished() && ending == Ending::Orderly && !handle.spoiled;
    counts.then(|| (Pending::of(own), Source::Own(fh), handle.whose))
}
