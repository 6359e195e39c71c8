//! Reads through handles: the version or draft that a read sees, and its decryption.

use std::sync::Arc;
use std::time::Duration;

use crate::crypto::SecretBytes;
use crate::vault::{Content, FileBody, LastChunk, Vault, Version};

use super::blocks::Window;
use super::budget::{Budget, SMALL, UNKNOWN};
use super::descriptors;
use super::errno::file_of;
use super::failures::Failures;
use super::handles::{Handle, NodeState};
use super::kernel::Device;
use super::loaded::{LastRead, Loaded, Pin, Shown};
use super::loading::Loader;
use super::nodes::Nodes;
use super::page_cache::PageCache;
use super::publication_wait::PublicationWait;
use super::table::Table;
use super::{Errno, FileHandle, ReadDone, Transfer, window};

/// Contents up to this many bytes are decrypted as a whole; larger ones chunk by chunk.
const WHOLE: u64 = SMALL;

/// The source of a read's bytes.
enum View {
    /// In a draft.
    Draft(Window),
    /// Nowhere, because nothing was published or written.
    Nothing,
    /// In a version.
    Version(Pin),
    /// Unknown: the read must wait for a publication.
    Awaited,
}

/// The version that a read uses.
enum Next {
    /// The published one.
    Current,
    /// This one, even if others were published since.
    Pinned(Pin),
}

/// The reads of a mount.
pub(super) struct Reads {
    /// A reader that asks again at the end of a replaced content after this long is waiting for
    /// more.
    pub(super) end_patience: Duration,
    pub(super) vault: Arc<Vault>,
    pub(super) failures: Arc<Failures>,
    pub(super) table: Arc<Table>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) loader: Arc<Loader>,
    pub(super) page_cache: Arc<PageCache>,
    pub(super) publications: Arc<PublicationWait>,
    pub(super) budget: Arc<Budget>,
    pub(super) device: Arc<Device>,
}

impl Reads {
    /// Reads up to `size` bytes at `offset`; fewer only at the end.
    pub(super) fn read(
        self: &Arc<Self>,
        fh: FileHandle,
        offset: u64,
        size: u32,
        transfer: Transfer,
        done: ReadDone,
    ) {
        let handle = match self.table.get(fh) {
            Ok(handle) if handle.access.read => handle,
            // A handle for writing only: the page cache may read through it to fill a page, a
            // program may not.
            Ok(handle) if transfer.lock_owner.is_none() => handle,
            Ok(_) => return done(Err(Errno(libc::EBADF))),
            Err(error) => return done(Err(error)),
        };
        let view = self.view(fh, &handle, (offset, size), transfer);
        if transfer.lock_owner.is_none()
            && let Ok(view) = &view
        {
            let content = match view {
                View::Version(pin) => Some(pin.since),
                View::Draft(_) | View::Nothing => None,
                View::Awaited => Some(0),
            };
            if !matches!(view, View::Awaited)
                && let Err(error) = self.page_cache.admit(&handle.node, fh, content)
            {
                // Nothing was read, so the kernel tries again.
                if let Some(own) = handle.node.lock().handles.get_mut(&fh)
                    && !own.write
                {
                    own.reading.fresh = own.pin.as_ref().map(Shown::of_pin);
                }
                return done(Err(error));
            }
        }
        match view {
            Ok(View::Draft(window)) => window.give(done),
            Ok(View::Nothing) => done(Ok(&[])),
            Ok(View::Version(pin)) => self.read_version(fh, &handle, pin, offset, size, done),
            Ok(View::Awaited) => {
                let reads = Arc::clone(self);
                let again = move || reads.read(fh, offset, size, transfer, done);
                self.publications.when_stored(handle.node.id, again);
            }
            Err(error) => done(Err(error)),
        }
    }

