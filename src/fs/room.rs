//! Free space on the vault's file system, and whether it is enough for a content.

use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::vault::Vault;

use super::counters::Counters;
use super::errno::Errno;

/// Figures of a file system.
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
    /// Number of nodes.
    pub files: u64,
    /// Number of nodes that can still be created.
    pub files_free: u64,
}

/// Free bytes needed to open a file for replacement: enough for the transaction of a small secret.
const ROOM: u64 = 64 * 1024;

/// Free bytes needed beside a content to store it in pieces.
const ROOM_BESIDES: u64 = 8 << 20;

/// Free space, as the module describes.
pub(super) struct DiskRoom {
    pub(super) vault: Arc<Vault>,
    pub(super) counters: Arc<Counters>,
}

impl DiskRoom {
    /// Fails on a full disk, or if the vault refuses to write. Publishing would fail, too, but a
    /// shell that has redirected its output ignores the error of close.
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
        // If the space is unknown, the transaction finds out.
        if room.is_err() || room.is_ok_and(|room| room >= ROOM) {
            return Ok(());
        }
        // Root may use reserved space, and only an attempt shows how much of it there is.
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

    /// Whether there is space for a content of `bytes`, twice, as a store may need it, beside the
    /// contents that are being stored, and some more: a content stored in pieces must not use up
    /// the disk.
    pub(super) fn has_for(&self, bytes: u64) -> bool {
        let bytes = bytes.saturating_add(self.counters.in_pieces.load(Ordering::Relaxed));
        let needed = bytes.saturating_mul(2).saturating_add(ROOM_BESIDES);
        nix::sys::statvfs::statvfs(self.vault.path()).is_ok_and(|below| {
            let free = below.blocks_available();
            free.saturating_mul(below.fragment_size()) >= needed
        })
    }

    /// The figures for statfs(2), from the file system below the vault, where secrets use space.
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
