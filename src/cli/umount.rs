//! `secretfs umount`.

use std::path::PathBuf;

use crate::daemon::{self, Error};

use super::output;

/// Unmount a vault
///
/// Unmounts, and returns once the daemon has written everything and let go of the vault. Plain
/// umount(8) and `fusermount3 -u` unmount as well, without waiting for the daemon. Tells how far the
/// vault has come: `mount -o min-commit=N` refuses an older state of it, also on a host that remembers
/// nothing.
#[derive(Debug, clap::Args)]
pub(super) struct Umount {
    /// Where it is mounted
    mountpoint: PathBuf,
}

impl Umount {
    pub(super) fn run(self) -> Result<(), Error> {
        let point = self.mountpoint.display();
        match daemon::unmount(&self.mountpoint)? {
            Some(commit) => output::print(&format!(
                "{point} is unmounted, its vault at commit {commit}\n"
            )),
            None => output::print(&format!("{point} is unmounted\n")),
        }
    }
}
