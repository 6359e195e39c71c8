//! `secretfs rotate`.

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::keyring::RotationKind;
use crate::vault::{OpenOptions, Request};

use super::flags::{Flags, ForOpen};

/// Replace the master key
///
/// Makes a new master key, wraps every data key with it, shows that the old one wraps nothing any
/// more, and removes that. The key of the vault's state and sums is replaced, too; contents are not
/// encrypted again. The vault stays in use meanwhile: a daemon that has it mounted for writing,
/// anywhere on this host, does the work; otherwise this command does. Once begun, the rotation is
/// finished whatever happens, by the next mount or the next command.
///
/// It does not undo what an attacker has learnt. Earlier copies of the vault still open with the
/// old master key. And data keys stay the same: an attacker with the old master key and such a copy
/// has the data keys of everything in it. Even in later states of the vault they open the names in
/// directories and the attributes of files from that time, and contents that have not changed
/// since, which the attacker can even replace by others of the same length. They do not open new
/// contents, attributes of new files, or names in new directories. After a compromise use
/// `reencrypt`, which leaves none of that.
#[derive(Debug, clap::Args)]
pub(super) struct Rotate {
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

impl Rotate {
    pub(super) fn run(self, config: Option<&Path>) -> Result<(), Error> {
        let (settings, _) = self.flags.load(config)?;
        let options = OpenOptions::to_look(&settings);
        let request = match self.retire_despite {
            true => Request::Despite(RotationKind::Rotate),
            false => Request::Rotate,
        };
        super::rotation::run(&self.path, &request, options, self.wait)
    }
}
