//! A draft: a content that is being written. Other processes do not see it until it is published,
//! except for the first content of a new file, which has nothing else to show.

use std::time::Instant;

use crate::vault::{Publication, Timestamp};

use super::Errno;
use super::blocks::{Blocks, Image};

/// A content that is being written.
#[derive(Debug)]
pub(super) struct Draft {
    blocks: Blocks,
    max_size: u64,
    /// The way in which it replaces the published content.
    pub(super) publication: Publication,
    /// Number of changes.
    edits: u64,
    /// Number of changes in the last publication.
    published: u64,
    /// Number of changes that were stored against loss, without being published.
    stored: u64,
    /// Number of the last change that was not an append.
    rewritten: u64,
    /// When the first change that is not stored was made.
    unstored_since: Option<Instant>,
    /// Nothing was published before it began, nor since: all processes see the draft itself.
    is_first: bool,
    /// Another content was published since this one.
    is_overtaken: bool,
    /// It lacks bytes that a program wrote to a mapping, so it must not be published.
    pub(super) is_spoiled: bool,
    /// When it last changed.
    pub(super) edited_at: Timestamp,
    /// A modification time that was set after that.
    pub(super) modified: Option<Timestamp>,
}

impl Draft {
    /// A draft that begins with `blocks`.
    pub(super) fn new(blocks: Blocks, publication: Publication, max_size: u64) -> Self {
        Self {
            blocks,
            max_size,
            publication,
            edits: 0,
            published: 0,
            stored: 0,
            rewritten: 0,
            unstored_since: None,
            is_first: false,
            is_overtaken: false,
            is_spoiled: false,
            edited_at: Timestamp::now(),
            modified: None,
        }
    }

    /// Makes it the first draft of a file without a published content.
    pub(super) fn first(self) -> Self {
        Self {
            is_first: true,
            ..self
        }
    }

    /// Makes it the draft of a file whose whole published content was cut off.
    pub(super) fn cut(self) -> Self {
        Self {
            rewritten: 1,
            ..self
        }
    }

    /// Its present content.
    pub(super) fn image(&self) -> &Image {
        self.blocks.image()
    }

    pub(super) fn len(&self) -> u64 {
        self.blocks.len()
    }

    /// Number of the last change.
    pub(super) fn edits(&self) -> u64 {
        self.edits
    }

    /// Whether it has changes that were not published.
    pub(super) fn is_unpublished(&self) -> bool {
        self.edits > self.published
    }

    /// Whether it has changes that are not stored.
    pub(super) fn is_unstored(&self) -> bool {
        self.edits > self.stored.max(self.published)
    }

    /// Whether change number `edit` was published.
    pub(super) fn has_published(&self, edit: u64) -> bool {
        edit <= self.published
    }

    /// Whether another content was published since this one.
    pub(super) fn is_overtaken(&self) -> bool {
        self.is_overtaken
    }

    /// Whether all processes see it, even if part of it is stored.
    pub(super) fn is_first(&self) -> bool {
        self.is_first
    }

    /// Notes that the changes up to `edits`, its number at `taken`, were published.
    pub(super) fn note_published(&mut self, edits: u64, taken: Instant) {
        // Of two concurrent publications the older may end last; its content is the stored one
        // then.
        self.published = edits;
        (self.is_first, self.is_overtaken) = (false, false);
        self.note_unstored_since(taken);
    }

    /// The same for appended data, which was stored unnoticed.
    pub(super) fn note_appended(&mut self, edits: u64, taken: Instant) {
        if !self.is_first {
            return self.note_published(edits, taken);
        }
        self.stored = self.stored.max(edits);
        self.note_unstored_since(taken);
    }

    /// Notes that another content was published: this draft replaces it, and no longer appends to
    /// it.
    pub(super) fn note_overtaken(&mut self) {
        self.rewritten = self.edits;
        (self.is_first, self.is_overtaken) = (false, true);
        self.publication = Publication::Replacement;
    }

    /// Treats all changes that are not stored as made now.
    pub(super) fn put_off(&mut self) {
        self.note_unstored_since(Instant::now());
    }

    fn note_unstored_since(&mut self, since: Instant) {
        self.unstored_since = self.is_unstored().then_some(since);
    }

    /// Since when it has appended data that is not stored; `None` without any, or if other bytes
    /// changed, too.
    pub(super) fn appended_since(&self) -> Option<Instant> {
        let is_rewritten = self.rewritten > self.stored.max(self.published);
        self.unstored_since
            .filter(|_| !is_rewritten && !self.is_spoiled)
    }

    /// Counts a change that must be published although no byte changed, such as a truncation to the
    /// same length.
    pub(super) fn touch(&mut self) {
        self.note_change(false);
    }

    fn note_change(&mut self, is_append: bool) {
        self.edits += 1;
        if !is_append {
            self.rewritten = self.edits;
        }
        self.unstored_since.get_or_insert_with(Instant::now);
        self.edited_at = Timestamp::now();
        self.modified = None;
    }

    /// Writes `data` at `offset`; a gap before it is zero.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        if data.is_empty() {
            return Ok(());
        }
        let end = offset
            .checked_add(data.len() as u64)
            .ok_or(Errno(libc::EFBIG))?;
        let before = self.len();
        self.must_fit(end)?;
        self.blocks.write(offset, data)?;
        self.note_change(offset == before);
        Ok(())
    }

    /// Truncates or extends it to `size` bytes.
    pub(super) fn truncate(&mut self, size: u64) -> Result<(), Errno> {
        let before = self.len();
        if size != before {
            self.must_fit(size)?;
            self.blocks.resize(size)?;
        }
        // An empty draft lacks nothing.
        self.is_spoiled &= size > 0;
        // A truncation to the same length counts as an append: a program cuts nothing off its own
        // new file.
        self.note_change(size == before);
        Ok(())
    }

    /// Truncates it for a program. An emptied draft has no byte of the old content, and replaces
    /// it.
    pub(super) fn cut_to(&mut self, size: u64) -> Result<(), Errno> {
        self.truncate(size)?;
        if size == 0 {
            self.publication = Publication::Replacement;
        }
        Ok(())
    }

    /// Extends it to at least `end` bytes, and zeroes its bytes from `zeroed` to `end`.
    pub(super) fn allocate(
        &mut self,
        end: u64,
        extends: bool,
        zeroed: Option<u64>,
    ) -> Result<(), Errno> {
        let before = self.len();
        let extends = extends && end > before;
        if extends {
            self.must_fit(end)?;
            self.blocks.resize(end)?;
        }
        if let Some(offset) = zeroed
            && let Err(error) = self.blocks.zero(offset, end.min(before))
        {
            self.blocks.resize(before)?;
            return Err(error);
        }
        if extends || zeroed.is_some() {
            self.touch();
        }
        Ok(())
    }

    /// Refuses to grow beyond the largest size of a secret.
    fn must_fit(&self, size: u64) -> Result<(), Errno> {
        match size > self.max_size && size > self.len() {
            true => Err(Errno(libc::EFBIG)),
            false => Ok(()),
        }
    }
}
