//! Reading through handles: which version or draft a read sees, and how it is decrypted.

use std::sync::{Arc, PoisonError};

use crate::crypto::SecretBytes;
use crate::vault::{Content, LastChunk, Node, Version};

use super::blocks::Window;
use super::control;
use super::handles::{Handle, LastPiece, Loaded, NodeState, Pin};
use super::{Errno, FileHandle, FileSystem};

/// Contents up to this many bytes are decrypted whole; larger ones chunk by chunk.
const WHOLE: u64 = 128 * 1024;

/// Called once with what was read.
pub type ReadDone = Box<dyn FnOnce(Result<&[u8], Errno>) + Send>;

/// What the caller of a write or read says of itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Transfer {
    /// The kernel's lock owner; none for the page cache (`mmap`, `sendfile`, `splice`).
    pub lock_owner: Option<u64>,
    /// The writer is not privileged: set-id bits go.
    pub kill_set_id: bool,
}

/// Where a read finds its bytes.
enum View {
    /// In a draft.
    Draft(Window),
    /// Nowhere: nothing was published or written.
    Nothing,
    /// In a version.
    Version(Pin),
    /// It has to wait for a publication.
    Unsettled,
}

impl FileSystem {
    /// Reads up to `size` bytes at `offset`; fewer only at the end.
    pub fn read(
        self: &Arc<Self>,
        fh: FileHandle,
        offset: u64,
        size: u32,
        transfer: Transfer,
        done: ReadDone,
    ) {
        if control::is_control_handle(fh) {
            return self.read_control(fh, offset, size, done);
        }
        let handle = match self.table.get(fh) {
            Ok(handle) if handle.access.read => handle,
            // The page cache reads for a program that only writes, to fill a page.
            Ok(handle) if transfer.lock_owner.is_none() => handle,
            Ok(_) => return done(Err(Errno(libc::EBADF))),
            Err(error) => return done(Err(error)),
        };
        if transfer.lock_owner.is_none() {
            handle.node.lock().paged = true;
        }
        match self.view(fh, &handle, offset, size) {
            Ok(View::Draft(window)) => window.give(done),
            Ok(View::Nothing) => done(Ok(&[])),
            Ok(View::Version(pin)) => self.read_version(fh, &handle, pin, offset, size, done),
            Ok(View::Unsettled) => {
                let fs = Arc::clone(self);
                let again = move || fs.read(fh, offset, size, transfer, done);
                self.when_settled(handle.node.id, again);
            }
            Err(error) => done(Err(error)),
        }
    }

