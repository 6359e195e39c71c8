//! Reading and writing through handles.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::crypto::SecretBytes;
use crate::vault::{CHUNK, Content, Publication, Version};

use super::control;
use super::draft::Draft;
use super::handles::{Handle, LastPiece, Loaded, NodeState, Pin};
use super::{Done, Errno, FileHandle, FileSystem};

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
    Draft(Arc<SecretBytes>),
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
        match self.view(fh, &handle, offset) {
            Ok(View::Draft(bytes)) => done(Ok(window(&bytes, offset, size))),
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
    fn view(&self, fh: FileHandle, handle: &Handle, offset: u64) -> Result<View, Errno> {
        let mut state = handle.node.lock();
        if let Some(draft) = state.draft_of(fh) {
            return Ok(View::Draft(Arc::clone(draft.bytes())));
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
        if file.version == 0 {
            return Ok(match &state.shared {
                Some(shared) => View::Draft(Arc::clone(shared.bytes())),
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
        last: &mut Option<(u32, SecretBytes)>,
        offset: u64,
        size: u32,
    ) -> Result<SecretBytes, Errno> {
        let end = offset.saturating_add(size.into()).min(version.length());
        let length = end.saturating_sub(offset) as usize;
        let mut out = SecretBytes::zeroed(length)?;
        let mut filled = 0;
        while filled < length {
            let at = offset + filled as u64;
            let index = (at / CHUNK as u64) as u32;
            if last.as_ref().is_none_or(|(held, _)| *held != index) {
                *last = Some((index, self.vault.chunk(version, index)?));
            }
            let Some((_, chunk)) = last else {
                return Err(Errno(libc::EIO));
            };
            let part = chunk
                .get((at % CHUNK as u64) as usize..)
                .unwrap_or_default();
            let count = part.len().min(length - filled);
            if count == 0 {
                return Err(Errno(libc::EIO));
            }
            out[filled..filled + count].copy_from_slice(&part[..count]);
            filled += count;
        }
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
        let pin = self.load_current(handle)?;
        if let Some(own) = handle.node.lock().handles.get_mut(&fh) {
            own.pin = pin;
        }
        Ok(())
    }

    fn load_current(&self, handle: &Handle) -> Result<Option<Pin>, Errno> {
        let content = self.vault.content(handle.node.id, u64::MAX);
        let (node, content) = content.map_err(|error| self.gone(error))?;
        let file = node.file()?;
        let Content::Whole { bytes, .. } = content else {
            return Ok(None);
        };
        let reservation = self
            .budget
            .reserve(bytes.len() as u64)
            .ok_or(Errno(libc::ENOMEM))?;
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
        let moves = match (&pin, self.node(handle.node.id)) {
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
            true => {
                let pin = self.load_current(handle)?;
                if let Some(own) = handle.node.lock().handles.get_mut(&fh) {
                    own.settle(pin.clone());
                }
                pin
            }
            false => pin,
        };
        Ok(pin.map_or(View::Nothing, View::Version))
    }

    // --- writing --------------------------------------------------------------------------------

    /// Writes `data` at `offset`, or at the end for a handle that appends.
    pub fn write(
        self: &Arc<Self>,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        transfer: Transfer,
        done: Done<u32>,
    ) {
        let handle = match self.writable(fh) {
            Ok(handle) => handle,
            Err(error) => return done(Err(error)),
        };
        if transfer.kill_set_id {
            self.drop_set_id_bits(handle.node.id);
        }
        let count = data.len() as u32;
        // The page cache writes back whole pages where they belong.
        let append = handle.append.load(Ordering::Relaxed) && transfer.lock_owner.is_some();
        match self.with_draft(fh, &handle, |draft| {
            let at = if append { draft.len() } else { offset };
            draft.write(at, data)
        }) {
            Some(outcome) => {
                if outcome.is_ok() {
                    note_writer(&handle, fh, transfer);
                }
                done(outcome.map(|()| count));
            }
            None => {
                let fs = Arc::clone(self);
                let Ok(data) = SecretBytes::copy_of(data) else {
                    return done(Err(Errno(libc::ENOMEM)));
                };
                let again = move || fs.write(fh, offset, &data, transfer, done);
                self.when_settled(handle.node.id, again);
            }
        }
    }

    /// Writes by a descriptor whose flags are `flags` now.
    pub fn write_flagged(
        self: &Arc<Self>,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        transfer: Transfer,
        flags: i32,
        done: Done<u32>,
    ) {
        // The page cache has no descriptor.
        if transfer.lock_owner.is_none() {
            return self.write(fh, offset, data, transfer, done);
        }
        if let Ok(handle) = self.table.get(fh) {
            let append = flags & libc::O_APPEND != 0;
            handle.append.store(append, Ordering::Relaxed);
        }
        // O_SYNC is O_DSYNC and one bit more.
        if flags & libc::O_DSYNC == 0 {
            return self.write(fh, offset, data, transfer, done);
        }
        let fs = Arc::clone(self);
        let stored: Done<u32> = Box::new(move |written| match written {
            Ok(count) => fs.fsync(fh, Box::new(move |synced| done(synced.map(|()| count)))),
            Err(error) => done(Err(error)),
        });
        self.write(fh, offset, data, transfer, stored);
    }

    fn writable(&self, fh: FileHandle) -> Result<Arc<Handle>, Errno> {
        self.table
            .get(fh)
            .and_then(|handle| match handle.access.write {
                true => Ok(handle),
                false => Err(Errno(libc::EBADF)),
            })
    }

    /// Edits the draft of a handle, which begins now if it has not; `None` when that has to wait
    /// for a publication under way.
    pub(super) fn with_draft(
        &self,
        fh: FileHandle,
        handle: &Handle,
        edit: impl Fn(&mut Draft) -> Result<(), Errno>,
    ) -> Option<Result<(), Errno>> {
        match self.try_with_draft(fh, handle, &edit) {
            Some(Err(Errno(libc::ENOSPC))) => {
                self.evict_snapshots();
                self.try_with_draft(fh, handle, &edit)
            }
            outcome => outcome,
        }
    }

    fn try_with_draft(
        &self,
        fh: FileHandle,
        handle: &Handle,
        edit: &impl Fn(&mut Draft) -> Result<(), Errno>,
    ) -> Option<Result<(), Errno>> {
        let mut state = handle.node.lock();
        if state.draft_of(fh).is_none() {
            if state.publishing > 0 {
                return None;
            }
            if let Err(error) = self.begin_shared(handle.node.id, &mut state) {
                return Some(Err(error));
            }
        }
        let Some(draft) = state.draft_of(fh) else {
            return Some(Err(Errno(libc::EBADF)));
        };
        let before = draft.edits();
        let mut outcome = edit(draft);
        let edits = draft.edits();
        if outcome.is_ok() && edits > before {
            match state.handles.get_mut(&fh) {
                Some(own) => own.wrote = edits,
                None => outcome = Err(Errno(libc::EBADF)),
            }
        }
        Some(outcome)
    }

    /// Begins the in-place draft of a node, as a copy of what is published.
    pub(super) fn begin_shared(&self, id: u64, state: &mut NodeState) -> Result<(), Errno> {
        if state.shared.is_some() {
            return Ok(());
        }
        let content = match self.vault.content(id, u64::MAX)?.1 {
            Content::Whole { bytes, .. } => bytes,
            Content::Unpublished => SecretBytes::zeroed(0)?,
            Content::Pieces(_) => return Err(Errno(libc::EIO)),
        };
        state.shared = Some(self.new_draft(content, Publication::InPlace)?);
        // What was written to the draft before this one was published with it.
        for handle in state.handles.values_mut().filter(|h| h.own.is_none()) {
            handle.wrote = 0;
        }
        Ok(())
    }

    /// fallocate(2): extends, or zeroes a range.
    pub fn allocate(
        self: &Arc<Self>,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        done: Done<()>,
    ) {
        let handle = match self.writable(fh) {
            Ok(handle) => handle,
            Err(error) => return done(Err(error)),
        };
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let zero = mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0;
        let known =
            libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
        if mode & !known != 0 {
            return done(Err(Errno(libc::EOPNOTSUPP)));
        }
        let Some(end) = offset.checked_add(length) else {
            return done(Err(Errno(libc::EFBIG)));
        };
        match self.with_draft(fh, &handle, |draft| {
            // First what may fail.
            if !keep_size && end > draft.len() {
                draft.truncate(end)?;
            }
            if zero {
                draft.zero(offset, length)?;
            }
            Ok(())
        }) {
            Some(outcome) => done(outcome),
            None => {
                let fs = Arc::clone(self);
                let again = move || fs.allocate(fh, offset, length, mode, done);
                self.when_settled(handle.node.id, again);
            }
        }
    }

    /// copy_file_range(2) between two handles.
    pub fn copy_range(
        self: &Arc<Self>,
        from: (FileHandle, u64),
        to: (FileHandle, u64),
        length: u64,
        done: Done<u32>,
    ) {
        // A bounded piece: the caller comes back for the rest.
        let size = length.min(1 << 20) as u32;
        let fs = Arc::clone(self);
        let transfer = Transfer {
            lock_owner: Some(0),
            kill_set_id: false,
        };
        let write: ReadDone = Box::new(move |read| match read {
            Ok(bytes) => fs.write(to.0, to.1, bytes, transfer, done),
            Err(error) => done(Err(error)),
        });
        self.read(from.0, from.1, size, transfer, write);
    }

    /// lseek(2) with SEEK_DATA and SEEK_HOLE: there are no holes.
    pub fn seek(&self, fh: FileHandle, offset: u64, whence: i32) -> Result<u64, Errno> {
        let handle = self.table.get(fh)?;
        let size = match self.size_through(fh) {
            Some(size) => size,
            None => self.attr_of(&*self.node(handle.node.id)?).size,
        };
        match whence {
            _ if offset >= size => Err(Errno(libc::ENXIO)),
            libc::SEEK_DATA => Ok(offset),
            libc::SEEK_HOLE => Ok(size),
            _ => Err(Errno(libc::EINVAL)),
        }
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

fn note_writer(handle: &Handle, fh: FileHandle, transfer: Transfer) {
    let mut state = handle.node.lock();
    match transfer.lock_owner {
        None => state.paged = true,
        Some(owner) => {
            if let Some(own) = state.handles.get_mut(&fh) {
                own.owners.insert(owner);
            }
        }
    }
}
