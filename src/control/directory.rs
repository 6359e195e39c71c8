//! The files of the control directory: their names, inode numbers and modes, for each kind of reader.

use std::sync::Arc;

use crate::fs::VIRTUAL_DIRECTORY;

/// The directory's name.
pub(super) const NAME: &[u8] = b".secretfs";

/// The content of a control file.
pub(super) type Text = Arc<Vec<u8>>;

/// A file of the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum File {
    Status,
    Control,
    Audit,
}

/// In the order in which they are listed.
pub(super) const FILES: [File; 3] = [File::Control, File::Status, File::Audit];

impl File {
    pub(super) fn name(self) -> &'static [u8] {
        match self {
            File::Status => b"status",
            File::Control => b"control",
            File::Audit => b"audit",
        }
    }

    pub(super) fn mode(self, sight: Sight) -> u32 {
        match (self, sight) {
            (File::Status, Sight::Public) => 0o444,
            // An overlay asks for every user as the user who mounted the overlay.
            (File::Status | File::Audit, _) => 0o400,
            (File::Control, _) => 0o600,
        }
    }
}

/// The kind of reader. Each kind sees inodes of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// Root and the user of the daemon.
    Own,
    /// The user whom `control-uid` names. That user owns these files, or the kernel would refuse to
    /// open them.
    Also,
    /// Every other user.
    Public,
}

const SIGHTS: [Sight; 3] = [Sight::Own, Sight::Also, Sight::Public];

/// The inode number of a file.
pub(super) fn number(file: File, sight: Sight) -> u64 {
    VIRTUAL_DIRECTORY + 1 + sight as u64 * 16 + file as u64
}

/// The file of an inode number, and the kind of reader who sees it.
pub(super) fn file_of(ino: u64) -> Option<(File, Sight)> {
    SIGHTS
        .into_iter()
        .flat_map(|sight| FILES.map(|file| (file, sight)))
        .find(|(file, sight)| number(*file, *sight) == ino)
}
