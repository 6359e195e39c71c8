//! Contents in memory, which handles show, and for whom they count.
//!
//! Where nobody else writes, what is decrypted can be given up: it is in the store for as long as
//! somebody reads it. Beside a writer, in another process, who does not know what is read here, it has
//! to be held from the open on: once for all who have it open, and as part of the share of each.

use std::sync::{Arc, Mutex, Weak};

use crate::crypto::SecretBytes;
use crate::vault::{Content, FileBody, LastChunk, Node, Version};

use super::budget::{Account, Refused, Reservation, SMALL, Share};
use super::handles::{Handle, OpenNode};
use super::readings::Shown;
use super::{Errno, FileHandle, FileSystem};

/// A version's content in memory, or what is needed to read it piece by piece.
#[derive(Debug)]
pub(super) enum Loaded {
    Whole {
        bytes: SecretBytes,
        _reservation: Reservation,
    },
    /// What a user holds as others may, too.
    Shared {
        of: Arc<Loaded>,
        _share: Share,
    },
    Pieces(Version),
}

/// Contents in memory: version, the user for whom it counts, and the content.
#[derive(Default)]
pub(super) struct InMemory(Vec<(u64, u32, Weak<Loaded>)>);

impl InMemory {
    pub(super) fn get(&self, version: u64, user: u32) -> Option<Arc<Loaded>> {
        let mut all = self.0.iter();
        let (_, _, held) = all.find(|(v, u, _)| (*v, *u) == (version, user))?;
        held.upgrade()
    }

    /// What users hold together of a version.
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

/// The chunk that a handle read last, and room for it. Not shared: readers at different places would
/// take it from each other.
#[derive(Debug, Default)]
pub(super) struct LastRead {
    pub(super) chunk: LastChunk,
    pub(super) room: Option<Reservation>,
}

pub(super) type LastPiece = Arc<Mutex<LastRead>>;

/// The version that a reader has settled on.
#[derive(Clone, Debug)]
pub(super) struct Pin {
    pub(super) version: u64,
    pub(super) length: u64,
    /// The version that replaced another last: those from there on are edits of one content.
    pub(super) since: u64,
    /// Dropped when memory runs short, and loaded again.
    pub(super) loaded: Option<Arc<Loaded>>,
    pub(super) last: LastPiece,
}

impl FileSystem {
    /// In a read-only mount the content is taken whole when the file is opened: the writer, in
    /// another process, does not know what is pinned here.
    pub(super) fn load_at_open(
        &self,
        fh: FileHandle,
        handle: &Handle,
        thread: u32,
    ) -> Result<(), Errno> {
        let (node, pin) = self.load_current_of(&handle.node, handle.user)?;
        self.forget_others(handle.node.id, pin.as_ref().map_or(0, |pin| pin.version));
        let mut state = handle.node.lock();
        let fresh = pin.as_ref().map(Shown::of_pin);
        state.settle_beside_writer(fh, node, pin);
        if let Some(own) = state.handles.get_mut(&fh) {
            own.reading.thread = thread;
            own.reading.fresh = fresh;
        }
        Ok(())
    }

    /// What is current, whole, and counts for `user`; of which nothing was published if there is no
    /// content. It is not decrypted again while anybody has it.
    pub(super) fn load_current_of(
        &self,
        open: &OpenNode,
        user: u32,
    ) -> Result<(Arc<Node>, Option<Pin>), Errno> {
        let node = self.nodes.present(open.id)?;
        let file = *node.file()?;
        let is_large = file.size > SMALL;
        if let Some(pin) = self.known_pin(open, &file, user)? {
            return Ok((node, Some(pin)));
        }
        // Two at once would need room for two.
        let _alone = is_large.then(|| open.lock_loading());
        if is_large && let Some(pin) = self.known_pin(open, &file, user)? {
            return Ok((node, Some(pin)));
        }
        let mut room = Err(Errno(libc::ENOMEM));
        let content = self.vault.content_within(open.id, &mut |file| {
            // What this had before, if it is asked again, is given back first.
            room = Err(Errno(libc::ENOMEM));
            room = self.room_for(user, file.size);
            room.as_ref().map_or(0, |_| file.size)
        });
        let (node, content) = content.map_err(|error| self.nodes.gone(error))?;
        let pin = pin_of(&node, content, room)?;
        if let Some(pin) = &pin
            && let Some(loaded) = &pin.loaded
        {
            open.lock().loaded.insert(pin.version, user, loaded);
        }
        Ok((node, pin))
    }

    /// What `user` holds of the current version if anybody has it in memory.
    fn known_pin(&self, open: &OpenNode, file: &FileBody, user: u32) -> Result<Option<Pin>, Errno> {
        let mut state = open.lock();
        let loaded = match state.loaded.get(file.version, user) {
            Some(own) => own,
            None => match state.loaded.shared(file.version) {
                Some(of) => {
                    let share = self.or_give_up(user, |account| account.share(file.size))?;
                    let own = Arc::new(Loaded::Shared { of, _share: share });
                    state.loaded.insert(file.version, user, &own);
                    own
                }
                None => return Ok(None),
            },
        };
        let pin = Shown::of(file).pin();
        Ok(Some(Pin {
            loaded: Some(loaded),
            ..pin
        }))
    }

    /// Room for a content of `size` bytes, before any of it is decrypted.
    pub(super) fn room_for(&self, user: u32, size: u64) -> Result<Room, Errno> {
        self.or_give_up(user, |account| match size <= SMALL {
            true => account.reserve(size, size).map(|room| (room, None)),
            false => {
                let shared = account.reserve_shared(size);
                shared.map(|(room, share)| (room, Some(share)))
            }
        })
    }

    /// What somebody has opened comes before what he may be about to open.
    fn or_give_up<T>(
        &self,
        user: u32,
        take: impl Fn(&Account) -> Result<T, Refused>,
    ) -> Result<T, Errno> {
        let account = self.budget.of(user);
        take(&account)
            .or_else(|_| {
                self.askers.drop_contents(user);
                take(&account)
            })
            .map_err(|_| Errno(libc::ENOMEM))
    }
}

/// Room for a content, and the user's share of it if others may come to hold it as well.
pub(super) type Room = (Reservation, Option<Share>);

/// What a handle of `node` holds that settles on `content`, which has `room`.
pub(super) fn pin_of(
    node: &Node,
    content: Content,
    room: Result<Room, Errno>,
) -> Result<Option<Pin>, Errno> {
    let file = node.file()?;
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
