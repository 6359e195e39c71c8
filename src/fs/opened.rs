//! The answer to the kernel for an open.

use super::FileHandle;

/// An open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The handle, which the kernel passes with every request.
    pub fh: FileHandle,
    /// Whether a close can have an effect; if not, the kernel need not send a FLUSH.
    pub flushes: bool,
}
