//! `secretfs check`.

use std::path::{Path, PathBuf};

use crate::config::{self, Settings};
use crate::error::{Class, Error};
use crate::vault;

use super::flags::{Flags, ForOpen};
use super::output;

/// Verify a whole vault
///
/// Opens and verifies every record and recomputes all sums. Changes nothing, and may run while the
/// vault is mounted. Exits with code 6 when anything is not what was written.
///
/// With --repair, what is damaged is moved out of the way of everything else: a file that has lost
/// part of its content, and what has lost its name, go to `lost+found` in the vault; records that do
/// not open go, as they are, to a file beside the vault. What it did is printed, and stands in the
/// key-management history. What was replayed cannot be told from what was not: the vault is taken as
/// it is. Nobody may have it mounted for writing.
#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// The vault's directory
    vault: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Move what is damaged aside
    #[arg(long)]
    repair: bool,

    #[command(flatten)]
    flags: Flags<ForOpen>,
}

impl Check {
    pub(super) fn run(self, config: Option<&Path>) -> Result<(), Error> {
        let (settings, _) = self.flags.load(config)?;
        super::meant::must_be_a_vault(&self.vault)?;
        let options = open_options(&settings);
        let (found, remedy) = match self.repair {
            true => {
                let repair = || vault::repair(&self.vault, &options);
                let report = super::rotation::patiently(&self.vault, repair)?;
                output::show(&report, self.json)?;
                (
                    report.check.problem_count,
                    "what is left cannot be repaired: restore it from a backup",
                )
            }
            false => {
                let report = vault::check(&self.vault, &options)?;
                output::show(&report, self.json)?;
                (
                    report.problem_count,
                    "restore it from a backup, or see what --repair does",
                )
            }
        };
        match found {
            0 => Ok(()),
            found => Err(Error::new(
                Class::Integrity,
                format!(
                    "{} is damaged or was tampered with: {found} problem{}, listed above; {remedy}",
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
        min_commit: settings.min_commit,
        salvage: false,
        still: false,
        unsafe_filesystem: settings.unsafe_filesystem,
        kms: settings.kms.clone(),
        anchor_dir: settings.anchor_dir.clone().or_else(config::anchor_dir),
        mountpoint: None,
    }
}
