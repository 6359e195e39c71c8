//! Look-up of nodes by number.
//!
//! Beside a writer, a node that the kernel has just looked up may be gone. `ESTALE` makes the
//! kernel look up the path again, since another file may have the name by now.

use std::sync::Arc;

use crate::store::NodeId;
use crate::vault::{Node, Vault, VaultError};

use super::Errno;
use super::askers::Askers;
use super::failures::Failures;
use super::table::Table;

/// Look-up of nodes, as the module describes.
pub(super) struct Nodes {
    vault: Arc<Vault>,
    table: Arc<Table>,
    askers: Arc<Askers>,
    failures: Arc<Failures>,
}

impl Nodes {
    pub(super) fn new(
        vault: &Arc<Vault>,
        table: &Arc<Table>,
        askers: &Arc<Askers>,
        failures: &Arc<Failures>,
    ) -> Self {
        Self {
            vault: Arc::clone(vault),
            table: Arc::clone(table),
            askers: Arc::clone(askers),
            failures: Arc::clone(failures),
        }
    }

    /// The stored node.
    ///
    /// # Errors
    /// `ENOENT` when it is gone; beside a writer `ESTALE`.
    pub(super) fn stored(&self, id: NodeId) -> Result<Arc<Node>, Errno> {
        self.vault.node(id).map_err(|error| self.errno(error))
    }

    /// The stored node, or the one held for a thread that got `ESTALE`.
    ///
    /// # Errors
    /// As for [`stored`](Self::stored).
    pub(super) fn stored_or_held(&self, id: NodeId) -> Result<Arc<Node>, Errno> {
        self.stored(id).or_else(|error| match error {
            Errno(libc::ESTALE) => self.askers.node(id).ok_or(error),
            error => Err(error),
        })
    }

    /// The same, or the node as it was when it was opened.
    ///
    /// # Errors
    /// As for [`stored`](Self::stored).
    pub(super) fn stored_held_or_opened(&self, id: NodeId) -> Result<Arc<Node>, Errno> {
        self.stored_or_held(id).or_else(|error| match error {
            Errno(libc::ESTALE) => {
                let open = self.table.node(id);
                let opened = open.and_then(|open| {
                    let state = open.lock();
                    // A node stored without its extended attributes cannot answer for them.
                    state.opened.clone().filter(|_| !state.opened_bare)
                });
                opened
                    .map(|node| Arc::new(node.without_name()))
                    .ok_or(error)
            }
            error => Err(error),
        })
    }

    /// The errno of a failure to find a node that the kernel knows, which is noted.
    pub(super) fn errno(&self, error: VaultError) -> Errno {
        match error {
            VaultError::NotFound if self.vault.is_read_only() => Errno(libc::ESTALE),
            other => self.failures.errno(&other),
        }
    }

    /// Whether a node exists and has no name any more.
    pub(super) fn is_nameless(&self, id: NodeId) -> bool {
        let found = self.vault.node(id);
        found.is_ok_and(|node| node.attributes.links == 0)
    }
}
