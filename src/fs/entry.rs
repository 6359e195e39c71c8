//! The front door, the only type that a transport uses.
//!
//! It sends requests for the virtual directory there, and all others to the tree. Even if the vault
//! refuses requests, because it is damaged or ending, the virtual directory stays reachable: it
//! shows the reason.

use std::sync::Arc;

use crate::vault::{NewNode, ROOT, RenameMode, Vault, VaultError};

use super::directory_entry::DirectoryEntry;
use super::ending::Ending;
use super::opened::Opened;
use super::room::Figures;
use super::set_attributes::SetAttributes;
use super::virtual_dir::{
    FIRST_VIRTUAL_HANDLE, VIRTUAL_DIRECTORY, VirtualDirectory, is_virtual, is_virtual_handle,
};
use super::xattrs::USER;
use super::{Attr, Caller, Done, Errno, FileHandle, FileSystem, ReadDone, Transfer};

/// Limit on the bytes that one copy_file_range(2) copies; the caller asks again for the rest.
const MOST_COPIED: u64 = 1 << 20;

/// The handle of the open virtual directory, which has no state.
const OPEN_DIRECTORY: FileHandle = FIRST_VIRTUAL_HANDLE;

/// The front door, as the module describes.
pub struct FrontDoor {
    fs: Arc<FileSystem>,
    directory: Arc<dyn VirtualDirectory>,
}

impl std::fmt::Debug for FrontDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FrontDoor({:?})", self.fs)
    }
}

impl FrontDoor {
    /// The front door of `fs`, with `directory` in its root.
    pub fn new(fs: Arc<FileSystem>, directory: impl VirtualDirectory + 'static) -> Arc<Self> {
        Arc::new(Self {
            fs,
            directory: Arc::new(directory),
        })
    }

    /// The file system behind it, for callers without a request.
    pub fn fs(&self) -> &Arc<FileSystem> {
        &self.fs
    }

    /// The mounted vault.
    pub fn vault(&self) -> &Arc<Vault> {
        self.fs.vault()
    }

    /// Number of files that programs have open.
    pub fn open_files(&self) -> usize {
        self.fs.open_files() + self.directory.open_files()
    }

    /// Ends the mount: publishes the data left as `ending` allows, makes everything durable, and
    /// stores the vault's commit in the anchor.
    ///
    /// # Errors
    /// When data could not be published or made durable.
    pub fn finish(&self, ending: Ending) -> Result<(), VaultError> {
        self.directory.begin_to_end();
        let drained = self.fs.drain(ending);
        self.directory.end();
        self.fs.close(drained)
    }

    /// Whether the answer to a request for an inode depends on the caller.
    pub fn depends_on_caller(&self, ino: u64) -> bool {
        is_virtual(ino) || self.vault().is_read_only()
    }

    /// Whether the effect of a write through a handle depends on the caller.
    pub fn write_depends_on_caller(&self, fh: FileHandle) -> bool {
        is_virtual_handle(fh)
    }

    /// Whether a name is that of the virtual directory, or inside it: programs can neither create
    /// nor remove it.
    fn is_virtual_name(&self, parent: u64, name: &[u8]) -> bool {
        is_virtual(parent) || (parent == ROOT && name == self.directory.name())
    }

    /// The errno for changes of names and attributes in the virtual directory.
    fn refusal(&self) -> Errno {
        Errno(match self.vault().is_read_only() {
            true => libc::EROFS,
            false => libc::EPERM,
        })
    }

    // --- names ------------------------------------------------------------------------------------

    /// Looks up a name for a thread of a user.
    pub fn lookup_for(&self, caller: Caller, parent: u64, name: &[u8], done: Done<Attr>) {
        let is_number = matches!(name, b"." | b"..");
        if is_virtual(parent) && !is_number {
            return match parent {
                VIRTUAL_DIRECTORY => self.directory.lookup(caller, name, done),
                _ => done(Err(Errno(libc::ENOTDIR))),
            };
        }
        match self.is_virtual_name(parent, name) {
            true => self.lookup(parent, name, done),
            false => self.fs.names.lookup_for(caller, parent, name, done),
        }
    }

