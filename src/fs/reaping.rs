//! Deletes what nothing needs any more: nodes without a name, and versions before the current one.

use std::sync::Arc;

use crate::store::NodeId;

use super::commits::Commits;
use super::nodes::Nodes;
use super::table::{Reaper, Table};

/// Deletes nodes and versions, as the module describes.
pub(super) struct Reaping {
    pub(super) table: Arc<Table>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) commits: Arc<Commits>,
}

impl Reaping {
    /// Forgets a node without handles, and reaps the versions kept for them. A node without a name
    /// that the kernel knows is deleted when the kernel forgets it.
    pub(super) fn tidy(&self, id: NodeId) {
        let Some(kept) = self.table.forget_if_idle(id) else {
            return;
        };
        let goes = match self.nodes.is_nameless(id) {
            true => !self.table.keep_if_known(id),
            false => kept,
        };
        if goes {
            self.reap(id);
        }
    }

    /// Deletes a node without a name, or versions before the current one that no handle needs.
    pub(super) fn reap(&self, id: NodeId) {
        let Ok(queue) = self.commits.queue() else {
            return;
        };
        let reaper = self.reaper();
        queue.submit_later(
            move |tx| {
                let open = reaper.table.node(id);
                let (mut keep, publishes) = open
                    .map(|node| {
                        let mut state = node.lock();
                        (state.keep_pinned(), state.publishing > 0)
                    })
                    .unwrap_or_default();
                // The store may already have pieces of the next version.
                if publishes {
                    keep.extend(tx.begun_version(id)?);
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
}
