//! Opens and creates files: the draft that a handle writes to, and the version that it may read.

use std::sync::Arc;

use crate::os::process;
use crate::store::NodeId;
use crate::vault::{NewNode, Publication, Vault};

use super::beside::Beside;
use super::blocks::Blocks;
use super::budget::Budget;
use super::drafts::Drafts;
use super::errno::file_of;
use super::handles::Handle;
use super::kernel::Kernel;
use super::loaded::Shown;
use super::loading::Loader;
use super::names::Names;
use super::nodes::Nodes;
use super::opened::Opened;
use super::publication_wait::PublicationWait;
use super::reaping::Reaping;
use super::room::DiskRoom;
use super::set_id::SetIdBits;
use super::table::Table;
use super::truncation::Truncation;
use super::{Access, Attr, Caller, Done, Errno, FileHandle};

/// Opens and creates files.
pub(super) struct Opens {
    pub(super) vault: Arc<Vault>,
    pub(super) table: Arc<Table>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) names: Arc<Names>,
    pub(super) beside: Arc<Beside>,
    pub(super) drafts: Arc<Drafts>,
    pub(super) truncation: Arc<Truncation>,
    pub(super) publications: Arc<PublicationWait>,
    pub(super) set_id: Arc<SetIdBits>,
    pub(super) reaping: Arc<Reaping>,
    pub(super) room: Arc<DiskRoom>,
    pub(super) loader: Arc<Loader>,
    pub(super) budget: Arc<Budget>,
    pub(super) kernel: Arc<Kernel>,
}

impl Opens {
    /// Opens a file.
    pub(super) fn open(self: &Arc<Self>, caller: Caller, ino: u64, flags: i32, done: Done<Opened>) {
        let access = Access::from_flags(flags);
        let changes = access.write || flags & libc::O_TRUNC != 0;
        if changes && self.vault.is_read_only() {
            return done(Err(Errno(libc::EROFS)));
        }
        let opens = Arc::clone(self);
        if flags & libc::O_TRUNC != 0 && !access.write {
            // No write can come through this handle, so no close publishes: truncate as truncate(2)
            // does.
            let then: Done<()> = Box::new(move |truncated| match truncated {
                Ok(()) => opens.open(caller, ino, flags & !libc::O_TRUNC, done),
                Err(error) => done(Err(error)),
            });
            let then = self.set_id.cleared_by(caller, ino, then);
            return self.truncation.by_path(caller.uid, ino, 0, then);
        }
        self.publications.when_stored(ino, move || {
            // Only a writer's process matters.
            let opener = access
                .write
                .then(|| process::thread_group(caller.pid))
                .flatten();
            let truncate = flags & libc::O_TRUNC != 0;
            let opened = match opens.try_open(ino, access, (caller, opener), truncate) {
                // A new publication has begun since.
                Ok(None) => return opens.open(caller, ino, flags, done),
                Ok(Some(opened)) => Ok(opened),
                Err(error) => Err(error),
            };
            if opens.vault.is_read_only() {
                return done(opens.beside.opened(caller, ino, access, opened));
            }
            match opened.is_ok() && truncate {
                true => opens.set_id.cleared_by(caller, ino, done)(opened),
                false => done(opened),
            }
        });
    }

    fn try_open(
        self: &Arc<Self>,
        ino: NodeId,
        access: Access,
        (caller, opener): (Caller, Option<u32>),
        truncate: bool,
    ) -> Result<Option<Opened>, Errno> {
        // Register first: from here on the node is not deleted.
        let (fh, handle) = self.table.open(ino, access, opener, caller.uid)?;
        let begun = self.begin(fh, &handle, caller.pid, truncate);
        if !matches!(begun, Ok(true)) {
            self.table.discard(fh);
            self.reaping.tidy(ino);
        }
        let opened = Opened {
            fh,
            flushes: access.write,
        };
        Ok(begun?.then_some(opened))
    }

