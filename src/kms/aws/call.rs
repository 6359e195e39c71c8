//! One call of AWS KMS: the beginning of its errors, and their class among those of all providers.

use crate::aws::errors::{Class, Failure};
use crate::kms::{KeyUri, KmsError, KmsErrorKind};

/// The operation on a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Wrap,
    Unwrap,
    Describe,
}

/// One call.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) operation: Operation,
    pub(super) uri: KeyUri,
}

impl Call {
    /// The IAM action that the call needs.
    pub(super) fn action(&self) -> &'static str {
        match self.operation {
            Operation::Wrap => "kms:Encrypt",
            Operation::Unwrap => "kms:Decrypt",
            Operation::Describe => "kms:DescribeKey",
        }
    }

    /// An error of this call, of class `kind`.
    pub(super) fn fail(&self, kind: KmsErrorKind, why: impl AsRef<str>) -> KmsError {
        let attempt = match self.operation {
            Operation::Wrap => "wrap a key under",
            Operation::Unwrap => "unwrap a key with",
            Operation::Describe => "look up",
        };
        KmsError {
            kind,
            message: format!("cannot {attempt} {}: {}", self.uri, why.as_ref()),
        }
    }

    /// An error of this call that AWS, or the way to it, caused.
    pub(super) fn failed(&self, failure: Failure) -> KmsError {
        let kind = match failure.class {
            Class::Denied => KmsErrorKind::Denied,
            Class::Disabled => KmsErrorKind::Disabled,
            Class::PendingDeletion => KmsErrorKind::PendingDeletion,
            Class::NotFound => KmsErrorKind::NotFound,
            Class::WrongKey => KmsErrorKind::WrongKey,
            Class::NoCredentials => KmsErrorKind::NoCredentials,
            Class::Throttled => KmsErrorKind::Throttled,
            Class::Unreachable => KmsErrorKind::Unreachable,
            Class::BadAnswer => KmsErrorKind::BadAnswer,
            Class::Configuration => KmsErrorKind::Configuration,
        };
        self.fail(kind, failure.why)
    }
}
