//! What opening a file tells the kernel.

use super::FileHandle;

/// An open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// What the kernel is to pass with every request.
    pub fh: FileHandle,
    /// Whether closing it can have an effect: if not, the kernel need not ask.
    pub flushes: bool,
}