    /// Looks up a name. Names in the virtual directory depend on [the caller](Self::lookup_for).
    pub fn lookup(&self, parent: u64, name: &[u8], done: Done<Attr>) {
        if !self.is_virtual_name(parent, name) {
            return self.fs.names.lookup(parent, name, done);
        }
        match name {
            b"." => done(self.directory.attr_for_anybody(parent)),
            b".." => self.fs.names.lookup(ROOT, b".", done),
            _ if !is_virtual(parent) => done(Ok(self.directory.own_attr())),
            _ => done(Err(Errno(libc::ENOENT))),
        }
    }

    /// Creates a node of any kind.
    pub fn make(
        &self,
        caller: Caller,
        parent: u64,
        name: &[u8],
        new: NewNode,
        done: impl FnOnce(Result<Attr, Errno>) + Send + 'static,
    ) {
        match self.is_virtual_name(parent, name) {
            true => done(Err(self.refusal())),
            false => self.fs.names.make(caller, parent, name, new, done),
        }
    }

    /// Gives a node another name.
    pub fn link(&self, caller: Caller, ino: u64, to: (u64, &[u8]), done: Done<Attr>) {
        match is_virtual(ino) || self.is_virtual_name(to.0, to.1) {
            true => done(Err(self.refusal())),
            false => self.fs.names.link(caller, ino, to, done),
        }
    }

    /// Removes a name of a node that is not a directory.
    pub fn unlink(&self, caller: Caller, parent: u64, name: &[u8], done: Done<()>) {
        match self.is_virtual_name(parent, name) {
            true => done(Err(self.refusal())),
            false => self.fs.names.unlink(caller, parent, name, done),
        }
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, caller: Caller, parent: u64, name: &[u8], done: Done<()>) {
        match self.is_virtual_name(parent, name) {
            true => done(Err(self.refusal())),
            false => self.fs.names.rmdir(caller, parent, name, done),
        }
    }

    /// Moves a name.
    pub fn rename(
        &self,
        caller: Caller,
        from: (u64, &[u8]),
        to: (u64, &[u8]),
        mode: RenameMode,
        done: Done<()>,
    ) {
        match self.is_virtual_name(from.0, from.1) || self.is_virtual_name(to.0, to.1) {
            true => done(Err(self.refusal())),
            false => self.fs.names.rename(caller, from, to, mode, done),
        }
    }

    /// Notes that the kernel gets to know a node; it will report when it forgets it.
    pub fn remember(&self, attr: &Attr) {
        if !is_virtual(attr.ino) {
            self.fs.names.remember(attr);
        }
    }

    /// Notes that the kernel forgets a node that it got `lookups` times.
    pub fn forget(&self, ino: u64, lookups: u64) {
        self.fs.names.forget(ino, lookups);
    }

    /// The errno for a thread that has asked for a removed node beside a writer.
    pub fn gone_for(&self, thread: u32, ino: u64, error: Errno) -> Errno {
        self.fs.beside.gone_for(thread, ino, error)
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, ino: u64) -> Result<Vec<u8>, Errno> {
        self.fs.names.read_link(ino)
    }

    // --- attributes -------------------------------------------------------------------------------

    /// Attributes of a node, or of the content that a handle sees.
    pub fn getattr(&self, caller: Caller, ino: u64, fh: Option<FileHandle>, done: Done<Attr>) {
        if is_virtual(ino) {
            return self.directory.attr(caller, ino, done);
        }
        if ino != ROOT {
            return self.fs.attributes.getattr(caller, ino, fh, done);
        }
        let directory = Arc::clone(&self.directory);
        let or_bare: Done<Attr> = Box::new(move |attr| match attr {
            // Show a root that only leads to the virtual directory, which shows the reason.
            Err(Errno(libc::EIO)) => done(Ok(Attr {
                ino: ROOT,
                ..directory.own_attr()
            })),
            attr => done(attr),
        });
        self.fs.attributes.getattr(caller, ino, fh, or_bare);
    }

