//! `secretfs rotate`.

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::keyring::ChangeKind;
use crate::vault::{OpenOptions, Request};

use super::flags::{Flags, ForOpen};

/// Replace the master key
///
/// Makes a new master key, wraps every data key by it, shows that nothing is left under the old one
/// and removes it. The key of the vault's state and sums is replaced, too. Contents are not encrypted
/// anew. Goes on while the vault is used: the daemon that has it mounted for writing, wherever on this
/// host, is asked to do it; a vault that nobody has mounted is rotated by this command. What was begun
/// is finished, whatever happens: by the next mount or the next command.
///
/// It does not undo what somebody learnt. Copies of the vault from before still open with the old
/// master key. And data keys stay the same: whoever had the old master key and such a copy has the
/// data keys of all that was in it, and reads with them, also of later states of the vault, the names
/// in directories that were there, the attributes of what was there, and contents that have not changed
/// since, which can even be replaced by others of the same length; not new contents, nor the attributes
/// of new files and what is in new directories. After a compromise use `reencrypt`, which leaves none of
/// that.
#[derive(Debug, clap::Args)]
pub(super) struct Rotate {
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

impl Rotate {
    pub(super) fn run(self, config: Option<&Path>) -> Result<(), Error> {
        let (settings, _) = self.flags.load(config)?;
        let options = OpenOptions::to_look(&settings);
        let request = match self.retire_despite {
            true => Request::Despite(ChangeKind::Rotate),
            false => Request::Rotate,
        };
        super::rotation::run(&self.path, &request, options, self.wait)
    }
}
