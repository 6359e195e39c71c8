//! Room where the vault lies: what there is, and whether there is enough for what is to be stored.

use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::vault::Vault;

use super::counters::Counters;
use super::errno::Errno;

/// File system figures, in units of 512 bytes where they are sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Size of a block in bytes.
    pub block: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks for users.
    pub available: u64,
    /// Nodes in all.
    pub files: u64,
    /// Nodes that can still be made.
    pub files_free: u64,
}

/// Bytes that must be free where the vault lies for a file to be opened for replacing: enough for
/// the transaction of a small secret.
const ROOM: u64 = 64 * 1024;

/// Bytes that must be free beside a content for it to be stored in pieces.
const ROOM_BESIDES: u64 = 8 << 20;

/// See the module.
pub(super) struct DiskRoom {
    pub(super) vault: Arc<Vault>,
    pub(super) counters: Arc<Counters>,
}

impl DiskRoom {
    /// Fails on a full disk, and where nothing is written any more. Publishing would fail, too, but a shell
    /// that has redirected its output does not look at what closing says.
    pub(super) fn must_be_left(&self) -> Result<(), Errno> {
        if self.vault.has_stopped_writing() {
            return Err(Errno(libc::EIO));
        }
        let place = self.vault.path();
        let room = nix::sys::statvfs::statvfs(place).map(|below| {
            below
                .blocks_available()
                .saturating_mul(below.fragment_size())
        });
        // What cannot be told is told by the transaction.
        if room.is_err() || room.is_ok_and(|room| room >= ROOM) {
            return Ok(());
        }
        // Root may use what others may not, and only trying tells how much of that there is.
        let scratch = std::fs::OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .open(place);
        let Ok(scratch) = scratch else {
            return Ok(());
        };
        let tried = nix::fcntl::posix_fallocate(&scratch, 0, ROOM as i64);
        match tried {
            Err(nix::errno::Errno::ENOSPC | nix::errno::Errno::EDQUOT) => Err(Errno(libc::ENOSPC)),
            _ => Ok(()),
        }
    }

    /// Whether there is room for a content of so many bytes beside those that are being stored, in the
    /// log and in the database, and some besides: what is stored by and by does not take the last of the
    /// disk from others.
    pub(super) fn has_for(&self, bytes: u64) -> bool {
        let bytes = bytes.saturating_add(self.counters.in_pieces.load(Ordering::Relaxed));
        let needed = bytes.saturating_mul(2).saturating_add(ROOM_BESIDES);
        nix::sys::statvfs::statvfs(self.vault.path()).is_ok_and(|below| {
            let free = below.blocks_available();
            free.saturating_mul(below.fragment_size()) >= needed
        })
    }

    /// Figures of the file system below the vault: that is where secrets take up room.
    pub(super) fn figures(&self) -> Result<Figures, Errno> {
        let below = nix::sys::statvfs::statvfs(self.vault.path()).map_err(|e| Errno(e as i32))?;
        let state = self.vault.state();
        Ok(Figures {
            block: u32::try_from(below.fragment_size()).unwrap_or(4096),
            blocks: below.blocks(),
            free: below.blocks_free(),
            available: below.blocks_available(),
            files: state.nodes.saturating_add(below.files_free()),
            files_free: below.files_free(),
        })
    }
}
