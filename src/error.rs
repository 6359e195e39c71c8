//! Why a command failed: a class, to which exit codes and callers answer, and one line for people.
//! The line says what was attempted, on what, why it failed and what to do next; it never holds a
//! secret, a key or the name of a file in a vault.

use std::fmt;

/// The classes of failure to which an answer differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// What is stored is not what was written.
    Integrity = 6,
    /// Somebody else has the vault or the mount point.
    Busy = 7,
    /// The system does not allow it to this user.
    NotPermitted = 8,
    /// The system lacks something (memory, processes, a device).
    System = 9,
    /// A fault in secretfs itself.
    Internal = 10,
    /// The user interrupted it.
    Interrupted = 11,
    /// There is a vault already, or something else where one is to be made.
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