    /// Finds the source of a read, and pins the handle to a version if needed.
    fn view(
        &self,
        fh: FileHandle,
        handle: &Handle,
        (offset, size): (u64, u32),
        transfer: Transfer,
    ) -> Result<View, Errno> {
        let mut state = handle.node.lock();
        if let Some(draft) = state.draft_of(fh) {
            return Ok(View::Draft(draft.image().window(offset, size)));
        }
        let beside_writer = self.vault.is_read_only();
        let file = match self.nodes.stored(handle.node.id) {
            // The writer has removed the file, but its content at the open can still be read.
            Err(Errno(libc::ESTALE)) if beside_writer => None,
            node => Some(*file_of(&*node?)?),
        };
        if file.is_some_and(|file| state.shows_draft(file.version)) {
            return Ok(match &state.shared {
                Some(shared) => View::Draft(shared.image().window(offset, size)),
                None => View::Nothing,
            });
        }
        let next = self.next_version(&mut state, handle, fh, file.as_ref(), offset, transfer);
        let pin = match next {
            Next::Pinned(pin) => pin,
            Next::Current if beside_writer => {
                drop(state);
                let loaded = self.loader.load_current_of(&handle.node, handle.user);
                state = handle.node.lock();
                let pinned = state.handles.get(&fh).and_then(|own| own.pin.clone());
                let pin = match loaded {
                    Ok((node, pin)) => {
                        state.remember_opened(node);
                        pin
                    }
                    // The file was removed meanwhile.
                    Err(Errno(libc::ESTALE)) => pinned,
                    Err(error) => return Err(error),
                };
                let Some(pin) = pin else {
                    return Ok(View::Nothing);
                };
                pin
            }
            Next::Current if state.publishing > 0 => return Ok(View::Awaited),
            Next::Current => match &file {
                Some(file) => Shown::of(file).pin(),
                None => return Ok(View::Nothing),
            },
        };
        let mut locked = state;
        let state = &mut *locked;
        state.readers().forget_seen(fh, transfer.pid);
        let Some(own) = state.handles.get_mut(&fh) else {
            return Ok(View::Version(pin));
        };
        let is_pinned = own.pin.as_ref().is_some_and(|p| p.version == pin.version);
        if !is_pinned {
            let user = self.holder(handle);
            let known = || state.loaded.get(pin.version, user);
            let loaded = pin.loaded.clone().or_else(known);
            own.pin_to(Some(Pin { loaded, ..pin }));
        }
        let Some(pin) = own.pin.clone() else {
            return Ok(View::Nothing);
        };
        own.reading.note(offset, size, pin.length, transfer.pid);
        // Set both in one step: other threads see neither or both.
        own.paged |= transfer.lock_owner.is_none();
        drop(locked);
        if beside_writer && !is_pinned {
            // The kernel may have stored the attributes of a version in between.
            let ino = handle.node.id;
            self.loader.forget_other_versions(ino, pin.version);
        }
        Ok(View::Version(pin))
    }

    /// The version for a read: the handle's pinned one, or the current one.
    fn next_version(
        &self,
        state: &mut NodeState,
        handle: &Handle,
        fh: FileHandle,
        file: Option<&FileBody>,
        offset: u64,
        transfer: Transfer,
    ) -> Next {
        let Some(own) = state.handles.get_mut(&fh) else {
            return Next::Current;
        };
        let waits = own.waits_at_end(offset, self.end_patience);
        let reading = own.reading;
        let pin = own.pin.clone();
        let Some(file) = file else {
            // The file is removed: use the version that its process has seen since, or the opened
            // one.
            let fresh = reading.fresh;
            let seen = fresh.and_then(|fresh| state.readers().seen_since(fh, fresh, transfer.pid));
            return seen.or(pin).map_or(Next::Current, Next::Pinned);
        };
        if let Some(fresh) = reading.fresh {
            if fresh.version == file.version {
                return pin
                    .filter(|pin| pin.version == file.version)
                    .map_or(Next::Current, Next::Pinned);
            }
            // The file was replaced since it was opened.
            return match state.readers().seen_since(fh, fresh, transfer.pid) {
                Some(seen) => Next::Pinned(seen),
                None if self.is_locked(handle.node.id) => Next::Current,
                None => Next::Pinned(pin.unwrap_or_else(|| fresh.pin())),
            };
        }
        let Some(pin) = pin else {
            return Next::Current;
        };
        // A mapping shows in-place edits, whatever version its process has seen.
        let by_page = transfer.lock_owner.is_none();
        if by_page && pin.version != file.version && pin.version >= file.replaced {
            return Next::Current;
        }
        if offset == 0 && !handle.access.write && pin.version != file.version {
            if reading.held && !self.is_locked(handle.node.id) {
                return Next::Pinned(pin);
            }
            // The reader begins again: use the version last seen, or the newest. A page may be
            // missing from a mapping of the previous version, so for pages only a version that was
            // seen counts.
            let seen = state
                .readers()
                .seen_again(Shown::of_pin(&pin), transfer.pid);
            return match seen.filter(|_| !self.is_locked(handle.node.id)) {
                Some(seen) => Next::Pinned(seen),
                None if by_page => Next::Pinned(pin),
                None => Next::Current,
            };
        }
        let moves = pin.version != file.version
            && (handle.access.write || !by_page && (waits || pin.version >= file.replaced));
        match moves {
            true => Next::Current,
            false => Next::Pinned(pin),
        }
    }

