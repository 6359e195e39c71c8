//! The part that `rotate` and `reencrypt` share: their arguments, and the request that they make.

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::keyring::RotationKind;
use crate::vault::{OpenOptions, Request};

use super::flags::{Flags, ForOpen};

// The arguments. A doc comment would be shown as the text of the command.
#[derive(Debug, clap::Args)]
pub(super) struct Replacing {
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

impl Replacing {
    /// Has `request` carried out, or, if damaged records must not stop it, a rotation of this kind
    /// despite them.
    pub(super) fn run(
        self,
        config: Option<&Path>,
        request: Request,
        kind: RotationKind,
    ) -> Result<(), Error> {
        let (settings, _) = self.flags.load(config)?;
        let options = OpenOptions::to_look(&settings);
        let request = match self.retire_despite {
            true => Request::Despite(kind),
            false => request,
        };
        super::rotation::run(&self.path, &request, options, self.wait)
    }
}
