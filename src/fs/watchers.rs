//! Watchers of files: queues the touches that wake them, and answers those touches.

use std::sync::Arc;

use crate::store::NodeId;
use crate::vault::{Vault, VaultError};

use super::failures::Failures;
use super::getattr::Attributes;
use super::set_attributes::SetAttributes;
use super::table::Table;
use super::touch::{Touched, Touches};
use super::{Attr, Errno, FileHandle};

/// Wakes watchers, as the module describes.
pub(super) struct Watchers {
    pub(super) vault: Arc<Vault>,
    pub(super) failures: Arc<Failures>,
    pub(super) table: Arc<Table>,
    pub(super) attributes: Arc<Attributes>,
    pub(super) touches: Arc<Touches>,
}

impl Watchers {
    /// Wakes the watchers of a node whose published content has changed.
    pub(super) fn wake(&self, node: NodeId) {
        // Nobody watches a node that the kernel does not know.
        if self.touches.is_served() && self.table.is_known(node) {
            self.touches.add(Touched::Node(node));
        }
    }

    /// The answer if the request is a touch: the attributes that the kernel has or should have, so
    /// that nothing changes.
    pub(super) fn answer_to_touch(
        &self,
        ino: NodeId,
        fh: Option<FileHandle>,
        set: &SetAttributes,
    ) -> Option<Result<Attr, Errno>> {
        let modified = set.modified?;
        let alone = SetAttributes {
            modified: Some(modified),
            ..SetAttributes::default()
        };
        if fh.is_some() || *set != alone || !self.touches.is_token(modified) {
            return None;
        }
        fail::fail_point!("answer-to-touch");
        let node = match self.vault.node(ino) {
            Ok(node) => node,
            Err(VaultError::NotFound) => {
                return Some(self.touches.gone(ino).ok_or(Errno(libc::ESTALE)));
            }
            Err(error) => return Some(Err(self.failures.errno(&error))),
        };
        let mut attr = self.attributes.attr_of(&node);
        if let Some(open) = self.table.node(ino) {
            let mut state = open.lock();
            // The kernel keeps one length for all processes, which is the writer's now: a shorter
            // one would cut off the writer's mappings.
            let own = state
                .handles
                .values()
                .filter_map(|handle| handle.own.as_ref());
            if let Some(longest) = own.chain(&state.shared).map(|draft| draft.len()).max() {
                attr.size = longest;
                state.believed = Some(longest);
            }
        }
        Some(Ok(attr))
    }
}
