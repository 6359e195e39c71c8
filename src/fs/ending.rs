//! The end of a mount, and what is left then of what programs have written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::vault::{Publication, Whose};

use super::FileHandle;
use super::handles::{NodeState, OpenNode};
use super::publish::{Pending, Publisher, RETRIES, RETRY_AFTER, Source};
use super::table::Table;

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

/// What programs have written and nobody has published.
pub(super) struct LeftOver {
    pub(super) table: Arc<Table>,
    pub(super) publisher: Arc<Publisher>,
}

impl LeftOver {
    /// Waits for what is being published or tried again; bounded, since each is tried so often.
    pub(super) fn await_publications(&self) {
        let deadline = Instant::now() + RETRY_AFTER * (RETRIES + 1) + PATIENCE;
        let is_busy = |node: &Arc<OpenNode>| node.lock().publishing > 0;
        while self.table.all_nodes().iter().any(is_busy) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Publishes what was written and not published yet, handles still being open.
    pub(super) fn publish_all(&self, ending: Ending) {
        for node in self.table.all_nodes() {
            // In the order in which they were opened, so that the last opened wins; what is edited in
            // place comes last.
            let mut handles: Vec<_> = node.lock().handles.keys().copied().collect();
            handles.sort_unstable();
            for fh in handles.into_iter().map(Some).chain([None]) {
                let state = node.lock();
                if let Some((pending, source, whose)) = left_of(&state, fh, ending) {
                    self.publisher
                        .publish_unattended(&node, state, pending, (source, whose), 0);
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
