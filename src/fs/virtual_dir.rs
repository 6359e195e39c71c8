//! A directory in the root of a mount that is no part of the vault: the daemon makes its files when
//! somebody asks for them. The front door ([`FrontDoor`](super::FrontDoor)) sends there what concerns it,
//! before the tree is asked.

use super::directory_entry::DirectoryEntry;
use super::opened::Opened;
use super::set_attributes::SetAttributes;
use super::{Attr, Caller, Done, Errno, FileHandle, ReadDone};

/// The directory's inode number. Those of its files are higher, those of nodes are all lower.
pub const VIRTUAL_DIRECTORY: u64 = 1 << 63;
/// Handles of virtual files are numbered from here; those of nodes are all lower.
pub const FIRST_VIRTUAL_HANDLE: FileHandle = 1 << 63;

/// Whether an inode number belongs to the virtual directory.
pub(super) fn is_virtual(ino: u64) -> bool {
    ino >= VIRTUAL_DIRECTORY
}

/// Whether a handle is that of a virtual file.
pub(super) fn is_virtual_handle(fh: FileHandle) -> bool {
    fh >= FIRST_VIRTUAL_HANDLE
}

/// See the module. As everywhere, a `done` is called exactly once, on whichever thread: what can wait
/// never keeps the caller.
pub trait VirtualDirectory: Send + Sync {
    /// The directory's name in the root. It is found by this name, and not listed.
    fn name(&self) -> &'static [u8];

    /// The attributes of the directory itself.
    fn own_attr(&self) -> Attr;

    /// Finds a file of the directory, as `caller` sees it.
    fn lookup(&self, caller: Caller, name: &[u8], done: Done<Attr>);

    /// The attributes of the directory or of a file, as `caller` sees them.
    fn attr(&self, caller: Caller, ino: u64, done: Done<Attr>);

    /// The attributes for nobody in particular, without waiting for anything.
    ///
    /// # Errors
    /// `ENOENT` when there is no such file.
    fn attr_for_anybody(&self, ino: u64) -> Result<Attr, Errno>;

    /// Changes attributes.
    fn set_attr(&self, caller: Caller, ino: u64, set: &SetAttributes, done: Done<Attr>);

    /// Opens a file.
    fn open(&self, caller: Caller, ino: u64, flags: i32, done: Done<Opened>);

    /// Reads up to `size` bytes at `offset`; fewer only at the end.
    fn read(&self, fh: FileHandle, offset: u64, size: u32, done: ReadDone);

    /// Writes `data`. `from_cache`: the page cache writes it, for nobody knows whom.
    fn write(&self, caller: Caller, fh: FileHandle, data: &[u8], from_cache: bool, done: Done<u32>);

    /// The last descriptor of a handle was closed.
    fn release(&self, fh: FileHandle);

    /// Passes entries from `position` on to `take`, until there are no more or it returns true.
    fn list(&self, position: u64, take: &mut dyn FnMut(&DirectoryEntry) -> bool);

    /// Number of files that programs have open.
    fn open_files(&self) -> usize;

    /// The mount is about to end: what works behind the directory is told to stop.
    fn begin_to_end(&self);

    /// Returns when what works behind the directory has stopped. Programs ask for nothing more.
    fn end(&self);
}
