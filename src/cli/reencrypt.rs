//! `secretfs reencrypt`.

use std::path::{Path, PathBuf};

use crate::daemon::Error;
use crate::vault::Request;

use super::flags::{Flags, ForOpen};

/// Replace all data keys and the master key
///
/// Encrypts every content, name and attribute anew, under new data keys and a new master key. For
/// when somebody may have got hold of data keys. Like `rotate` it goes on while the vault is used,
/// and what was begun is finished. It reads and writes all of the vault.
///
/// Copies of the vault from before still open with the old keys.
#[derive(Debug, clap::Args)]
pub(super) struct Reencrypt {
    /// The vault's directory, or where it is mounted
    path: PathBuf,

    /// Return when it is done, not when it is sure to be done
    #[arg(long)]
    wait: bool,

    #[command(flatten)]
    flags: Flags<ForOpen>,
}

impl Reencrypt {
    pub(super) fn run(self, config: Option<&Path>) -> Result<(), Error> {
        let (settings, _) = self.flags.load(config)?;
        let options = super::check::open_options(&settings);
        super::change::run(&self.path, &Request::Reencrypt, options, self.wait)
    }
}