    /// Finds out where a read at `offset` looks, and settles the handle on a version if need be.
    fn view(&self, fh: FileHandle, handle: &Handle, offset: u64, size: u32) -> Result<View, Errno> {
        let mut state = handle.node.lock();
        if let Some(draft) = state.draft_of(fh) {
            return Ok(View::Draft(draft.image().window(offset, size)));
        }
        let (waits, pin) = match state.handles.get_mut(&fh) {
            Some(own) => (
                own.waits_at_end(offset, self.settings.end_patience),
                own.pin.clone(),
            ),
            None => (false, None),
        };
        if self.vault.is_read_only() {
            drop(state);
            return self.view_beside_writer(fh, handle, pin, offset == 0 || waits);
        }
        let file = *self.node(handle.node.id)?.file()?;
        if state.shows_draft(file.version) {
            return Ok(match &state.shared {
                Some(shared) => View::Draft(shared.image().window(offset, size)),
                None => View::Nothing,
            });
        }
        let moves = match &pin {
            None => true,
            Some(pin) if pin.version == file.version => false,
            Some(pin) => {
                handle.access.write || pin.version >= file.replaced || offset == 0 || waits
            }
        };
        if !moves && let Some(pin) = pin {
            return Ok(View::Version(pin));
        }
        if state.publishing > 0 {
            return Ok(View::Unsettled);
        }
        let loaded = state
            .loaded
            .get(&file.version)
            .and_then(std::sync::Weak::upgrade);
        let pin = Pin {
            version: file.version,
            length: file.size,
            loaded,
            last: LastPiece::default(),
        };
        if let Some(own) = state.handles.get_mut(&fh) {
            own.settle(Some(pin.clone()));
        }
        Ok(View::Version(pin))
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
            Ok(Loaded::Pieces(version)) => {
                let mut last = pin.last.lock().unwrap_or_else(PoisonError::into_inner);
                match self.read_pieces(version, &mut last, offset, size) {
                    Ok(bytes) => done(Ok(&bytes)),
                    Err(error) => done(Err(error)),
                }
            }
            Err(error) => done(Err(*error)),
        }
    }

    /// Decrypts a version, or takes it from another handle that has it.
    fn load(&self, fh: FileHandle, handle: &Handle, version: u64) -> Result<Arc<Loaded>, Errno> {
        let known = {
            let state = handle.node.lock();
            state
                .loaded
                .get(&version)
                .and_then(std::sync::Weak::upgrade)
        };
        let loaded = match known {
            Some(loaded) => loaded,
            None => {
                let content = self.vault.version(handle.node.id, version, WHOLE)?;
                self.hold(content, handle.node.id)?
            }
        };
        remember(&mut handle.node.lock(), fh, version, &loaded);
        Ok(loaded)
    }

    /// Accounts for a content in memory; when there is no room, it is read piece by piece.
    fn hold(&self, content: Content, node: u64) -> Result<Arc<Loaded>, Errno> {
        let loaded = match content {
            Content::Whole { version, bytes } => match self.budget.reserve(bytes.len() as u64) {
                Some(reservation) => Loaded::Whole {
                    bytes,
                    _reservation: reservation,
                },
                None => match self.vault.version(node, version, 0)? {
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
        last: &mut LastChunk,
        offset: u64,
        size: u32,
    ) -> Result<SecretBytes, Errno> {
        let end = offset.saturating_add(size.into()).min(version.length());
        let mut out = SecretBytes::zeroed(end.saturating_sub(offset) as usize)?;
        self.vault.read_at(version, offset, &mut out, last)?;
        Ok(out)
    }

    /// Wipes the decrypted contents that handles hold; they are decrypted again when read. Must
    /// not be called with a node locked: all of them are.
    pub(super) fn evict_snapshots(&self) {
        if self.vault.is_read_only() {
            return;
        }
        for node in self.table.all_nodes() {
            let mut state = node.lock();
            for pin in state.handles.values_mut().filter_map(|h| h.pin.as_mut()) {
                pin.loaded = None;
                pin.last = LastPiece::default();
            }
        }
    }

    // --- beside a writer ------------------------------------------------------------------------

    /// In a read-only mount the content is taken whole when the file is opened: the writer, in
    /// another process, does not know what is pinned here.
    pub(super) fn load_at_open(&self, fh: FileHandle, handle: &Handle) -> Result<(), Errno> {
        self.load_current(fh, handle).map(drop)
    }

    /// Settles a handle on the content that its file has now.
    fn load_current(&self, fh: FileHandle, handle: &Handle) -> Result<Option<Pin>, Errno> {
        let content = self.vault.content(handle.node.id, u64::MAX);
        let (node, content) = content.map_err(|error| self.gone(error))?;
        let pin = self.pin(&node, content)?;
        let mut state = handle.node.lock();
        state.settle_beside_writer(fh, node, pin.clone());
        Ok(pin)
    }

    /// What a handle of `node` holds that settles on `content`.
    pub(super) fn pin(&self, node: &Node, content: Content) -> Result<Option<Pin>, Errno> {
        let file = node.file()?;
        let bytes = match content {
            Content::Whole { bytes, .. } => bytes,
            Content::Unpublished => return Ok(None),
            Content::Pieces(_) => return Err(Errno(libc::ENOMEM)),
        };
        let size = bytes.len() as u64;
        let reservation = self.budget.reserve(size).or_else(|| {
            // What somebody has opened comes before what somebody may be about to open.
            self.askers.drop_contents();
            self.budget.reserve(size)
        });
        let reservation = reservation.ok_or(Errno(libc::ENOMEM))?;
        let loaded = Arc::new(Loaded::Whole {
            bytes,
            _reservation: reservation,
        });
        Ok(Some(Pin {
            version: file.version,
            length: file.size,
            loaded: Some(loaded),
            last: LastPiece::default(),
        }))
    }

    fn view_beside_writer(
        &self,
        fh: FileHandle,
        handle: &Handle,
        pin: Option<Pin>,
        anew: bool,
    ) -> Result<View, Errno> {
        let moves = match (&pin, self.present(handle.node.id)) {
            // Removed by the writer: what was opened can still be read.
            (_, Err(Errno(libc::ESTALE))) => false,
            (_, Err(error)) => return Err(error),
            (None, Ok(node)) => node.file()?.version > 0,
            (Some(pin), Ok(node)) => {
                let file = node.file()?;
                pin.version != file.version && (pin.version >= file.replaced || anew)
            }
        };
        let pin = match moves {
            true => match self.load_current(fh, handle) {
                Err(Errno(libc::ESTALE)) => pin,
                loaded => loaded?,
            },
            false => pin,
        };
        Ok(pin.map_or(View::Nothing, View::Version))
    }
}

/// The part of `bytes` that a read at `offset` gets.
pub(super) fn window(bytes: &[u8], offset: u64, size: u32) -> &[u8] {
    let start = usize::try_from(offset)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    let end = start.saturating_add(size as usize).min(bytes.len());
    &bytes[start..end]
}

fn remember(state: &mut NodeState, fh: FileHandle, version: u64, loaded: &Arc<Loaded>) {
    state.loaded.retain(|_, held| held.strong_count() > 0);
    state.loaded.insert(version, Arc::downgrade(loaded));
    if let Some(pin) = state.handles.get_mut(&fh).and_then(|h| h.pin.as_mut())
        && pin.version == version
    {
        pin.loaded = Some(Arc::clone(loaded));
    }
}
