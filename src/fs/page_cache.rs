//! The kernel's page cache: who may be served pages, and when they are dropped.

use std::sync::Arc;

use crate::store::NodeId;

use super::handles::OpenNode;
use super::kernel::Kernel;
use super::pages::Dropping;
use super::table::Table;
use super::{Errno, FileHandle};

/// The page cache, as the module describes.
pub(super) struct PageCache {
    pub(super) table: Arc<Table>,
    pub(super) kernel: Arc<Kernel>,
}

impl PageCache {
    /// Whether a handle may get pages of the content that it reads: `content`, or its draft.
    pub(super) fn admit(
        &self,
        node: &OpenNode,
        fh: FileHandle,
        content: Option<u64>,
    ) -> Result<(), Errno> {
        let last = self.table.last();
        let mut state = node.lock();
        state.paged = true;
        if !state.handles.contains_key(&fh) {
            return Err(Errno(libc::EBADF));
        }
        let length = match content {
            Some(_) => None,
            None => state.draft_of(fh).map(|draft| draft.len()),
        };
        // The kernel would cut the mapping off at its own, shorter length of the file.
        let clipped = length
            .zip(state.believed)
            .is_some_and(|(own, all)| all < own);
        let admitted = !clipped && state.mapped().admit(fh, content, last);
        let ends = state.pages.ends;
        drop(state);
        if ends {
            self.kernel.drop_pages(node.id);
        }
        match admitted {
            true => Ok(()),
            false => {
                tracing::debug!("pages of node {} are of another content", node.id);
                Err(Errno(libc::EIO))
            }
        }
    }

    /// Notes that the kernel is about to be asked to drop all pages.
    pub(super) fn begin_to_drop(&self, node: NodeId) -> Option<Dropping> {
        let open = self.table.node(node)?;
        let served = open.lock().pages.served;
        Some(Dropping { served })
    }

    /// Notes that the kernel has dropped them.
    pub(super) fn note_dropped(&self, node: NodeId, begun: Dropping) {
        if let Some(open) = self.table.node(node) {
            open.lock().pages.dropped(begun);
        }
    }
}
