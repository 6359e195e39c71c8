//! Publishes the data appended to a file that stays open, when it is due (see `appends.rs`).

use std::sync::Arc;

use crate::store::NodeId;

use super::appends::Appends;
use super::draft::Draft;
use super::nodes::Nodes;
use super::publish::{Awaited, Pending, Publisher, Source};
use super::table::Table;
use super::{Done, Errno};

/// Publishes appended data, as the module describes.
pub(super) struct Appended {
    pub(super) table: Arc<Table>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) appends: Arc<Appends>,
    pub(super) publisher: Arc<Publisher>,
}

impl Appended {
    /// Publishes the data appended to a node, if the draft has no other change and it is due.
    pub(super) fn publish(&self, id: NodeId) {
        let Some(node) = self.table.node(id) else {
            return;
        };
        let mut state = node.lock();
        state.is_watched = false;
        let since = state.shared.as_ref().and_then(Draft::appended_since);
        let Some(since) = since else { return };
        // The publication under way takes care of the rest afterwards.
        if state.publishing > 0 {
            return;
        }
        if !self.appends.is_due(since) {
            return self.appends.watch(id, &mut state);
        }
        let Some(draft) = &mut state.shared else {
            return;
        };
        let Ok(found) = self.nodes.stored_or_held(id) else {
            draft.put_off();
            return self.appends.watch(id, &mut state);
        };
        // A file without a name is lost with its last close anyway.
        let Some(file) = found.file().ok().filter(|_| found.attributes.links > 0) else {
            return;
        };
        let pending = Pending::appended(draft, file.version);
        let whose = state.user_in_place();
        let appends = Arc::clone(&self.appends);
        let done: Done<()> = Box::new(move |outcome| match outcome {
            // Another publication came first: the rest is checked again later.
            Err(Errno(libc::ESTALE)) => {}
            Ok(()) => appends.note_success(),
            Err(Errno(errno)) => {
                if appends.note_failure() {
                    tracing::warn!(
                        "what was appended to node {id} could not be stored (error {errno}); it is \
                         tried again, and a close or fsync tells its program"
                    );
                }
            }
        });
        self.publisher.publish(
            &node,
            state,
            pending,
            (Source::Appended, Awaited::No(whose)),
            done,
        );
    }
}
