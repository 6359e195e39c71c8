//! The kernel's page cache: of which content a node's pages are, and when they are dropped.

use std::sync::Arc;

use crate::store::NodeId;

use super::handles::{HandleState, NodeState, OpenNode};
use super::kernel::Kernel;
use super::pages::{Dropping, Source};
use super::table::Table;
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

impl NodeState {
    /// Somebody empties the file, and the kernel throws away all pages, those with changes too.
    pub(super) fn spoil_mapped(&mut self) {
        if matches!(self.pages.source, None | Some(Source::Content(_))) {
            return;
        }
        for user in &self.pages.users {
            if let Some(own) = self.handles.get_mut(user) {
                own.spoiled = own.write;
            }
        }
        // Whoever else writes it would publish it without what was in those pages.
        if self.pages.source == Some(Source::Shared)
            && let Some(shared) = &mut self.shared
        {
            shared.is_spoiled = true;
        }
    }

    /// Whether what a handle would publish may lack what was written to a mapping.
    pub(super) fn is_spoiled(&self, fh: FileHandle) -> bool {
        let shared = || self.shared.as_ref().is_some_and(|draft| draft.is_spoiled);
        let own = self.handles.get(&fh);
        own.is_some_and(|own| own.spoiled || own.write && own.own.is_none() && shared())
    }

    /// The draft in place was published, as part of `content`; if it has gone, its pages are of that.
    pub(super) fn name_pages(&mut self, content: u64) {
        if self.shared.is_none() && self.pages.source == Some(Source::Shared) {
            self.pages.source = Some(Source::Content(content));
        }
    }

    /// What the pages are of that a writing handle asks for, or has changed.
    fn written_through(&self, fh: FileHandle, own: &HandleState) -> Option<Source> {
        match (&own.own, &self.shared) {
            (Some(_), _) => Some(Source::Own(fh)),
            (None, Some(_)) => Some(Source::Shared),
            (None, None) => None,
        }
    }

    /// Pages were changed: they are those of the draft now that has taken them.
    pub(super) fn note_changed_pages(&mut self, fh: FileHandle) {
        let Some(own) = self.handles.get(&fh) else {
            return;
        };
        let draft = self.written_through(fh, own);
        if matches!(self.pages.source, None | Some(Source::Content(_))) {
            self.pages.source = draft;
            self.pages.users.insert(fh);
        }
    }

    /// Whether somebody else reads a newer content by pages, or is about to read one: in the cache, who
    /// reads the older one would find pages of that without asking for them. The newest is never
    /// refused for the sake of older ones.
    fn is_contested(&self, fh: FileHandle, content: u64) -> bool {
        let may_page = |own: &HandleState| own.paged || own.reading.fresh.is_some();
        let others = self.handles.iter().filter(|(other, _)| **other != fh);
        let mut others = others.filter(|(_, own)| !own.write && may_page(own));
        others.any(|(_, own)| own.content().is_some_and(|other| other > content))
    }

    /// Whose draft changed pages belong to: the kernel sends them through any handle that has the file
    /// mapped.
    pub(super) fn writer_of_pages(&self, fh: FileHandle) -> FileHandle {
        let in_place = || {
            let mut users = self.pages.users.iter();
            let in_place = |user: &&FileHandle| {
                let own = self.handles.get(user);
                own.is_some_and(|own| own.write && own.own.is_none())
            };
            users.find(in_place).copied()
        };
        match self.pages.source {
            Some(Source::Own(own)) if self.handles.contains_key(&own) => own,
            Some(Source::Shared) => in_place().unwrap_or(fh),
            _ => fh,
        }
    }
}
