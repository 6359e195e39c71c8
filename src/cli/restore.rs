//! `secretfs restore`.

use std::path::{Path, PathBuf};

use crate::daemon;
use crate::error::Error;
use crate::vault::{self, CopyReport};

use super::copying::{go_on, keys, size};
use super::flags::{Flags, ForOpen};
use super::output;

/// Make a vault of a backup
///
/// Verifies every record of the backup before anything is written, copies it to VAULT, which must not
/// exist, and verifies that copy, too. The backup is left as it is; it may lie where nobody can write.
///
/// A restored vault is older than what was seen of it. Its history says that this was accepted, and this
/// host remembers the vault as it is now: the next mount here needs no --accept-rollback. Other hosts
/// that have seen a later state refuse it, with exit code 6, until it is mounted there once for writing
/// with --accept-rollback. What it was restored for must not be mounted any more, anywhere.
#[derive(Debug, clap::Args)]
pub(super) struct Restore {
    /// The directory that `secretfs backup` has made
    backup: PathBuf,

    /// The vault's directory, to be made
    vault: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    flags: Flags<ForOpen>,
}

impl Restore {
    pub(super) fn run(self, config: Option<&Path>) -> Result<(), Error> {
        let (settings, _) = self.flags.load(config)?;
        super::meant::must_be_a_vault(&self.backup)?;
        let options = super::check::open_options(&settings);
        let stop = daemon::interruptions()?;
        let made = vault::restore(&self.backup, &self.vault, &options, &go_on(&stop))?;
        match self.json {
            true => output::show(&made, true),
            false => output::print(&told(&made, &self.backup)),
        }
    }
}

fn told(made: &CopyReport, backup: &Path) -> String {
    let opens = keys(made, "the vault");
    format!(
        "{} is restored from {} (id {}), now at commit {}: {}\n{opens}\
         its history says that an older state was accepted; other hosts that have seen a later one refuse it until it is mounted there once for writing with --accept-rollback\n",
        made.path,
        backup.display(),
        made.vault,
        made.commit,
        size(made),
    )
}
