//! Options for opening a store.

use super::lock::Holder;

/// The mode in which a vault is opened.
#[derive(Clone, Debug)]
pub enum Mode {
    /// Reading and writing; [`Holder`] names this process in the lock.
    Write(Holder),
    /// Reading, beside any other process. Takes no lock.
    ReadOnly,
    /// Reading files that nobody changes, such as a backup. Creates no file beside them, not even
    /// for a moment.
    ReadStill,
}

/// Options for opening a vault.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Accepts a network or FUSE file system.
    pub unsafe_filesystem: bool,
}
