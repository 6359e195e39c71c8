//! The end of a mount, and the data that programs have written and not published by then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::vault::{Publication, Whose};

use super::FileHandle;
use super::handles::{NodeState, OpenNode};
use super::publish::{Pending, Publisher, RETRIES, RETRY_AFTER, Source};
use super::table::Table;

/// The way in which a mount ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was unmounted. The kernel has discarded queued closes, so all data left is published.
    Orderly,
    /// Files are still open, and the daemon no longer waits for their programs. An incomplete
    /// replacement must not replace the published content; edits in place are kept.
    CutOff,
    /// The connection was cut: only flushed data counts.
    Aborted,
}

/// How long the end of a mount waits beyond all retries.
const PATIENCE: Duration = Duration::from_secs(10);

/// The data that programs have written and not published.
pub(super) struct LeftOver {
    pub(super) table: Arc<Table>,
    pub(super) publisher: Arc<Publisher>,
}

impl LeftOver {
    /// Waits for publications and their retries, whose number is limited.
    pub(super) fn await_publications(&self) {
        let deadline = Instant::now() + RETRY_AFTER * (RETRIES + 1) + PATIENCE;
        let is_busy = |node: &Arc<OpenNode>| node.lock().publishing > 0;
        while self.table.all_nodes().iter().any(is_busy) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Publishes the data of handles that are still open.
    pub(super) fn publish_all(&self, ending: Ending) {
        for node in self.table.all_nodes() {
            // Go in the order of opening, so that the last opened handle wins; the in-place draft
            // comes last.
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

/// The rest to publish of a handle's own draft, or of the in-place draft.
fn left_of(
    state: &NodeState,
    handle: Option<FileHandle>,
    ending: Ending,
) -> Option<(Pending, Source, Whose)> {
    let Some(fh) = handle else {
        let shared = state.shared.as_ref()?;
        // A draft that was emptied is a replacement, too.
        let is_whole = ending == Ending::Orderly || shared.publication == Publication::InPlace;
        let counts = shared.is_unpublished() && is_whole && !shared.is_spoiled;
        return counts.then(|| (Pending::of(shared), Source::Shared, state.user_in_place()));
    };
    let handle = state.handles.get(&fh)?;
    let own = handle.own.as_ref()?;
    let counts = own.is_unpublished() && ending == Ending::Orderly && !handle.spoiled;
    counts.then(|| (Pending::of(own), Source::Own(fh), handle.whose))
}