    /// Changes attributes. A change of length edits a draft, or publishes at once if there is no
    /// handle.
    pub fn setattr(
        &self,
        caller: Caller,
        ino: u64,
        fh: Option<FileHandle>,
        set: SetAttributes,
        done: Done<Attr>,
    ) {
        match is_virtual(ino) {
            true if self.vault().is_read_only() => done(Err(Errno(libc::EROFS))),
            true => self.directory.set_attr(caller, ino, &set, done),
            false => self.fs.changes.setattr(caller, ino, fh, set, done),
        }
    }

    /// The value of an extended attribute.
    pub fn get_xattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>, Errno> {
        match is_virtual(ino) {
            true if name.starts_with(USER) => Err(Errno(libc::ENODATA)),
            true => Err(Errno(libc::EOPNOTSUPP)),
            false => self.fs.xattrs.get(ino, name),
        }
    }

    /// The names of all attributes that programs have set, each ended by a NUL.
    pub fn list_xattrs(&self, ino: u64) -> Result<Vec<u8>, Errno> {
        match is_virtual(ino) {
            true => Ok(Vec::new()),
            false => self.fs.xattrs.list(ino),
        }
    }

    /// Sets an extended attribute.
    pub fn set_xattr(
        &self,
        caller: Caller,
        ino: u64,
        pair: (&[u8], &[u8]),
        flags: i32,
        done: Done<()>,
    ) {
        match is_virtual(ino) {
            true => done(Err(self.refusal())),
            false => self.fs.xattrs.set(caller, ino, pair, flags, done),
        }
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, caller: Caller, ino: u64, name: &[u8], done: Done<()>) {
        match is_virtual(ino) {
            true => done(Err(self.refusal())),
            false => self.fs.xattrs.remove(caller, ino, name, done),
        }
    }

    /// The figures for statfs(2), from the file system below the vault.
    pub fn figures(&self) -> Result<Figures, Errno> {
        self.fs.room.figures()
    }

    // --- files ------------------------------------------------------------------------------------

    /// Opens a file.
    pub fn open(&self, caller: Caller, ino: u64, flags: i32, done: Done<Opened>) {
        match is_virtual(ino) {
            true => self.directory.open(caller, ino, flags, done),
            false => self.fs.opens.open(caller, ino, flags, done),
        }
    }

    /// Creates a regular file and opens it.
    pub fn create(
        &self,
        caller: Caller,
        parent: u64,
        name: &[u8],
        new: NewNode,
        flags: i32,
        done: Done<(Attr, Opened)>,
    ) {
        match self.is_virtual_name(parent, name) {
            true => done(Err(self.refusal())),
            false => self.fs.opens.create(caller, parent, name, new, flags, done),
        }
    }

    /// Reads up to `size` bytes at `offset`; fewer only at the end.
    pub fn read(&self, fh: FileHandle, offset: u64, size: u32, transfer: Transfer, done: ReadDone) {
        match is_virtual_handle(fh) {
            true => self.directory.read(fh, offset, size, done),
            false => self.fs.reads.read(fh, offset, size, transfer, done),
        }
    }

    /// Writes `data` at `offset`, or at the end for a handle that appends.
    pub fn write(
        &self,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        transfer: Transfer,
        done: Done<u32>,
    ) {
        self.fs.writes.write(fh, offset, data, transfer, done);
    }

    /// Writes through a descriptor whose present flags are `flags`.
    pub fn write_flagged(
        &self,
        caller: Caller,
        (fh, offset): (FileHandle, u64),
        data: &[u8],
        transfer: Transfer,
        flags: i32,
        done: Done<u32>,
    ) {
        match is_virtual_handle(fh) {
            true => {
                let from_cache = transfer.lock_owner.is_none();
                self.directory.write(caller, fh, data, from_cache, done);
            }
            false => self
                .fs
                .writes
                .write_flagged((fh, offset), data, transfer, flags, done),
        }
    }

    /// Handles the close of a descriptor; the handle may have others.
    pub fn flush(&self, fh: FileHandle, pid: u32, lock_owner: u64, done: Done<()>) {
        match is_virtual_handle(fh) {
            true => done(Ok(())),
            false => self.fs.closing.flush(fh, pid, lock_owner, done),
        }
    }

