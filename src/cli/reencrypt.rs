//! `secretfs reencrypt`.

use std::path::Path;

use crate::error::Error;
use crate::keyring::RotationKind;
use crate::vault::Request;

use super::replacing::Replacing;

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
    #[command(flatten)]
    replacing: Replacing,
}

impl Reencrypt {
    pub(super) fn run(self, config: Option<&Path>) -> Result<(), Error> {
        self.replacing
            .run(config, Request::Reencrypt, RotationKind::Reencrypt)
    }
}
