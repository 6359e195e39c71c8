//! The kernel's page cache, which `mmap`, `sendfile` and `splice` use. There is one for each file,
//! however many contents the file has, so its pages belong to one content at a time. A reader that
//! would get pages of two contents is refused: no page can be taken back from a mapping, and a
//! request for a page cannot wait, because the kernel waits for it before it drops others.
//!
//! The kernel empties the cache of a file at each open and mapping.

use std::collections::HashSet;

use super::FileHandle;

/// The source of pages. Versions that are edits of one content share pages, as databases need it;
/// such a content is named by its first version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Content(u64),
    /// The in-place draft.
    Shared,
    /// The replacement draft of a handle.
    Own(FileHandle),
}

impl Source {
    /// Whether a request for pages of this source may end those of `other`.
    fn outdoes(self, other: Self) -> bool {
        match (self, other) {
            (Self::Content(own), Self::Content(other)) => own > other,
            // A draft was opened over the content.
            (Self::Shared | Self::Own(_), Self::Content(_)) => true,
            (_, Self::Shared | Self::Own(_)) => false,
        }
    }
}

/// The pages of a node in the cache.
#[derive(Debug, Default)]
pub(super) struct Pages {
    pub(super) source: Option<Source>,
    /// Handles that asked for pages, and may have them mapped.
    pub(super) users: HashSet<FileHandle>,
    /// The last handle opened when pages were last served.
    pub(super) until: FileHandle,
    /// Number of times that pages were served.
    pub(super) served: u64,
    /// The pages must be dropped before any are served again.
    pub(super) ends: bool,
}

/// The pages to drop.
#[derive(Clone, Copy)]
pub(super) struct Dropping {
    pub(super) served: u64,
}

impl Pages {
    pub(super) fn source(&self) -> Option<Source> {
        self.source
    }

    /// Whether `fh` can get pages of `wanted` without finding others among them; `last` is the last
    /// opened handle.
    pub(super) fn admit(&mut self, fh: FileHandle, wanted: Source, last: FileHandle) -> bool {
        if self.ends {
            return false;
        }
        if let Some(source) = self.source.filter(|source| *source != wanted) {
            // The open of this handle has emptied the cache.
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

    /// Notes the close of a handle, and so of its mappings.
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
        // Handle 2 was open when those were served, so its mapping may have them.
        assert!(!pages.admit(2, Source::Content(2), 2));
        // Nobody is served before they are dropped.
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
        // The older content would bring its pages back.
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
