//! The source of a node's pages in the kernel's cache, a content or a draft, and the fate of
//! changes in them.

use super::FileHandle;
use super::draft::Draft;
use super::handle_state::{HandleState, Handles};
use super::pages::{Pages, Source};

/// A node's pages, with the handles and drafts that they may belong to.
pub(super) struct Mapped<'a> {
    handles: &'a mut Handles,
    /// The in-place draft.
    shared: &'a mut Option<Draft>,
    pages: &'a mut Pages,
}

impl<'a> Mapped<'a> {
    pub(super) fn new(
        handles: &'a mut Handles,
        shared: &'a mut Option<Draft>,
        pages: &'a mut Pages,
    ) -> Self {
        Self {
            handles,
            shared,
            pages,
        }
    }

    /// Whether a handle may read through the page cache, `content` or its draft, without meeting
    /// pages of another source. `last` is the handle that was opened last.
    pub(super) fn admit(&mut self, fh: FileHandle, content: Option<u64>, last: FileHandle) -> bool {
        let Some(own) = self.handles.get(&fh) else {
            return false;
        };
        let wanted = match content {
            Some(content) => Source::Content(content),
            None => self.written_through(fh, own).unwrap_or(Source::Shared),
        };
        let contested = content
            .filter(|_| !own.write)
            .is_some_and(|content| self.is_contested(fh, content));
        !self.is_spoiled(fh) && !contested && self.pages.admit(fh, wanted, last)
    }

    /// Notes that a program empties the file: the kernel drops all pages, even dirty ones.
    pub(super) fn spoil(&mut self) {
        if matches!(self.pages.source, None | Some(Source::Content(_))) {
            return;
        }
        for user in &self.pages.users {
            if let Some(own) = self.handles.get_mut(user) {
                own.spoiled = own.write;
            }
        }
        // Other writers would publish the draft without the bytes in those pages.
        if self.pages.source == Some(Source::Shared)
            && let Some(shared) = &mut *self.shared
        {
            shared.is_spoiled = true;
        }
    }

    /// Whether a handle's draft may lack bytes that a program wrote to a mapping.
    pub(super) fn is_spoiled(&self, fh: FileHandle) -> bool {
        let shared = || self.shared.as_ref().is_some_and(|draft| draft.is_spoiled);
        let own = self.handles.get(&fh);
        own.is_some_and(|own| own.spoiled || own.write && own.own.is_none() && shared())
    }

    /// Notes that the in-place draft was published as part of `content`. If the draft is gone, its
    /// pages belong to that.
    pub(super) fn name_pages(&mut self, content: u64) {
        if self.shared.is_none() && self.pages.source == Some(Source::Shared) {
            self.pages.source = Some(Source::Content(content));
        }
    }

    /// The source of the pages that a writing handle reads or has changed.
    fn written_through(&self, fh: FileHandle, own: &HandleState) -> Option<Source> {
        match (&own.own, &*self.shared) {
            (Some(_), _) => Some(Source::Own(fh)),
            (None, Some(_)) => Some(Source::Shared),
            (None, None) => None,
        }
    }

    /// Notes changed pages: they belong to the draft that has taken them.
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

    /// Whether another handle reads a newer content through pages, or is about to: a reader of the
    /// older content would find those pages in the cache without a request. The newest content is
    /// never refused because of older ones.
    fn is_contested(&self, fh: FileHandle, content: u64) -> bool {
        let may_page = |own: &HandleState| own.paged || own.reading.fresh.is_some();
        let others = self.handles.iter().filter(|(other, _)| **other != fh);
        let mut others = others.filter(|(_, own)| !own.write && may_page(own));
        others.any(|(_, own)| own.content().is_some_and(|other| other > content))
    }

    /// The handle whose draft the changed pages belong to: the kernel sends them through any handle
    /// that maps the file.
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
