//! `secretfs mount`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::daemon::{self, Request};
use crate::error::Error;

use super::flags::{Flags, ForMount};
use super::output;

/// Mount a vault
///
/// Mounts VAULT on MOUNTPOINT and returns once the mount answers; a daemon serves it in the
/// background until it is unmounted. MOUNTPOINT may be /dev/fd/N: a descriptor of /dev/fuse that
/// the caller has mounted and passed, and unmounts later.
#[derive(Debug, clap::Args)]
pub(super) struct Mount {
    /// The vault's directory
    vault: PathBuf,

    /// The directory to mount it on, which must exist, or /dev/fd/N
    mountpoint: OsString,

    /// Stay in the foreground and log to standard error
    #[arg(short = 'f', long)]
    foreground: bool,

    #[command(flatten)]
    flags: Flags<ForMount>,
}

impl Mount {
    pub(super) fn run(self, config: Option<&Path>) -> Result<(), Error> {
        let (settings, options) = self.flags.load(config)?;
        let request = Request {
            vault: self.vault,
            mountpoint: self.mountpoint,
            settings,
            foreground: self.foreground,
            not_granted: options.not_granted,
        };
        // The mount works even if nobody reads this.
        daemon::mount(&request, &|line| drop(output::print(&format!("{line}\n"))))
    }
}
