//! Writes through handles: all data goes to a draft. If the draft begins with the content of a
//! publication under way, the write waits for that.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::crypto::SecretBytes;
use crate::os::process;
use crate::vault::Whose;

use super::closing::Closing;
use super::drafts::{Base, Drafts};
use super::handles::Handle;
use super::publication_wait::PublicationWait;
use super::set_id::SetIdBits;
use super::table::Table;
use super::{Done, Errno, FileHandle, Transfer};

/// Limit on the processes noted as writers of a handle.
const MOST_WRITERS: usize = 64;

/// Writes through handles, as the module describes.
pub(super) struct Writes {
    pub(super) table: Arc<Table>,
    pub(super) drafts: Arc<Drafts>,
    pub(super) set_id: Arc<SetIdBits>,
    pub(super) publications: Arc<PublicationWait>,
    pub(super) closing: Arc<Closing>,
}

impl Writes {
    /// Writes `data` at `offset`, or at the end for a handle that appends.
    pub(super) fn write(
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
            true => self
                .set_id
                .cleared(Whose::of(handle.user), handle.node.id, done),
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
        // The page cache writes back whole pages at their own places.
        let append = handle.append.load(Ordering::Relaxed) && !paged;
        match self.drafts.edit(fh, &handle, Base::Copy, |draft| {
            let at = if append { draft.len() } else { offset };
            // A mapping never makes a file longer, whatever length the kernel uses.
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
                let writes = Arc::clone(self);
                let Ok(data) = SecretBytes::copy_of(data) else {
                    return done(Err(Errno(libc::ENOMEM)));
                };
                let again = move || writes.write(fh, offset, &data, transfer, done);
                self.publications.when_stored(handle.node.id, again);
            }
        }
    }

    /// Writes through a descriptor whose present flags are `flags`.
    pub(super) fn write_flagged(
        self: &Arc<Self>,
        (fh, offset): (FileHandle, u64),
        data: &[u8],
        transfer: Transfer,
        flags: i32,
        done: Done<u32>,
    ) {
        // The page cache writes without a descriptor.
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
        let writes = Arc::clone(self);
        let stored: Done<u32> = Box::new(move |written| match written {
            Ok(count) => writes
                .closing
                .fsync(fh, Box::new(move |synced| done(synced.map(|()| count)))),
            Err(error) => done(Err(error)),
        });
        self.write(fh, offset, data, transfer, stored);
    }

    /// The handle whose draft the changed pages belong to.
    fn writer_of_pages(
        &self,
        fh: FileHandle,
        handle: Arc<Handle>,
    ) -> Result<(FileHandle, Arc<Handle>), Errno> {
        let writer = {
            let mut state = handle.node.lock();
            let mapped = state.mapped();
            let writer = mapped.writer_of_pages(fh);
            if mapped.is_spoiled(writer) {
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

    /// fallocate(2): extends, or zeroes a range.
    pub(super) fn allocate(
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
        match self.drafts.edit(fh, &handle, Base::Copy, |draft| {
            draft.allocate(end, !keep_size, zero.then_some(offset))
        }) {
            Some(outcome) => {
                if outcome.is_ok() && !keep_size {
                    handle.node.lock().note_reach(end);
                }
                done(outcome);
            }
            None => {
                let writes = Arc::clone(self);
                let again = move || writes.allocate(fh, offset, length, mode, done);
                self.publications.when_stored(handle.node.id, again);
            }
        }
    }
}

/// Notes the writer of a handle, and the length that the kernel assumes after the write.
fn note_writer(handle: &Handle, fh: FileHandle, transfer: Transfer, end: u64) {
    let mut state = handle.node.lock();
    let Some(owner) = transfer.lock_owner else {
        state.paged = true;
        return state.mapped().note_changed_pages(fh);
    };
    state.note_reach(end);
    // The version that it saw before is not the one it reads next.
    state.last_seen.forget(transfer.pid);
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
