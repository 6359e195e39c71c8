//! Loads whole contents into memory beside a writer, in the share of the user who opens them.

use std::sync::Arc;

use crate::store::NodeId;
use crate::vault::{FileBody, Node, Vault};

use super::askers::Askers;
use super::budget::{Account, Budget, Refused, SMALL};
use super::errno::file_of;
use super::handles::{Handle, OpenNode};
use super::kernel::Kernel;
use super::loaded::{Loaded, Pin, Room, Shown, pin_of};
use super::nodes::Nodes;
use super::table::Table;
use super::{Errno, FileHandle};

/// Loads contents, as the module describes.
pub(super) struct Loader {
    pub(super) vault: Arc<Vault>,
    pub(super) table: Arc<Table>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) budget: Arc<Budget>,
    pub(super) askers: Arc<Askers>,
    pub(super) kernel: Arc<Kernel>,
}

impl Loader {
    /// Loads the whole content at the open in a read-only mount: the writer, in another process,
    /// does not know the pins here.
    pub(super) fn load_at_open(
        &self,
        fh: FileHandle,
        handle: &Handle,
        thread: u32,
    ) -> Result<(), Errno> {
        let (node, pin) = self.load_current_of(&handle.node, handle.user)?;
        self.pin(fh, handle, thread, node, pin);
        Ok(())
    }

    /// Beside a writer: pins a handle, which `thread` opens, to the version that was read.
    pub(super) fn pin(
        &self,
        fh: FileHandle,
        handle: &Handle,
        thread: u32,
        node: Arc<Node>,
        pin: Option<Pin>,
    ) {
        let fresh = pin.as_ref().map(Shown::of_pin);
        let version = fresh.map_or(0, |fresh| fresh.version);
        let mut state = handle.node.lock();
        state.pin_beside_writer(fh, node, pin);
        if let Some(own) = state.handles.get_mut(&fh) {
            own.reading.thread = thread;
            own.reading.fresh = fresh;
        }
        drop(state);
        // Only now: from here on, answers to other processes take this handle into account.
        self.forget_other_versions(handle.node.id, version);
    }

    /// The whole current content, counted for `user`; `None` if none was published. It is not
    /// decrypted again while any handle has it.
    pub(super) fn load_current_of(
        &self,
        open: &OpenNode,
        user: u32,
    ) -> Result<(Arc<Node>, Option<Pin>), Errno> {
        let node = self.nodes.stored(open.id)?;
        let file = *file_of(&node)?;
        let is_large = file.size > SMALL;
        if let Some(pin) = self.known_pin(open, &file, user)? {
            return Ok((node, Some(pin)));
        }
        // Two threads at once would need memory for two.
        let _alone = is_large.then(|| open.lock_loading());
        if is_large && let Some(pin) = self.known_pin(open, &file, user)? {
            return Ok((node, Some(pin)));
        }
        let mut room = Err(Errno(libc::ENOMEM));
        let content = self.vault.content_within(open.id, &mut |file| {
            // If this runs again, release the previous reservation first.
            room = Err(Errno(libc::ENOMEM));
            room = self.room_for(user, file.size);
            room.as_ref().map_or(0, |_| file.size)
        });
        let (node, content) = content.map_err(|error| self.nodes.errno(error))?;
        let pin = pin_of(&node, content, room)?;
        if let Some(pin) = &pin
            && let Some(loaded) = &pin.loaded
        {
            open.lock().loaded.insert(pin.version, user, loaded);
        }
        Ok((node, pin))
    }

    /// The pin of `user` to the current version, if any handle has it in memory.
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

    /// Reserves memory for a content of `size` bytes, before any of it is decrypted.
    pub(super) fn room_for(&self, user: u32, size: u64) -> Result<Room, Errno> {
        self.or_give_up(user, |account| match size <= SMALL {
            true => account.reserve(size, size).map(|room| (room, None)),
            false => {
                let shared = account.reserve_shared(size);
                shared.map(|(room, share)| (room, Some(share)))
            }
        })
    }

    /// Reserves memory, and frees held contents if needed: an open file comes before one that the
    /// user may open.
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

    /// Makes the kernel forget attributes of all versions except `version`. The note changes
    /// afterwards: a thread that finds it changed knows that the kernel has forgotten.
    pub(super) fn forget_other_versions(&self, ino: NodeId, version: u64) {
        if let Some(remembered) = self.table.remembered_version(ino)
            && remembered != version
        {
            self.kernel.forget_attributes(ino);
            self.table.replace_remembered(ino, remembered, version);
        }
    }
}
