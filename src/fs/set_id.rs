//! Set-id bits, which are cleared when an unprivileged user changes a content.

use std::sync::Arc;

use crate::store::NodeId;
use crate::vault::{AttributeChange, Kind, Ticket, Whose};

use super::commits::Commits;
use super::nodes::Nodes;
use super::table::Table;
use super::{Caller, Done, FileHandle};

/// Clears set-id bits, as the module describes.
pub(super) struct SetIdBits {
    pub(super) table: Arc<Table>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) commits: Arc<Commits>,
}

impl SetIdBits {
    /// Clears set-id bits before `done`, for calls that change a content without a write.
    pub(super) fn changed_by<T: Send + 'static>(
        self: &Arc<Self>,
        caller: Caller,
        fh: FileHandle,
        done: Done<T>,
    ) -> Done<T> {
        match self.table.get(fh) {
            Ok(handle) => self.cleared_by(caller, handle.node.id, done),
            Err(_) => done,
        }
    }

    /// Returns a `done` that first clears set-id bits if the caller is not privileged.
    pub(super) fn cleared_by<T: Send + 'static>(
        self: &Arc<Self>,
        caller: Caller,
        ino: NodeId,
        done: Done<T>,
    ) -> Done<T> {
        match caller.uid {
            0 => done,
            _ => self.cleared(caller.whose(), ino, done),
        }
    }

    /// Clears set-id bits before `done`, after a write by an unprivileged user.
    pub(super) fn cleared<T: Send + 'static>(
        self: &Arc<Self>,
        whose: Whose,
        ino: NodeId,
        done: Done<T>,
    ) -> Done<T> {
        let bits = Arc::clone(self);
        Box::new(move |outcome| bits.clear(whose, ino, Box::new(move || done(outcome))))
    }

    fn clear(&self, whose: Whose, ino: NodeId, then: Box<dyn FnOnce() + Send>) {
        let Ok(node) = self.nodes.stored_or_held(ino) else {
            return then();
        };
        let mode = node.attributes.mode;
        let dropped = without_set_id(mode);
        // Writes go to regular files only.
        if dropped == mode || node.kind != Kind::File {
            return then();
        }
        let Ok(queue) = self.commits.queue() else {
            return then();
        };
        let change = AttributeChange {
            mode: Some(dropped),
            ..Default::default()
        };
        queue.submit(
            Ticket::quick(whose).on(ino),
            move |tx| tx.set_attributes(ino, &change),
            move |outcome| {
                if let Err(error) = outcome {
                    tracing::error!("set-id bits of node {ino} could not be cleared: {error}");
                }
                then();
            },
        );
    }
}

/// `mode` without set-user-id, and without set-group-id unless that only marks locking.
pub(super) fn without_set_id(mode: u32) -> u32 {
    let group_executes = mode & 0o010 != 0;
    mode & !0o4000 & if group_executes { !0o2000 } else { !0 }
}
