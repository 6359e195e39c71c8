//! `secretfs check`.

use std::path::{Path, PathBuf};

use crate::config::{self, Settings};
use crate::daemon::{Class, Error};
use crate::vault;

use super::flags::{Flags, ForOpen};
use super::output;

/// Verify a whole vault
///
/// Opens and verifies every record and recomputes all sums. Changes nothing, and may run while the
/// vault is mounted. Exits with code 6 when anything is not what was written.
#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// The vault's directory
    vault: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    flags: Flags<ForOpen>,
}

impl Check {
    pub(super) fn run(self, config: Option<&Path>) -> Result<(), Error> {
        let (settings, _) = self.flags.load(config)?;
        let report = vault::check(&self.vault, &open_options(&settings))?;
        output::show(&report, self.json)?;
        match report.problem_count {
            0 => Ok(()),
            found => Err(Error::new(
                Class::Integrity,
                format!(
                    "{} is damaged or was tampered with: {found} problem{}, listed above; restore it from a backup",
                    self.vault.display(),
                    if found == 1 { "" } else { "s" }
                ),
            )),
        }
    }
}

/// How commands that only look open a vault.
pub(super) fn open_options(settings: &Settings) -> vault::OpenOptions {
    vault::OpenOptions {
        read_only: true,
        accept_rollback: false,
        pinned_keys: settings.kms_keys.clone(),
        pinned_vault_id: settings.vault_id.clone(),
        require_anchor: settings.require_anchor,
        salvage: false,
        unsafe_filesystem: settings.unsafe_filesystem,
        kms: settings.kms.clone(),
        anchor_dir: settings.anchor_dir.clone().or_else(config::anchor_dir),
        mountpoint: None,
    }
}
