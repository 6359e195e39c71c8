//! The kernel's page cache: of which content a node's pages are, and when they are dropped.

use std::sync::Arc;

use crate::store::NodeId;

use super::handles::{OpenNode, Table};
use super::kernel::Kernel;
use super::pages::{Dropping, Source};
use super::{Errno, FileHandle};

/// See the module.
pub(super) struct PageCache {
    pub(super) table: Arc<Table>,
    pub(super) kernel: Arc<Kernel>,
}

impl PageCache {
    /// Whether a handle may be served pages of what it reads: of `content`, or of its draft.
    pub(super) fn admit(
        &self,
        node: &OpenNode,
        fh: FileHandle,
        content: Option<u64>,
    ) -> Result<(), Errno> {
        let last = self.table.last();
        let mut state = node.lock();
        state.paged = true;
        let Some(own) = state.handles.get(&fh) else {
            return Err(Errno(libc::EBADF));
        };
        let spoiled = state.is_spoiled(fh);
        let only_reads = !own.write;
        let wanted = match content {
            Some(content) => Some(Source::Content(content)),
            None => state.written_through(fh, own).or(Some(Source::Shared)),
        };
        let length = match content {
            Some(_) => None,
            None => state.draft_of(fh).map(|draft| draft.len()),
        };
        // The kernel would take the end of a mapping for the end of the file, and cut it off there.
        let clipped = length
            .zip(state.believed)
            .is_some_and(|(own, all)| all < own);
        let contested = content
            .filter(|_| only_reads)
            .is_some_and(|content| state.is_contested(fh, content));
        let admitted = !spoiled
            && !clipped
            && !contested
            && wanted.is_some_and(|wanted| state.pages.admit(fh, wanted, last));
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

    /// The kernel is about to be asked to drop all pages.
    pub(super) fn begin_to_drop(&self, node: NodeId) -> Option<Dropping> {
        let open = self.table.node(node)?;
        let served = open.lock().pages.served;
        Some(Dropping { served })
    }

    /// It has.
    pub(super) fn note_dropped(&self, node: NodeId, begun: Dropping) {
        if let Some(open) = self.table.node(node) {
            open.lock().pages.dropped(begun);
        }
    }
}
