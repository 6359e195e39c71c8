//! `secretfs rewrap`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::error::{Class, Error};
use crate::kms::{KeyUri, KeyUriError};
use crate::vault::{OpenOptions, Request};

use super::flags::{Flags, ForOpen};

/// Wrap the master key again, with the same or other KMS keys
///
/// The master key stays the same, and so does everything under it. With --kms-key the vault moves
/// to these keys; without, its present keys wrap again. Each key is proved before anything is
/// stored: it must unwrap what it wrapped. One of the present keys must still work.
///
/// Earlier copies of the vault still open with the KMS keys of their time.
#[derive(Debug, clap::Args)]
pub(super) struct Rewrap {
    /// The vault's directory, or its mount point
    path: PathBuf,

    /// Return when it is done, not as soon as it is certain to be done
    #[arg(long)]
    wait: bool,

    /// Move from AWS KMS to keys that are files on this host
    #[arg(long)]
    yes_leave_aws: bool,

    #[command(flatten)]
    flags: Flags<ForOpen>,
}

impl Rewrap {
    pub(super) fn run(mut self, config: Option<&Path>) -> Result<(), Error> {
        // As flags, KMS keys are the target of the rewrap; elsewhere they are pins.
        let to = self.flags.take("kms-key");
        let to = to.iter().map(|key| parse(key));
        let to = to.collect::<Result<_, _>>()?;
        let (settings, _) = self.flags.load(config)?;
        let leave_aws = self.yes_leave_aws;
        let request = Request::Rewrap { to, leave_aws };
        let options = OpenOptions::to_look(&settings);
        super::rotation::run(&self.path, &request, options, self.wait)
    }
}

fn parse(key: &OsStr) -> Result<KeyUri, Error> {
    let usage = |why: String| Error::new(Class::Usage, format!("bad kms-key: {why}"));
    let text = key
        .to_str()
        .ok_or_else(|| usage("it is not UTF-8".into()))?;
    text.parse().map_err(|e: KeyUriError| usage(e.to_string()))
}
