//! The kernel's page cache, which `mmap`, `sendfile` and `splice` go through: one for a file, however
//! many contents of it there are. Pages are of one content at a time. Whoever would get those of
//! another among his own is refused, since no page can be taken back from a mapping, and a request for
//! one cannot wait: the kernel waits for it before it drops others.
//!
//! The kernel empties the cache of a file whenever the file is opened or mapped.

use std::collections::HashSet;

use super::FileHandle;

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
    pub(super) source: Option<Source>,
    /// Handles that asked for them, and may have them mapped.
    pub(super) users: HashSet<FileHandle>,
    /// The last handle that had been opened when pages were served last.
    pub(super) until: FileHandle,
    /// How often pages were served.
    pub(super) served: u64,
    /// They are to go before any are served again.
    pub(super) ends: bool,
}

/// What was to be dropped.
#[derive(Clone, Copy)]
pub(super) struct Dropping {
    pub(super) served: u64,
}

impl Pages {
    pub(super) fn source(&self) -> Option<Source> {
        self.source
    }

    /// Whether `fh` may have pages of `wanted` without finding others among them; `last` is the handle
    /// that was opened last.
    pub(super) fn admit(&mut self, fh: FileHandle, wanted: Source, last: FileHandle) -> bool {
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

    pub(super) fn dropped(&mut self, begun: Dropping) {
        self.ends = false;
        if self.served == begun.served {
            (self.source, self.until) = (None, 0);
            self.users.clear();
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
