//! A directory in the root of a mount that is not part of the vault: the daemon generates its files
//! on request. The front door ([`FrontDoor`](super::FrontDoor)) sends its requests there before it
//! asks the tree.

use super::directory_entry::DirectoryEntry;
use super::opened::Opened;
use super::set_attributes::SetAttributes;
use super::{Attr, Caller, Done, Errno, FileHandle, ReadDone};

/// The directory's inode number. Its files have higher numbers, and all nodes lower ones.
pub const VIRTUAL_DIRECTORY: u64 = 1 << 63;
/// The lowest handle of a virtual file; handles of nodes are lower.
pub const FIRST_VIRTUAL_HANDLE: FileHandle = 1 << 63;

/// Whether an inode number belongs to the virtual directory.
pub(super) fn is_virtual(ino: u64) -> bool {
    ino >= VIRTUAL_DIRECTORY
}

/// Whether a handle belongs to a virtual file.
pub(super) fn is_virtual_handle(fh: FileHandle) -> bool {
    fh >= FIRST_VIRTUAL_HANDLE
}

/// The virtual directory, as the module describes. As everywhere, a `done` is called exactly once,
/// on any thread, and no wait blocks the caller.
pub trait VirtualDirectory: Send + Sync {
    /// The directory's name in the root. A look-up finds it, but listings do not show it.
    fn name(&self) -> &'static [u8];

    /// The attributes of the directory itself.
    fn own_attr(&self) -> Attr;

    /// Looks up a file of the directory for `caller`.
    fn lookup(&self, caller: Caller, name: &[u8], done: Done<Attr>);

    /// The attributes of the directory or of a file, for `caller`.
    fn attr(&self, caller: Caller, ino: u64, done: Done<Attr>);

    /// The attributes for an unknown caller, without waiting.
    ///
    /// # Errors
    /// `ENOENT` when the file does not exist.
    fn attr_for_anybody(&self, ino: u64) -> Result<Attr, Errno>;

    /// Changes attributes.
    fn set_attr(&self, caller: Caller, ino: u64, set: &SetAttributes, done: Done<Attr>);

    /// Opens a file.
    fn open(&self, caller: Caller, ino: u64, flags: i32, done: Done<Opened>);

    /// Reads up to `size` bytes at `offset`; fewer only at the end.
    fn read(&self, fh: FileHandle, offset: u64, size: u32, done: ReadDone);

    /// Writes `data`. `from_cache`: the page cache writes it, for an unknown caller.
    fn write(&self, caller: Caller, fh: FileHandle, data: &[u8], from_cache: bool, done: Done<u32>);

    /// Handles the close of a handle's last descriptor.
    fn release(&self, fh: FileHandle);

    /// Passes entries from `position` on to `take`, until the end or until it returns true.
    fn list(&self, position: u64, take: &mut dyn FnMut(&DirectoryEntry) -> bool);

    /// Number of files that programs have open.
    fn open_files(&self) -> usize;

    /// Notes that the mount is about to end, and tells the work behind the directory to stop.
    fn begin_to_end(&self);

    /// Returns when the work behind the directory has stopped. Programs send no more requests by
    /// then.
    fn end(&self);
}
