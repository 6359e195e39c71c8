//! Waits until a node's publications are stored, so that a later open finds them.

use std::sync::Arc;

use crate::store::NodeId;

use super::kernel::Kernel;
use super::table::Table;

/// Waits for publications.
pub(super) struct PublicationWait {
    pub(super) table: Arc<Table>,
    pub(super) kernel: Arc<Kernel>,
}

impl PublicationWait {
    /// Runs `then` now, or after the publications of `node` under way.
    pub(super) fn when_stored(&self, node: NodeId, then: impl FnOnce() + Send + 'static) {
        if let Some(open) = self.table.node(node) {
            let mut state = open.lock();
            if state.may_be_closed()
                && let Some(transport) = self.kernel.transport()
            {
                drop(state);
                transport.await_releases();
                state = open.lock();
            }
            if state.publishing > 0 {
                return state.wait(then);
            }
        }
        then();
    }
}
