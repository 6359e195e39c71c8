//! Waiting until what is being published of a node is stored: who opens it then finds it.

use std::sync::Arc;

use crate::store::NodeId;

use super::kernel::Kernel;
use super::table::Table;

/// See the module.
pub(super) struct Settling {
    pub(super) table: Arc<Table>,
    pub(super) kernel: Arc<Kernel>,
}

impl Settling {
    /// Runs `then` now, or when the publications of `node` that are under way are over.
    pub(super) fn when_settled(&self, node: NodeId, then: impl FnOnce() + Send + 'static) {
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
