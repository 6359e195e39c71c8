//! `secretfs check`.

use std::path::{Path, PathBuf};

use crate::daemon;
use crate::error::{Class, Error};
use crate::vault;

use super::flags::{Flags, ForOpen};
use super::output;

/// Verify a whole vault
///
/// Opens and verifies every record, and recomputes all sums. Changes nothing, and may run while the
/// vault is mounted. Exits with code 6 if any record is not as it was written.
///
/// With --repair, moves damaged records out of the way of the others. Files that have lost part of
/// their content, and nodes that have lost their name, go to `lost+found` in the vault; records
/// that do not open go, unchanged, to a file beside the vault. The command prints what it did, and
/// records it in the key-management history. A repair cannot tell replayed records from others: it
/// accepts the vault as it is. The vault must not be mounted for writing.
#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// The vault's directory
    vault: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Move damaged records out of the way
    #[arg(long)]
    repair: bool,

    #[command(flatten)]
    flags: Flags<ForOpen>,
}

impl Check {
    pub(super) fn run(self, config: Option<&Path>) -> Result<(), Error> {
        let (settings, _) = self.flags.load(config)?;
        super::meant::must_be_a_vault(&self.vault)?;
        let options = vault::OpenOptions::to_look(&settings);
        let (found, remedy) = match self.repair {
            true => {
                let repair = || vault::repair(&self.vault, &options);
                let report = daemon::patiently(repair, || super::rotation::is_served(&self.vault))?;
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