    /// Prepares a handle; `false` if a reader must wait for a publication.
    fn begin(
        &self,
        fh: FileHandle,
        handle: &Handle,
        thread: u32,
        truncate: bool,
    ) -> Result<bool, Errno> {
        let ino = handle.node.id;
        if self.vault.is_read_only() {
            // The writer may delete the version at any time.
            self.loader.load_at_open(fh, handle, thread)?;
            return Ok(true);
        }
        if truncate {
            file_of(&*self.nodes.stored_or_held(ino)?)?;
            self.room.must_be_left()?;
        }
        let mut state = handle.node.lock();
        // Read this under the lock: a version may just have been published, or be about to go.
        let file = *file_of(&*self.nodes.stored_or_held(ino)?)?;
        let is_stored = state.publishing == 0;
        if !is_stored && !handle.access.write {
            return Ok(false);
        }
        if let Some(own) = state.handles.get_mut(&fh) {
            own.reading.thread = thread;
        }
        if truncate {
            state.mapped().spoil();
            state.believed = Some(0);
        } else {
            state.believed.get_or_insert(file.size);
        }
        if truncate && (!is_stored || file.version > 0) {
            let empty = Blocks::zeroed(0, &self.budget.of(handle.user))?;
            let mut own = self.drafts.begin(empty, Publication::Replacement);
            own.touch();
            if let Some(handle) = state.handles.get_mut(&fh) {
                handle.own = Some(own);
            }
        } else if truncate {
            if let Some(shared) = state.shared.as_mut().filter(|shared| shared.len() > 0) {
                shared.truncate(0)?;
            }
        } else if !handle.access.write
            && !state.shows_draft(file.version)
            && let Some(own) = state.handles.get_mut(&fh)
        {
            own.reading.fresh = Some(Shown::of(&file));
        }
        drop(state);
        if handle.access.write {
            // The kernel sets its length of the file to 0 before it sees that it must not keep it.
            // Meanwhile it would tell other processes that the file is empty.
            self.kernel.forget_attributes(ino);
        }
        Ok(true)
    }

    /// Creates a regular file and opens it.
    pub(super) fn create(
        self: &Arc<Self>,
        caller: Caller,
        parent: u64,
        name: &[u8],
        new: NewNode,
        flags: i32,
        done: Done<(Attr, Opened)>,
    ) {
        let again = new.clone();
        let opens = Arc::clone(self);
        let retry_name = name.to_vec();
        self.names
            .make(caller, parent, name, new, move |made| match made {
                Ok(attr) => {
                    let opener = process::thread_group(caller.pid);
                    let access = Access::from_flags(flags);
                    match opens.try_open(attr.ino, access, (caller, opener), false) {
                        // Another process has created the file, and publishes it.
                        Ok(None) => {
                            let flags = flags & !libc::O_EXCL;
                            opens.open_existing(caller, parent, &retry_name, flags, done);
                        }
                        Ok(Some(opened)) => done(Ok((attr, opened))),
                        // Another process has removed the file since.
                        Err(Errno(libc::ENOENT)) => {
                            opens.create(caller, parent, &retry_name, again, flags, done);
                        }
                        Err(error) => done(Err(error)),
                    }
                }
                // Another process has created the file.
                Err(Errno(libc::EEXIST)) if flags & libc::O_EXCL == 0 => {
                    opens.open_existing(caller, parent, &retry_name, flags, done);
                }
                Err(error) => done(Err(error)),
            });
    }

    fn open_existing(
        self: &Arc<Self>,
        caller: Caller,
        parent: NodeId,
        name: &[u8],
        flags: i32,
        done: Done<(Attr, Opened)>,
    ) {
        let opens = Arc::clone(self);
        let opened: Done<Attr> = Box::new(move |found| match found {
            Ok(attr) => {
                let then: Done<Opened> =
                    Box::new(move |opened| done(opened.map(|opened| (attr, opened))));
                opens.open(caller, attr.ino, flags, then);
            }
            Err(error) => done(Err(error)),
        });
        self.names.lookup(parent, name, opened);
    }
}
