//! `secretfs rotate`.

use std::path::Path;

use crate::error::Error;
use crate::keyring::RotationKind;
use crate::vault::Request;

use super::replacing::Replacing;

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
    #[command(flatten)]
    replacing: Replacing,
}

impl Rotate {
    pub(super) fn run(self, config: Option<&Path>) -> Result<(), Error> {
        self.replacing
            .run(config, Request::Rotate, RotationKind::Rotate)
    }
}
