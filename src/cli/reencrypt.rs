//! `secretfs reencrypt`.

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::keyring::RotationKind;
use crate::vault::{OpenOptions, Request};

use super::flags::{Flags, ForOpen};

/// Replace all data keys and the master key
///
/// Encrypts every content, name and attribute again, under new data keys and a new master key. Use
/// it after a compromise: when an attacker may have data keys, or the master key and a copy of the
/// vault. Like `rotate` it works while the vault is in use, and once begun it is finished. It reads
/// and writes the whole vault.
///
/// Earlier copies of the vault still open with the old keys.
#[derive(Debug, clap::Args)]
pub(super) struct Reencrypt {
    /// The vault's directory, or its mount point
    path: PathBuf,

    /// Return when it is done, not as soon as it is certain to be done
    #[arg(long)]
    wait: bool,

    /// Remove the old master key even if records do not open
    ///
    /// Use it if damaged records keep alive a key that must go, and `check --repair` is not an
    /// option: the records under the old key never open again. The history names them. Continues a
    /// blocked rotation, or begins one.
    #[arg(long)]
    retire_despite: bool,

    #[command(flatten)]
    flags: Flags<ForOpen>,
}

impl Reencrypt {
    pub(super) fn run(self, config: Option<&Path>) -> Result<(), Error> {
        let (settings, _) = self.flags.load(config)?;
        let options = OpenOptions::to_look(&settings);
        let request = match self.retire_despite {
            true => Request::Despite(RotationKind::Reencrypt),
            false => Request::Reencrypt,
        };
        super::rotation::run(&self.path, &request, options, self.wait)
    }
}
