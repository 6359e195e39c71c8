//! `secretfs reencrypt`.

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::keyring::ChangeKind;
use crate::vault::{OpenOptions, Request};

use super::flags::{Flags, ForOpen};

/// Replace all data keys and the master key
///
/// Encrypts every content, name and attribute anew, under new data keys and a new master key. For
/// after a compromise: when somebody may have got hold of data keys, or of the master key and a copy of
/// the vault. Like `rotate` it goes on while the vault is used, and what was begun is finished. It reads
/// and writes all of the vault.
///
/// Copies of the vault from before still open with the old keys.
#[derive(Debug, clap::Args)]
pub(super) struct Reencrypt {
    /// The vault's directory, or where it is mounted
    path: PathBuf,

    /// Return when it is done, not when it is sure to be done
    #[arg(long)]
    wait: bool,

    /// Remove the old master key although records do not open
    ///
    /// For when one that is damaged keeps a key alive that must go, and `check --repair` is no way:
    /// what stands under the old key then never opens again. The history says what that was. Goes
    /// on with one that is blocked, or begins one.
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
            true => Request::Despite(ChangeKind::Reencrypt),
            false => Request::Reencrypt,
        };
        super::rotation::run(&self.path, &request, options, self.wait)
    }
}
