//! Requests about a vault's keys.

use crate::keyring::RotationKind;
use crate::kms::KeyUri;

/// A request about a vault's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A new master key, which wraps every data key.
    Rotate,
    /// New data keys and a new master key; everything is encrypted again.
    Reencrypt,
    /// One of these two, under way or new, which removes the old master key even if records do not
    /// open.
    Despite(RotationKind),
    /// New wraps of the same master key.
    Rewrap {
        /// By these KMS keys; if empty, by the present ones.
        to: Vec<KeyUri>,
        /// Allows a move from AWS KMS to a key on this host.
        leave_aws: bool,
    },
}

impl Request {
    /// Its name as a command.
    pub fn name(&self) -> &'static str {
        match self {
            Request::Rotate => "rotate",
            Request::Reencrypt => "reencrypt",
            Request::Despite(RotationKind::Rotate) => "rotate",
            Request::Despite(RotationKind::Reencrypt) => "reencrypt",
            Request::Rewrap { .. } | Request::Despite(RotationKind::Rewrap) => "rewrap",
        }
    }
}

impl std::fmt::Display for Request {
    /// The request in the syntax of the control file.
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