    /// Whether any process holds a lock on the file: a process that has waited for a lock must see
    /// what was written under it. Callers check this only if a version was published since the
    /// open.
    fn is_locked(&self, node: u64) -> bool {
        !self.vault.is_read_only() && descriptors::is_locked(node, self.device.get())
    }

    fn read_version(
        &self,
        fh: FileHandle,
        handle: &Handle,
        pin: Pin,
        offset: u64,
        size: u32,
        done: ReadDone,
    ) {
        let loaded = match pin.loaded {
            Some(loaded) => Ok(loaded),
            None => self.load(fh, handle, pin.version),
        };
        match loaded.as_deref() {
            Ok(Loaded::Whole { bytes, .. }) => done(Ok(window(bytes, offset, size))),
            Ok(Loaded::Shared { of, .. }) => match &**of {
                Loaded::Whole { bytes, .. } => done(Ok(window(bytes, offset, size))),
                // Only whole contents are shared.
                Loaded::Shared { .. } | Loaded::Pieces(_) => done(Err(Errno(libc::EIO))),
            },
            Ok(Loaded::Pieces(version)) => {
                let last = pin.last;
                let read = self.read_pieces(version, &mut last.lock(), offset, size);
                // A copy writes what it has read, and may need the room that this piece takes.
                drop(last);
                match read {
                    Ok(bytes) => done(Ok(&bytes)),
                    Err(error) => done(Err(error)),
                }
            }
            Err(error) => done(Err(*error)),
        }
    }

    /// Decrypts a version, or shares it with another handle that has it.
    fn load(&self, fh: FileHandle, handle: &Handle, version: u64) -> Result<Arc<Loaded>, Errno> {
        let user = self.holder(handle);
        let known = handle.node.lock().loaded.get(version, user);
        let loaded = match known {
            Some(loaded) => loaded,
            None => {
                let content = self.vault.version(handle.node.id, version, WHOLE);
                self.hold(self.failures.to_errno(content)?, handle.node.id)?
            }
        };
        remember(&mut handle.node.lock(), fh, (version, user), &loaded);
        Ok(loaded)
    }

    /// The user whose budget a handle's content counts in: beside a writer, where it must be held,
    /// the user who opened the handle; otherwise nobody.
    fn holder(&self, handle: &Handle) -> u32 {
        match self.vault.is_read_only() {
            true => handle.user,
            false => UNKNOWN,
        }
    }

    /// Accounts for a content in memory. Without room for it, it is read chunk by chunk.
    fn hold(&self, content: Content, node: u64) -> Result<Arc<Loaded>, Errno> {
        let loaded = match content {
            Content::Whole { version, bytes } => match self.budget.keep(bytes.len() as u64) {
                Some(reservation) => Loaded::Whole {
                    bytes,
                    _reservation: reservation,
                },
                None => match self
                    .failures
                    .to_errno(self.vault.version(node, version, 0))?
                {
                    Content::Pieces(version) => Loaded::Pieces(version),
                    Content::Whole { .. } | Content::Unpublished => {
                        return Err(Errno(libc::ENOMEM));
                    }
                },
            },
            Content::Pieces(version) => Loaded::Pieces(version),
            Content::Unpublished => return Err(Errno(libc::EIO)),
        };
        Ok(Arc::new(loaded))
    }

    fn read_pieces(
        &self,
        version: &Version,
        last: &mut LastRead,
        offset: u64,
        size: u32,
    ) -> Result<SecretBytes, Errno> {
        let end = offset.saturating_add(size.into()).min(version.length());
        let mut out = SecretBytes::zeroed(end.saturating_sub(offset) as usize)?;
        let read = self
            .vault
            .read_at(version, offset, &mut out, &mut last.chunk);
        self.failures.to_errno(read)?;
        let size = last.chunk.size();
        if last.room.as_ref().is_none_or(|room| room.bytes() < size) {
            last.room = self.budget.keep_if_half_is_free(size);
            if last.room.is_none() {
                last.chunk = LastChunk::default();
            }
        }
        Ok(out)
    }
}

fn remember(
    state: &mut NodeState,
    fh: FileHandle,
    (version, user): (u64, u32),
    loaded: &Arc<Loaded>,
) {
    state.loaded.insert(version, user, loaded);
    if let Some(pin) = state.handles.get_mut(&fh).and_then(|h| h.pin.as_mut())
        && pin.version == version
    {
        pin.loaded = Some(Arc::clone(loaded));
    }
}
