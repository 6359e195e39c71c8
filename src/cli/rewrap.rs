//! `secretfs rewrap`.

use std::path::{Path, PathBuf};

use crate::daemon::Error;
use crate::vault::{OpenOptions, Request};

use super::flags::{Flags, ForOpen};

/// Wrap the master key anew, by the same or by other KMS keys
///
/// The master key stays the same, and so does everything under it. With --kms-key the vault moves
/// to these keys. Each is proved before anything is stored: what it wraps must unwrap to the same.
/// The key that the vault is under now must still work.
///
/// Copies of the vault from before still open with the KMS keys that they were under.
#[derive(Debug, clap::Args)]
pub(super) struct Rewrap {
    /// The vault's directory, or where it is mounted
    path: PathBuf,

    /// Return when it is done, not when it is sure to be done
    #[arg(long)]
    wait: bool,

    /// Move from AWS KMS to keys that are files on this host
    #[arg(long)]
    yes_leave_aws: bool,

    #[command(flatten)]
    flags: Flags<ForOpen>,
}

impl Rewrap {
    pub(super) fn run(self, config: Option<&Path>) -> Result<(), Error> {
        let (settings, _) = self.flags.load(config)?;
        let request = Request::Rewrap {
            to: settings.kms_keys.clone(),
            leave_aws: self.yes_leave_aws,
        };
        let options = OpenOptions {
            // Those are where it goes, not where it is.
            pinned_keys: Vec::new(),
            ..super::check::open_options(&settings)
        };
        super::change::run(&self.path, &request, options, self.wait)
    }
}
