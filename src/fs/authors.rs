//! The writers of drafts, and the draft whose length the kernel must have.

use std::time::Duration;

use crate::os::process;
use crate::store::NodeId;

use super::FileHandle;
use super::descriptors::{self, For};
use super::draft::Draft;
use super::handle_state::{HandleState, Handles};
use super::pages::{Pages, Source};

/// For this long after a writer has asked for the end of its draft, the kernel gets no other
/// length: it may still be about to use the draft's.
const SOUGHT: Duration = Duration::from_secs(1);

/// A node's handles and drafts, as far as they tell who writes what.
#[derive(Clone, Copy)]
pub(super) struct Authors<'a> {
    handles: &'a Handles,
    /// The draft of those that write in place.
    shared: Option<&'a Draft>,
    pages: &'a Pages,
}

impl<'a> Authors<'a> {
    pub(super) fn new(handles: &'a Handles, shared: Option<&'a Draft>, pages: &'a Pages) -> Self {
        Self {
            handles,
            shared,
            pages,
        }
    }

    /// The draft that a handle writes to, and its source.
    fn draft_through(self, fh: FileHandle, own: &'a HandleState) -> Option<(Source, &'a Draft)> {
        match &own.own {
            Some(draft) => Some((Source::Own(fh), draft)),
            None => {
                let shared = self.shared.filter(|_| own.write);
                shared.map(|draft| (Source::Shared, draft))
            }
        }
    }

    /// Among the drafts of the handles for which `are` is true, the one changed last.
    fn latest_draft(self, are: impl Fn(&HandleState) -> bool) -> Option<(Source, &'a Draft)> {
        let handles = self.handles.iter().filter(|(_, own)| are(own));
        let drafts = handles.filter_map(|(fh, own)| self.draft_through(*fh, own));
        drafts.max_by_key(|(_, draft)| (draft.is_unpublished(), draft.edited_at))
    }

    /// The draft of a process; among several, the one changed last.
    pub(super) fn draft_of_process(self, thread: u32, node: &Place) -> Option<(Source, &'a Draft)> {
        // Without writers, do not look up the process that asks.
        let any = self.latest_draft(|_| true)?;
        let group = process::thread_group(thread)?;
        let writes = |own: &HandleState| own.opener == Some(group) || own.groups.contains(&group);
        let known = self.latest_draft(writes);
        if known.is_some() && self.only_reads(thread) {
            return None;
        }
        // Another process may have passed the descriptor to it.
        let given =
            || descriptors::has_one(For::Writing, group, node.id, node.device).then_some(any);
        known.or_else(given)
    }

    /// Whether a thread has just read, or opened for reading, in a process whose other threads
    /// write.
    fn only_reads(self, thread: u32) -> bool {
        let mut reads = false;
        for own in self
            .handles
            .values()
            .filter(|own| own.reading.thread == thread)
        {
            if own.write {
                return false;
            }
            reads = true;
        }
        reads
    }

    /// The draft whose length the kernel must have: one that is mapped or can be mapped, or whose
    /// end a writer has just asked for.
    pub(super) fn sizing_draft(self) -> Option<&'a Draft> {
        let sizes =
            |own: &HandleState| own.maps || own.sought.is_some_and(|at| at.elapsed() < SOUGHT);
        let latest = || {
            let (_, draft) = self.latest_draft(sizes)?;
            draft.is_unpublished().then_some(draft)
        };
        self.mapped_draft().or_else(latest)
    }

    /// The draft that may have pages in the page cache.
    fn mapped_draft(self) -> Option<&'a Draft> {
        match self.pages.source()? {
            Source::Content(_) => None,
            Source::Shared => self.shared,
            Source::Own(fh) => self.handles.get(&fh)?.own.as_ref(),
        }
    }
}

/// A node, and the device number of its mount if known.
pub(super) struct Place {
    pub(super) id: NodeId,
    pub(super) device: Option<(u32, u32)>,
}