    /// `fsync`: publishes the handle's draft, and makes everything durable.
    pub fn fsync(&self, fh: FileHandle, done: Done<()>) {
        match is_virtual_handle(fh) {
            true => done(Ok(())),
            false => self.fs.closing.fsync(fh, done),
        }
    }

    /// Makes everything acknowledged before durable.
    pub fn barrier(&self, caller: Caller, done: Done<()>) {
        self.fs.closing.barrier(caller, done);
    }

    /// Handles the close of a handle's last descriptor.
    pub fn release(&self, fh: FileHandle) {
        match is_virtual_handle(fh) {
            true => self.directory.release(fh),
            false => self.fs.closing.release(fh),
        }
    }

    /// fallocate(2): extends, or zeroes a range.
    pub fn allocate(&self, fh: FileHandle, offset: u64, length: u64, mode: i32, done: Done<()>) {
        self.fs.writes.allocate(fh, offset, length, mode, done);
    }

    /// Clears set-id bits before `done`, for calls that change a content without a write.
    pub fn changed_by<T: Send + 'static>(
        &self,
        caller: Caller,
        fh: FileHandle,
        done: Done<T>,
    ) -> Done<T> {
        self.fs.set_id.changed_by(caller, fh, done)
    }

    /// copy_file_range(2) between two handles.
    pub fn copy_range(
        &self,
        caller: Caller,
        from: (FileHandle, u64),
        to: (FileHandle, u64),
        length: u64,
        done: Done<u32>,
    ) {
        let size = length.min(MOST_COPIED) as u32;
        let writes = Arc::clone(&self.fs.writes);
        let transfer = Transfer {
            lock_owner: Some(0),
            kill_set_id: false,
            pid: caller.pid,
        };
        let write: ReadDone = Box::new(move |read| match read {
            Ok(bytes) => writes.write(to.0, to.1, bytes, transfer, done),
            Err(error) => done(Err(error)),
        });
        self.read(from.0, from.1, size, transfer, write);
    }

    /// lseek(2) with SEEK_DATA and SEEK_HOLE: there are no holes.
    pub fn seek(
        &self,
        caller: Caller,
        fh: FileHandle,
        offset: u64,
        whence: i32,
    ) -> Result<u64, Errno> {
        self.fs.attributes.seek(caller, fh, offset, whence)
    }

    // --- directories ------------------------------------------------------------------------------

    /// Opens a directory.
    pub fn open_directory(&self, ino: u64) -> Result<FileHandle, Errno> {
        match is_virtual(ino) {
            true => Ok(OPEN_DIRECTORY),
            false => self.fs.directories.open(ino),
        }
    }

    /// Closes a directory.
    pub fn release_directory(&self, fh: FileHandle) {
        if !is_virtual_handle(fh) {
            self.fs.directories.release(fh);
        }
    }

    /// Passes entries from `position` on to `take`, until the end or until it returns true.
    pub fn read_directory(
        &self,
        ino: u64,
        fh: FileHandle,
        position: u64,
        mut take: impl FnMut(&DirectoryEntry) -> bool,
    ) -> Result<(), Errno> {
        if is_virtual(ino) {
            self.directory.list(position, &mut take);
            return Ok(());
        }
        self.fs.directories.read(ino, fh, position, take)
    }

    /// The same for a `take` that asks for the [attributes](Self::entry_attr) of each entry.
    pub fn read_directory_plus(
        &self,
        ino: u64,
        fh: FileHandle,
        position: u64,
        mut take: impl FnMut(&DirectoryEntry) -> bool,
    ) -> Result<(), Errno> {
        if is_virtual(ino) {
            self.directory.list(position, &mut take);
            return Ok(());
        }
        self.fs.directories.read_plus(ino, fh, position, take)
    }

    /// The attributes of a directory's entry for readdir, without waiting.
    pub fn entry_attr(&self, directory: u64, entry: &DirectoryEntry) -> Result<Attr, Errno> {
        match is_virtual(entry.ino) {
            true => self.directory.attr_for_anybody(entry.ino),
            false => self.fs.directories.entry_attr(directory, entry),
        }
    }
}
