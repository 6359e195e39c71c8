//! Contents in memory, which handles show, and the users whose budgets they count in.
//!
//! In a mount for writing, a decrypted content can be freed at any time: the store has it as long
//! as a handle reads it. Beside a writer in another process, which does not know the readers here,
//! it must be held from the open on: once for all who have it open, and in the share of each.

use std::sync::{Arc, Weak};

use crate::crypto::SecretBytes;
use crate::sync::{Mutex, MutexGuard, Rank};
use crate::vault::{Content, FileBody, LastChunk, Node, Version};

use super::Errno;
use super::budget::{Reservation, Share};
use super::errno::file_of;

/// A version's content in memory, or the means to read it chunk by chunk.
#[derive(Debug)]
pub(super) enum Loaded {
    Whole {
        bytes: SecretBytes,
        _reservation: Reservation,
    },
    /// A content that several users may hold.
    Shared {
        of: Arc<Loaded>,
        _share: Share,
    },
    Pieces(Version),
}

/// Contents in memory: version, user, and content.
#[derive(Default)]
pub(super) struct InMemory(Vec<(u64, u32, Weak<Loaded>)>);

impl InMemory {
    pub(super) fn get(&self, version: u64, user: u32) -> Option<Arc<Loaded>> {
        let mut all = self.0.iter();
        let (_, _, held) = all.find(|(v, u, _)| (*v, *u) == (version, user))?;
        held.upgrade()
    }

    /// The shared content of a version, if users hold one.
    pub(super) fn shared(&self, version: u64) -> Option<Arc<Loaded>> {
        let mut of_version = self.0.iter().filter(|(v, ..)| *v == version);
        of_version.find_map(|(_, _, held)| match &*held.upgrade()? {
            Loaded::Shared { of, .. } => Some(Arc::clone(of)),
            Loaded::Whole { .. } | Loaded::Pieces(_) => None,
        })
    }

    pub(super) fn insert(&mut self, version: u64, user: u32, loaded: &Arc<Loaded>) {
        self.0
            .retain(|(v, u, held)| (*v, *u) != (version, user) && held.strong_count() > 0);
        self.0.push((version, user, Arc::downgrade(loaded)));
    }
}

/// The chunk that a handle last read, with its reservation. It is not shared: readers at different
/// places would take it from each other.
#[derive(Debug, Default)]
pub(super) struct LastRead {
    pub(super) chunk: LastChunk,
    pub(super) room: Option<Reservation>,
}

/// The last piece that a handle read, shared with the other holders of the same version for it.
#[derive(Clone, Debug)]
pub(super) struct LastPiece(Arc<Mutex<LastRead>>);

impl Default for LastPiece {
    fn default() -> Self {
        let nothing = LastRead::default();
        Self(Arc::new(Mutex::new(Rank::LastPiece, nothing)))
    }
}

impl LastPiece {
    pub(super) fn lock(&self) -> MutexGuard<'_, LastRead> {
        self.0.lock()
    }
}

/// The version that a reader is pinned to.
#[derive(Clone, Debug)]
pub(super) struct Pin {
    pub(super) version: u64,
    pub(super) length: u64,
    /// The version that last replaced the content: later ones are edits of it.
    pub(super) since: u64,
    /// The content. Dropped if memory runs short, and loaded again.
    pub(super) loaded: Option<Arc<Loaded>>,
    pub(super) last: LastPiece,
}

/// The reservation for a content, and the user's share if others may hold it, too.
pub(super) type Room = (Reservation, Option<Share>);

/// The pin of a handle of `node` to `content`, with its reservation `room`.
pub(super) fn pin_of(
    node: &Node,
    content: Content,
    room: Result<Room, Errno>,
) -> Result<Option<Pin>, Errno> {
    let file = file_of(node)?;
    let bytes = match content {
        Content::Whole { bytes, .. } => bytes,
        Content::Unpublished => return Ok(None),
        Content::Pieces(_) => return Err(room.err().unwrap_or(Errno(libc::ENOMEM))),
    };
    let (reservation, share) = room?;
    let whole = Arc::new(Loaded::Whole {
        bytes,
        _reservation: reservation,
    });
    let loaded = match share {
        Some(share) => Arc::new(Loaded::Shared {
            of: whole,
            _share: share,
        }),
        None => whole,
    };
    Ok(Some(Pin {
        loaded: Some(loaded),
        ..Shown::of(file).pin()
    }))
}

/// A version and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) version: u64,
    pub(super) length: u64,
    pub(super) since: u64,
}

impl Shown {
    pub(super) fn of(file: &FileBody) -> Self {
        Self {
            version: file.version,
            length: file.size,
            since: file.replaced,
        }
    }

    pub(super) fn of_pin(pin: &Pin) -> Self {
        Self {
            version: pin.version,
            length: pin.length,
            since: pin.since,
        }
    }

    pub(super) fn pin(self) -> Pin {
        Pin {
            version: self.version,
            length: self.length,
            since: self.since,
            loaded: None,
            last: LastPiece::default(),
        }
    }
}
