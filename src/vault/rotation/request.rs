//! What can be asked of a vault's keys.

use crate::keyring::ChangeKind;
use crate::kms::KeyUri;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A new master key; every data key is wrapped by it.
    Rotate,
    /// New data keys and a new master key; everything is encrypted anew.
    Reencrypt,
    /// That one of these two, which is under way or begins now, removes the old master key although
    /// records do not open.
    Despite(ChangeKind),
    /// New wraps of the same master key.
    Rewrap {
        /// Under these KMS keys; none: under those that it has.
        to: Vec<KeyUri>,
        /// It may leave AWS for a key on this host.
        leave_aws: bool,
    },
}

impl Request {
    /// Its name as a command.
    pub fn name(&self) -> &'static str {
        match self {
            Request::Rotate => "rotate",
            Request::Reencrypt => "reencrypt",
            Request::Despite(ChangeKind::Rotate) => "rotate",
            Request::Despite(ChangeKind::Reencrypt) => "reencrypt",
            Request::Rewrap { .. } | Request::Despite(ChangeKind::Rewrap) => "rewrap",
        }
    }
}

impl std::fmt::Display for Request {
    /// As the control file takes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())?;
        if let Request::Despite(_) = self {
            f.write_str(" --retire-despite")?;
        }
        if let Request::Rewrap { to, leave_aws } = self {
            if *leave_aws {
                f.write_str(" --yes-leave-aws")?;
            }
            for key in to {
                write!(f, " {key}")?;
            }
        }
        Ok(())
    }
}
