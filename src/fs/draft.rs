//! A draft: a content that is being written. Nobody else sees it until it is published, but for the
//! first content of a new file, which has nothing published to show instead.

use std::time::Instant;

use crate::vault::{Publication, Timestamp};

use super::Errno;
use super::blocks::{Blocks, Image};

/// A content under way.
#[derive(Debug)]
pub(super) struct Draft {
    blocks: Blocks,
    max_size: u64,
    /// How it takes the place of what was published before.
    pub(super) publication: Publication,
    /// Counts the changes.
    edits: u64,
    /// The number of changes that the last publication had.
    published: u64,
    /// The number of changes that were stored so that they are not lost, without being published.
    stored: u64,
    /// The number of the last change that was more than adding something at the end.
    rewritten: u64,
    /// When the first change came that was not stored.
    unstored_since: Option<Instant>,
    /// Nothing was published when it began, nor since: everybody is shown the draft itself.
    is_first: bool,
    /// Something else was published since this was.
    is_overtaken: bool,
    /// It lacks what somebody wrote to a mapping: it is not to be published.
    pub(super) is_spoiled: bool,
    /// When it was last changed.
    pub(super) edited_at: Timestamp,
    /// A modification time that was set since.
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

    /// The same for a file of which nothing is published.
    pub(super) fn first(self) -> Self {
        Self {
            is_first: true,
            ..self
        }
    }

    /// The same for a file of which everything that is published is cut off.
    pub(super) fn cut(self) -> Self {
        Self {
            rewritten: 1,
            ..self
        }
    }

    /// What it holds now.
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

    /// Whether there is something that was not published.
    pub(super) fn is_unpublished(&self) -> bool {
        self.edits > self.published
    }

    /// Whether there is something that is stored nowhere.
    pub(super) fn is_unstored(&self) -> bool {
        self.edits > self.stored.max(self.published)
    }

    /// Whether the change numbered `edit` was published.
    pub(super) fn has_published(&self, edit: u64) -> bool {
        edit <= self.published
    }

    /// Whether something else was published since this was.
    pub(super) fn is_overtaken(&self) -> bool {
        self.is_overtaken
    }

    /// Whether everybody is shown it, whatever of it is stored.
    pub(super) fn is_first(&self) -> bool {
        self.is_first
    }

    /// The changes up to `edits`, which it had at `taken`, were published.
    pub(super) fn note_published(&mut self, edits: u64, taken: Instant) {
        // Of two that were taken at once, the older may have come last: then it is what is stored.
        self.published = edits;
        (self.is_first, self.is_overtaken) = (false, false);
        self.note_unstored_since(taken);
    }

    /// The same of what was only appended, and nobody was told of.
    pub(super) fn note_appended(&mut self, edits: u64, taken: Instant) {
        if !self.is_first {
            return self.note_published(edits, taken);
        }
        self.stored = self.stored.max(edits);
        self.note_unstored_since(taken);
    }

    /// Something else was published: whatever is in this takes its place, and is no addition to it.
    pub(super) fn note_overtaken(&mut self) {
        self.rewritten = self.edits;
        (self.is_first, self.is_overtaken) = (false, true);
        self.publication = Publication::Replacement;
    }

    /// What is not stored counts as if it had come now.
    pub(super) fn put_off(&mut self) {
        self.note_unstored_since(Instant::now());
    }

    fn note_unstored_since(&mut self, since: Instant) {
        self.unstored_since = self.is_unstored().then_some(since);
    }

    /// Since when there is something in it that was only added at the end of what is stored, and is
    /// not stored. `None` when there is nothing, or something else was changed as well.
    pub(super) fn appended_since(&self) -> Option<Instant> {
        let is_rewritten = self.rewritten > self.stored.max(self.published);
        self.unstored_since
            .filter(|_| !is_rewritten && !self.is_spoiled)
    }

    /// Counts a change that needs publishing although no byte changed: a bare truncation.
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

    /// Cuts or extends it to `size` bytes.
    pub(super) fn truncate(&mut self, size: u64) -> Result<(), Errno> {
        let before = self.len();
        if size != before {
            self.must_fit(size)?;
            self.blocks.resize(size)?;
        }
        // What holds nothing lacks nothing.
        self.is_spoiled &= size > 0;
        // Programs cut off nothing of what they have just made.
        self.note_change(size == before);
        Ok(())
    }

    /// What programs ask for: one that is emptied has nothing of the old content, and replaces it.
    pub(super) fn cut_to(&mut self, size: u64) -> Result<(), Errno> {
        self.truncate(size)?;
        if size == 0 {
            self.publication = Publication::Replacement;
        }
        Ok(())
    }

    /// Extends it to `end` bytes if it has fewer, and zeroes what it has from `zeroed` on up to there.
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

    /// Nothing grows beyond the largest size of a secret.
    fn must_fit(&self, size: u64) -> Result<(), Errno> {
        match size > self.max_size && size > self.len() {
            true => Err(Errno(libc::EFBIG)),
            false => Ok(()),
        }
    }
}
