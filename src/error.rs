//! The error of a command: a class, which decides the exit code and what callers do, and one line
//! for people. The line says what was attempted, on what, why it failed and what to do next; it
//! never holds a secret, a key or the name of a file in a vault.

use std::fmt;

/// The classes of failure that callers distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Class {
    /// It did not work, for a reason without a class of its own.
    Failed = 1,
    /// The command, an option or the configuration is wrong.
    Usage = 2,
    /// There is no such vault, or it is not a vault.
    NotAVault = 3,
    /// Access to the KMS key is denied, disabled or revoked.
    KeyDenied = 4,
    /// The KMS did not answer.
    KmsUnreachable = 5,
    /// The stored data is not what was written.
    Integrity = 6,
    /// Another process has the vault or the mount point.
    Busy = 7,
    /// The system does not permit it to this user.
    NotPermitted = 8,
    /// The system lacks something (memory, processes, a device).
    System = 9,
    /// A fault in secretfs itself.
    Internal = 10,
    /// The user interrupted it.
    Interrupted = 11,
    /// A vault, or something else, exists already where one is to be made.
    Exists = 12,
}

impl Class {
    const ALL: [Self; 12] = [
        Self::Failed,
        Self::Usage,
        Self::NotAVault,
        Self::KeyDenied,
        Self::KmsUnreachable,
        Self::Integrity,
        Self::Busy,
        Self::NotPermitted,
        Self::System,
        Self::Internal,
        Self::Interrupted,
        Self::Exists,
    ];

    /// The class that [`as_byte`](Self::as_byte) encoded.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_byte() == byte)
    }

    /// One byte, for the pipe between the daemon and the process that started it.
    pub fn as_byte(self) -> u8 {
        self as u8
    }

    /// The class of this [name](Self::as_str); `None` for one that only another program knows.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == name)
    }

    /// Its name, for answers of a daemon. It is part of the interface: new names may come, but none
    /// changes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NotAVault => "not-a-vault",
            Self::KeyDenied => "key-denied",
            Self::KmsUnreachable => "kms-unreachable",
            Self::Integrity => "integrity",
            Self::Busy => "busy",
            Self::NotPermitted => "not-permitted",
            Self::System => "system",
            Self::Internal => "internal",
            Self::Interrupted => "interrupted",
            Self::Exists => "exists",
        }
    }
}

/// A failure: its class, and one line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The class.
    pub class: Class,
    /// One line, without a program name in front.
    pub message: String,
}

impl Error {
    /// A failure of `class`. Line breaks in `message` become blanks: an error is one line. Paths
    /// may hold anything, and a terminal must not obey it.
    pub fn new(class: Class, message: impl fmt::Display) -> Self {
        let message = message.to_string();
        let lines: Vec<&str> = message
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .collect();
        Self {
            class,
            message: lines
                .join(" ")
                .chars()
                .map(|c| match c.is_control() {
                    true => c.escape_default().to_string(),
                    false => c.to_string(),
                })
                .collect(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_a_name_and_a_byte_of_its_own() {
        for class in Class::ALL {
            assert_eq!(Class::from_name(class.as_str()), Some(class));
            assert_eq!(Class::from_byte(class.as_byte()), Some(class));
        }
        assert_eq!(Class::from_name("of-another-program"), None);
    }
}
