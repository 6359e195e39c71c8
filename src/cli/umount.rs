//! `secretfs umount`.

use std::path::PathBuf;

use crate::daemon::{self, Error};

/// Unmount a vault
///
/// Unmounts, and returns once the daemon has written everything and let go of the vault. Plain
/// umount(8) and `fusermount3 -u` unmount as well, without waiting for the daemon.
#[derive(Debug, clap::Args)]
pub(super) struct Umount {
    /// Where it is mounted
    mountpoint: PathBuf,
}

impl Umount {
    pub(super) fn run(self) -> Result<(), Error> {
        daemon::unmount(&self.mountpoint)
    }
}
