//! A draft: a content that is being written. Nobody else sees it until it is published, but for the
//! first content of a new file, which has nothing published to show instead.

use std::sync::Arc;

use crate::crypto::SecretBytes;
use crate::vault::{Publication, Timestamp};

use super::Errno;
use super::budget::{Budget, Reservation};

/// A content under way.
#[derive(Debug)]
pub(super) struct Draft {
    /// Shared with the writer thread while it is being published; then copied on write.
    bytes: Arc<SecretBytes>,
    reservation: Reservation,
    max_size: u64,
    /// How it takes the place of what was published before.
    pub(super) publication: Publication,
    /// Counts the changes.
    edits: u64,
    /// The number of changes that the last publication had.
    published: u64,
    /// When it was last changed.
    pub(super) edited_at: Timestamp,
    /// A modification time that was set since.
    pub(super) modified: Option<Timestamp>,
}

impl Draft {
    /// A draft that begins with `content`.
    pub(super) fn new(
        content: SecretBytes,
        publication: Publication,
        budget: &Arc<Budget>,
        max_size: u64,
    ) -> Result<Self, Errno> {
        let reservation = budget
            .reserve(content.len() as u64)
            .ok_or(Errno(libc::ENOSPC))?;
        Ok(Self {
            bytes: Arc::new(content),
            reservation,
            max_size,
            publication,
            edits: 0,
            published: 0,
            edited_at: Timestamp::now(),
            modified: None,
        })
    }

    pub(super) fn bytes(&self) -> &Arc<SecretBytes> {
        &self.bytes
    }

    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Number of the last change.
    pub(super) fn edits(&self) -> u64 {
        self.edits
    }

    /// Whether there is something that was not published.
    pub(super) fn is_unpublished(&self) -> bool {
        self.edits > self.published
    }

    /// Whether the change numbered `edit` was published.
    pub(super) fn has_published(&self, edit: u64) -> bool {
        edit <= self.published
    }

    /// The changes up to `edits` were published.
    pub(super) fn note_published(&mut self, edits: u64) {
        self.published = self.published.max(edits);
    }

    /// Counts a change that needs publishing although no byte changed: a bare truncation.
    pub(super) fn touch(&mut self) {
        self.edits += 1;
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
        if end > self.len() {
            self.resize(end)?;
        }
        let bytes = self.bytes_mut()?;
        // `end` is at most the length, which is a usize.
        bytes[offset as usize..end as usize].copy_from_slice(data);
        self.touch();
        Ok(())
    }

    /// Cuts or extends it to `size` bytes.
    pub(super) fn truncate(&mut self, size: u64) -> Result<(), Errno> {
        if size != self.len() {
            self.resize(size)?;
        }
        self.touch();
        Ok(())
    }

    /// What programs ask for: one that is emptied has nothing of the old content, and replaces it.
    pub(super) fn cut(&mut self, size: u64) -> Result<(), Errno> {
        self.truncate(size)?;
        if size == 0 {
            self.publication = Publication::Replacement;
        }
        Ok(())
    }

    /// Zeroes a range, as far as the draft reaches.
    pub(super) fn zero(&mut self, offset: u64, length: u64) -> Result<(), Errno> {
        let end = offset.saturating_add(length).min(self.len());
        if offset < end {
            self.bytes_mut()?[offset as usize..end as usize].fill(0);
        }
        self.touch();
        Ok(())
    }

    fn resize(&mut self, size: u64) -> Result<(), Errno> {
        if size > self.max_size && size > self.len() {
            return Err(Errno(libc::EFBIG));
        }
        let length = usize::try_from(size).map_err(|_| Errno(libc::EFBIG))?;
        let before = self.len();
        if !self.reservation.resize(size) {
            return Err(Errno(libc::ENOSPC));
        }
        let resized = self.bytes_mut().and_then(|bytes| Ok(bytes.resize(length)?));
        if resized.is_err() {
            self.reservation.resize(before);
        }
        resized
    }

    fn bytes_mut(&mut self) -> Result<&mut SecretBytes, Errno> {
        if Arc::get_mut(&mut self.bytes).is_none() {
            self.bytes = Arc::new(SecretBytes::copy_of(&self.bytes)?);
        }
        Arc::get_mut(&mut self.bytes).ok_or(Errno(libc::ENOMEM))
    }
}
