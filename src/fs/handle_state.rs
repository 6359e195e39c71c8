//! The state of an open handle.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::vault::Whose;

use super::draft::Draft;
use super::loaded::Pin;
use super::readings::Reading;
use super::{Access, FileHandle};

/// The handles of a node.
pub(super) type Handles = HashMap<FileHandle, HandleState>;

/// The state of one handle.
#[derive(Debug, Default)]
pub(super) struct HandleState {
    pub(super) write: bool,
    /// The file may be mapped for writing through it.
    pub(super) maps: bool,
    /// The process that opened it; `None` if it is not visible, or only reads.
    pub(super) opener: Option<u32>,
    /// The user who opened it.
    pub(super) whose: Whose,
    /// Its own replacement draft.
    pub(super) own: Option<Draft>,
    pub(super) pin: Option<Pin>,
    /// The versions that its process may have seen, for a handle that only reads.
    pub(super) reading: Reading,
    /// When the reader first met the end of its pinned version.
    ended: Option<Instant>,
    /// A descriptor of it was closed, which may have been the last.
    pub(super) flushed: bool,
    /// Number of the last change through it, in its draft.
    pub(super) wrote: u64,
    /// Lock owners that wrote, used if process ids are not visible.
    pub(super) owners: HashSet<u64>,
    /// Processes that wrote, without the opener.
    pub(super) groups: Vec<u32>,
    /// The page cache has read through it.
    pub(super) paged: bool,
    /// When its process last asked for the draft's length.
    pub(super) sought: Option<Instant>,
    /// The kernel has dropped dirty pages, and the draft may lack their bytes.
    pub(super) spoiled: bool,
}

impl HandleState {
    /// The state of a handle that process `opener` of `user` opens.
    pub(super) fn new(access: Access, opener: Option<u32>, user: u32) -> Self {
        Self {
            write: access.write,
            maps: access.write && access.read,
            opener,
            whose: Whose::of(user),
            ..Self::default()
        }
    }

    /// Whether a reader at `offset` has waited for `patience` at the end of its pinned version.
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

    /// Pins a version.
    pub(super) fn pin_to(&mut self, pin: Option<Pin>) {
        (self.pin, self.ended) = (pin, None);
    }
}
