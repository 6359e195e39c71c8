//! Writing through handles: everything goes to a draft, and waits for a publication under way if the
//! draft begins with what that publishes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::crypto::SecretBytes;
use crate::vault::{Content, LastChunk, Publication};

use super::blocks::{BLOCK, Blocks};
use super::budget::{Account, CROWDED};
use super::draft::Draft;
use super::handles::{Handle, NodeState};
use super::io::Transfer;
use super::queue::Whose;
use super::{Caller, Done, Errno, FileHandle, FileSystem, process};

/// What an in-place draft begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// What is published.
    Copy,
    /// Nothing: it is being truncated, which needs neither the old content nor room for it.
    Nothing,
}

impl Base {
    /// For a draft that is to be cut or extended to `size`.
    pub(super) fn for_size(size: u64) -> Self {
        if size == 0 { Base::Nothing } else { Base::Copy }
    }
}

/// Most processes that are remembered to have written through a handle.
const MOST_WRITERS: usize = 64;

impl FileSystem {
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
        let done = match transfer.kill_set_id {
            true => self.set_id.cleared(Whose::of(handle.user), handle.node.id, done),
            false => done,
        };
        let transfer = Transfer {
            kill_set_id: false,
            ..transfer
        };
        let count = data.len() as u32;
        let paged = transfer.lock_owner.is_none();
        let (fh, handle) = match paged {
            false => (fh, handle),
            true => match self.writer_of_pages(fh, handle) {
                Ok(writer) => writer,
                Err(error) => return done(Err(error)),
            },
        };
        // The page cache writes back whole pages where they belong.
        let append = handle.append.load(Ordering::Relaxed) && !paged;
        match self.with_draft(fh, &handle, Base::Copy, |draft| {
            let at = if append { draft.len() } else { offset };
            // A mapping never makes a file longer, whatever length the kernel believes in.
            let fits = match paged {
                true => draft.len().saturating_sub(at),
                false => u64::MAX,
            };
            draft.write(at, &data[..data.len().min(fits as usize)])
        }) {
            Some(outcome) => {
                if outcome.is_ok() {
                    let end = offset.saturating_add(count.into());
                    note_writer(&handle, fh, transfer, end);
                }
                done(outcome.map(|()| count));
            }
            None => {
                let fs = Arc::clone(self);
                let Ok(data) = SecretBytes::copy_of(data) else {
                    return done(Err(Errno(libc::ENOMEM)));
                };
                let again = move || fs.write(fh, offset, &data, transfer, done);
                self.settling.when_settled(handle.node.id, again);
            }
        }
    }

    /// Writes by a descriptor whose flags are `flags` now.
    pub fn write_flagged(
        self: &Arc<Self>,
        (fh, offset): (FileHandle, u64),
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
            Ok(count) => fs.closing.fsync(fh, Box::new(move |synced| done(synced.map(|()| count)))),
            Err(error) => done(Err(error)),
        });
        self.write(fh, offset, data, transfer, stored);
    }

    /// The handle whose draft changed pages belong to.
    fn writer_of_pages(
        &self,
        fh: FileHandle,
        handle: Arc<Handle>,
    ) -> Result<(FileHandle, Arc<Handle>), Errno> {
        let writer = {
            let state = handle.node.lock();
            let writer = state.writer_of_pages(fh);
            if state.is_spoiled(writer) {
                return Err(Errno(libc::EIO));
            }
            writer
        };
        match writer == fh {
            true => Ok((fh, handle)),
            false => Ok((writer, self.writable(writer)?)),
        }
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
        base: Base,
        edit: impl Fn(&mut Draft) -> Result<(), Errno>,
    ) -> Option<Result<(), Errno>> {
        let edited = match self.try_with_draft(fh, handle, base, &edit) {
            Some(Err(CROWDED)) => {
                self.evict_snapshots();
                self.try_with_draft(fh, handle, base, &edit)
            }
            outcome => outcome,
        };
        match edited {
            // Others have read meanwhile.
            Some(Err(CROWDED)) => Some(Err(Errno(libc::ENOSPC))),
            outcome => outcome,
        }
    }

    fn try_with_draft(
        &self,
        fh: FileHandle,
        handle: &Handle,
        base: Base,
        edit: &impl Fn(&mut Draft) -> Result<(), Errno>,
    ) -> Option<Result<(), Errno>> {
        let mut state = handle.node.lock();
        if state.draft_of(fh).is_none() {
            if state.publishing > 0 {
                return None;
            }
            if let Err(error) = self.begin_shared(handle, base, &mut state) {
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
            self.appends.watch(handle.node.id, &mut state);
        }
        Some(outcome)
    }

    /// Begins the in-place draft of a node.
    fn begin_shared(
        &self,
        handle: &Handle,
        base: Base,
        state: &mut NodeState,
    ) -> Result<(), Errno> {
        if state.shared.is_some() {
            return Ok(());
        }
        let (id, account) = (handle.node.id, self.budget.of(handle.user));
        let is_first = self.nodes.node(id)?.file()?.version == 0;
        let blocks = match base {
            Base::Copy if !is_first => self.published(id, &account)?,
            _ => Blocks::zeroed(0, &account)?,
        };
        let draft = self.new_draft(blocks, Publication::InPlace);
        state.shared = Some(match (is_first, base) {
            (true, _) => draft.first(),
            (false, Base::Nothing) => draft.cut(),
            (false, Base::Copy) => draft,
        });
        // What was written to the draft before this one was published with it.
        for handle in state.handles.values_mut().filter(|h| h.own.is_none()) {
            handle.wrote = 0;
        }
        Ok(())
    }

    /// A copy of what is published.
    fn published(&self, id: u64, account: &Account) -> Result<Blocks, Errno> {
        match self.vault.content(id, BLOCK as u64)?.1 {
            Content::Whole { bytes, .. } => Blocks::of(bytes, account),
            Content::Pieces(version) => {
                let mut last = LastChunk::default();
                Blocks::filled(version.length(), account, |offset, out| {
                    Ok(self.vault.read_at(&version, offset, out, &mut last)?)
                })
            }
            Content::Unpublished => Blocks::zeroed(0, account),
        }
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
        match self.with_draft(fh, &handle, Base::Copy, |draft| {
            draft.allocate(end, !keep_size, zero.then_some(offset))
        }) {
            Some(outcome) => {
                if outcome.is_ok() && !keep_size {
                    handle.node.lock().note_reach(end);
                }
                done(outcome);
            }
            None => {
                let fs = Arc::clone(self);
                let again = move || fs.allocate(fh, offset, length, mode, done);
                self.settling.when_settled(handle.node.id, again);
            }
        }
    }

    /// lseek(2) with SEEK_DATA and SEEK_HOLE: there are no holes.
    pub fn seek(
        &self,
        caller: Caller,
        fh: FileHandle,
        offset: u64,
        whence: i32,
    ) -> Result<u64, Errno> {
        let handle = self.table.get(fh)?;
        let size = match self.attributes.size_through(fh, caller.pid) {
            Some(size) => size,
            None => self.attributes.size_for_all(&*self.nodes.node(handle.node.id)?),
        };
        match whence {
            _ if offset >= size => Err(Errno(libc::ENXIO)),
            libc::SEEK_DATA => Ok(offset),
            libc::SEEK_HOLE => Ok(size),
            _ => Err(Errno(libc::EINVAL)),
        }
    }
}

/// Who has written through a handle, and how far the kernel takes the file to reach then.
fn note_writer(handle: &Handle, fh: FileHandle, transfer: Transfer, end: u64) {
    let mut state = handle.node.lock();
    let Some(owner) = transfer.lock_owner else {
        state.paged = true;
        return state.note_changed_pages(fh);
    };
    state.note_reach(end);
    // What it was told before is not what it reads next.
    state.told.forget(transfer.pid);
    let Some(own) = state.handles.get_mut(&fh) else {
        return;
    };
    own.reading.thread = transfer.pid;
    if own.owners.insert(owner)
        && own.opener != Some(transfer.pid)
        && own.groups.len() < MOST_WRITERS
        && let Some(group) = process::thread_group(transfer.pid)
        && own.opener != Some(group)
    {
        own.groups.push(group);
    }
}
