//! `secretfs backup`.

use std::path::{Path, PathBuf};

use crate::daemon;
use crate::error::Error;
use crate::vault::{self, CopyReport};

use super::copying::{go_on, keys, size};
use super::flags::{Flags, ForOpen};
use super::output;

/// Make a backup of a vault
///
/// Copies the vault to DEST, as of one commit, and verifies every record of the copy before it says that
/// it is done. The vault may be mounted, by whomever, and be written meanwhile. DEST must not exist, and
/// gets its name when all of the copy is on the disk.
///
/// A backup is a directory with a vault in it, of the same id: it can be checked where it lies, mounted
/// there with -o ro, and made a vault again by `secretfs restore`. It opens with the KMS keys that are
/// printed, and for ever: no later rotation changes it. Keys of the local KMS are not in it; keep a copy
/// of them apart from it.
#[derive(Debug, clap::Args)]
pub(super) struct Backup {
    /// The vault's directory
    vault: PathBuf,

    /// The directory to make
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
        let options = super::check::open_options(&settings);
        let stop = daemon::interruptions()?;
        let made = vault::backup(&self.vault, &self.dest, &options, &go_on(&stop))?;
        match self.json {
            true => output::show(&made, true),
            false => output::print(&told(&made, &self.vault)),
        }
    }
}

fn told(made: &CopyReport, vault: &Path) -> String {
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
