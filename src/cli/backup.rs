//! `secretfs backup`.

use std::path::{Path, PathBuf};

use crate::daemon;
use crate::error::Error;
use crate::vault::{self, CopyReport, OpenOptions};

use super::copying::{keys, size};
use super::flags::{Flags, ForOpen};
use super::output;

/// Make a backup of a vault
///
/// Copies the vault to DEST, as of one commit, and verifies every record of the copy. The vault may
/// be mounted, by any user, and written meanwhile. DEST must not exist; it appears only once the
/// whole copy is on disk. It must be where other users cannot exchange a directory on the way to
/// it; in a directory with the sticky bit, such as /tmp, they cannot.
///
/// A backup is a directory that holds a vault with the same id. It can be checked where it is,
/// mounted there with -o ro, and turned into a vault again by `secretfs restore`. The KMS keys that
/// this command prints open it forever: no later rotation changes it. It contains no key of the
/// local KMS; keep a copy of those elsewhere.
#[derive(Debug, clap::Args)]
pub(super) struct Backup {
    /// The vault's directory
    vault: PathBuf,

    /// The directory to create
    dest: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    flags: Flags<ForOpen>,
}

impl Backup {
    pub(super) fn run(self, config: Option<&Path>) -> Result<(), Error> {
        let (settings, _) = self.flags.load(config)?;
        super::meant::must_be_a_vault(&self.vault)?;
        let options = OpenOptions::to_look(&settings);
        let stop = daemon::interruptions()?;
        let made = vault::backup(&self.vault, &self.dest, &options, &daemon::go_on(&stop))?;
        match self.json {
            true => output::show(&made, true),
            false => output::print(&text(&made, &self.vault)),
        }
    }
}

/// The report for people.
fn text(made: &CopyReport, vault: &Path) -> String {
    let opens = keys(made, "the backup");
    format!(
        "{} is a backup of {} (id {}) at commit {}: {}\n{opens}",
        made.path,
        vault.display(),
        made.vault,
        made.commit,
        size(made),
    )
}
