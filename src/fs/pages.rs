//! The kernel's page cache, which `mmap`, `sendfile` and `splice` go through: one for a file, however
//! many contents of it there are. Pages are of one content at a time. Whoever would get those of
//! another among his own is refused, since no page can be taken back from a mapping, and a request for
//! one cannot wait: the kernel waits for it before it drops others.
//!
//! The kernel empties the cache of a file whenever the file is opened or mapped.

use std::collections::HashSet;

use crate::store::NodeId;

use super::handles::{HandleState, NodeState};
use super::{Errno, FileHandle, FileSystem};

/// What pages are of. Versions of which each is an edit of the one before have pages in common, as
/// databases need it: such a content is named by the version that it began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Content(u64),
    /// The draft in place.
    Shared,
    /// The replacement of a handle.
    Own(FileHandle),
}

impl Source {
    /// Whether one who wants pages of this may put an end to those of `other`.
    fn outdoes(self, other: Self) -> bool {
        match (self, other) {
            (Self::Content(own), Self::Content(other)) => own > other,
            // What is written has been opened over it.
            (Self::Shared | Self::Own(_), Self::Content(_)) => true,
            (_, Self::Shared | Self::Own(_)) => false,
        }
    }
}

/// What the cache has of a node.
#[derive(Debug, Default)]
pub(super) struct Pages {
    source: Option<Source>,
    /// Handles that asked for them, and may have them mapped.
    users: HashSet<FileHandle>,
    /// The last handle that had been opened when pages were served last.
    until: FileHandle,
    /// How often pages were served.
    served: u64,
    /// They are to go before any are served again.
    ends: bool,
}

/// What was to be dropped.
#[derive(Clone, Copy)]
pub(super) struct Dropping {
    served: u64,
}

impl Pages {
    pub(super) fn source(&self) -> Option<Source> {
        self.source
    }

    /// Whether `fh` may have pages of `wanted` without finding others among them; `last` is the handle
    /// that was opened last.
    fn admit(&mut self, fh: FileHandle, wanted: Source, last: FileHandle) -> bool {
        if self.ends {
            return false;
        }
        if let Some(source) = self.source.filter(|source| *source != wanted) {
            // What was in the cache when this handle was opened is gone.
            if self.until >= fh {
                self.ends = wanted.outdoes(source) || !self.users.iter().any(|user| *user != fh);
                return false;
            }
            self.users.clear();
        }
        self.source = Some(wanted);
        self.users.insert(fh);
        self.until = last;
        self.served += 1;
        true
    }

    /// A handle is closed, and so is what it had mapped.
    pub(super) fn let_go(&mut self, fh: FileHandle) {
        self.users.remove(&fh);
    }

    fn dropped(&mut self, begun: Dropping) {
        self.ends = false;
        if self.served == begun.served {
            (self.source, self.until) = (None, 0);
            self.users.clear();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_of_one_content_until_they_are_dropped() {
        let mut pages = Pages::default();
        assert!(pages.admit(1, Source::Content(1), 2));
        assert!(pages.admit(2, Source::Content(1), 2));
        // Handle 2 was open when those were served: they may be in its mapping.
        assert!(!pages.admit(2, Source::Content(2), 2));
        // Nobody is served before they have gone.
        assert!(!pages.admit(1, Source::Content(1), 2));
        let begun = Dropping {
            served: pages.served,
        };
        pages.dropped(begun);
        assert!(pages.admit(2, Source::Content(2), 2));
    }

    #[test]
    fn who_opens_the_file_later_finds_the_cache_empty() {
        let mut pages = Pages::default();
        assert!(pages.admit(1, Source::Content(1), 1));
        assert!(pages.admit(2, Source::Content(2), 2));
        // The older one would bring its pages back.
        assert!(!pages.admit(1, Source::Content(1), 2));
        assert!(pages.admit(2, Source::Content(2), 2));
    }

    #[test]
    fn what_was_served_while_pages_were_dropped_stays_known() {
        let mut pages = Pages::default();
        assert!(pages.admit(1, Source::Content(1), 2));
        let begun = Dropping {
            served: pages.served,
        };
        assert!(pages.admit(1, Source::Content(1), 2));
        pages.dropped(begun);
        assert!(!pages.admit(2, Source::Content(2), 2));
    }

    #[test]
    fn a_draft_that_is_mapped_gives_way_to_nobody() {
        let mut pages = Pages::default();
        assert!(pages.admit(1, Source::Own(1), 2));
        assert!(!pages.admit(2, Source::Own(2), 2));
        assert!(pages.admit(1, Source::Own(1), 2));
        assert!(!pages.admit(2, Source::Content(3), 2));
        assert!(pages.admit(1, Source::Own(1), 2));
    }
}
