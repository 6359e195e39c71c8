//! What an open handle has of its own.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::vault::Whose;

use super::draft::Draft;
use super::loaded::Pin;
use super::readings::Reading;
use super::{Access, FileHandle};

/// The handles of a node.
pub(super) type Handles = HashMap<FileHandle, HandleState>;

/// What a handle has of its own.
#[derive(Debug, Default)]
pub(super) struct HandleState {
    pub(super) write: bool,
    /// It may be mapped for writing.
    pub(super) maps: bool,
    /// The process that opened it; `None` when it cannot be seen, or only reads.
    pub(super) opener: Option<u32>,
    /// The user who opened it.
    pub(super) whose: Whose,
    /// A replacement of its own.
    pub(super) own: Option<Draft>,
    pub(super) pin: Option<Pin>,
    /// What its process may have been told of; of those that only read.
    pub(super) reading: Reading,
    /// Since when the reader knows the end of what it has pinned.
    ended: Option<Instant>,
    /// A descriptor of it was closed: it may have been the last.
    pub(super) flushed: bool,
    /// Number of the last change that came through it, in the draft it writes to.
    pub(super) wrote: u64,
    /// Lock owners that wrote, for when process ids are not to be seen.
    pub(super) owners: HashSet<u64>,
    /// Processes that wrote, other than the opener.
    pub(super) groups: Vec<u32>,
    /// It was read by way of the page cache.
    pub(super) paged: bool,
    /// When its draft's length was last asked for through it.
    pub(super) sought: Option<Instant>,
    /// The kernel has thrown away pages that were written to: the draft may lack what they had.
    pub(super) spoiled: bool,
}

impl HandleState {
    /// Of a handle that process `opener` of `user` opens.
    pub(super) fn new(access: Access, opener: Option<u32>, user: u32) -> Self {
        Self {
            write: access.write,
            maps: access.write && access.read,
            opener,
            whose: Whose::of(user),
            ..Self::default()
        }
    }

    /// Whether a reader at `offset` has been waiting for `patience` at the end of what it has
    /// pinned.
    pub(super) fn waits_at_end(&mut self, offset: u64, patience: Duration) -> bool {
        match &self.pin {
            Some(pin) if offset >= pin.length => {
                self.ended.get_or_insert_with(Instant::now).elapsed() >= patience
            }
            _ => {
                self.ended = None;
                false
            }
        }
    }

    /// Settles on a version.
    pub(super) fn settle(&mut self, pin: Option<Pin>) {
        (self.pin, self.ended) = (pin, None);
    }
}
