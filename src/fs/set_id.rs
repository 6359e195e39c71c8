//! Set-id bits, which go when somebody changes a content who is not privileged.

use std::sync::Arc;

use crate::store::NodeId;
use crate::vault::{AttributeChange, Kind, Ticket, Whose};

use super::commits::Commits;
use super::nodes::Nodes;
use super::table::Table;
use super::{Caller, Done, FileHandle};

/// See the module.
pub(super) struct SetIdBits {
    pub(super) table: Arc<Table>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) commits: Arc<Commits>,
}

impl SetIdBits {
    /// What writing does to set-id bits, for calls that change a content without writing: before
    /// `done`.
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

    /// `done`, once set-id bits are gone that somebody changes the content of who is not privileged.
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

    /// What every write does to set-id bits when the writer is not privileged: before `done`.
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
        // Whatever else is opened for writing is not written to.
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

/// `mode` without set-user-id, and without set-group-id where it is not a mere locking flag.
pub(super) fn without_set_id(mode: u32) -> u32 {
    let group_executes = mode & 0o010 != 0;
    mode & !0o4000 & if group_executes { !0o2000 } else { !0 }
}
