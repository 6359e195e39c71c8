//! `secretfs restore`.

use std::path::{Path, PathBuf};

use crate::daemon;
use crate::error::Error;
use crate::vault::{self, CopyReport, OpenOptions};

use super::copying::{keys, size};
use super::flags::{Flags, ForOpen};
use super::output;

/// Make a vault of a backup
///
/// Verifies every record of the backup before it writes anything, copies the backup to VAULT, which
/// must not exist, and verifies that copy, too. The backup stays as it is, and may be on a
/// read-only medium. VAULT must be where other users cannot exchange a directory on the way to it.
///
/// A restored vault is older than the last state that hosts have seen. Its history records that
/// this was accepted, and this host remembers the restored state, so the next mount here needs no
/// --accept-rollback. Other hosts that have seen a later state refuse the vault with exit code 6,
/// until it is mounted there once for writing with --accept-rollback. The vault that it replaces
/// must not be mounted any more, on any host, and this host may refuse it from then on. To look at
/// a backup only, mount it with -o ro and an empty --anchor-dir.
#[derive(Debug, clap::Args)]
pub(super) struct Restore {
    /// The directory that `secretfs backup` created
    backup: PathBuf,

    /// The vault's directory, which this command creates
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
        let options = OpenOptions::to_look(&settings);
        let stop = daemon::interruptions()?;
        let made = vault::restore(&self.backup, &self.vault, &options, &daemon::go_on(&stop))?;
        match self.json {
            true => output::show(&made, true),
            false => output::print(&text(&made, &self.backup)),
        }
    }
}

/// The report for people.
fn text(made: &CopyReport, backup: &Path) -> String {
    let opens = keys(made, "the vault");
    format!(
        "{} is restored from {} (id {}), now at commit {}: {}\n{opens}\
         its history says that an older state was accepted; other hosts that have seen a later one \
         refuse it until it is mounted there once for writing with --accept-rollback\n",
        made.path,
        backup.display(),
        made.vault,
        made.commit,
        size(made),
    )
}
