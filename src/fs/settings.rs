//! The settings of a mount.

use std::time::Duration;

/// The settings of a mount.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long the kernel may keep names and attributes.
    pub ttl: Duration,
    /// Limit on a secret, in bytes.
    pub max_secret_size: u64,
    /// Limit on drafts and snapshots in memory, in bytes.
    pub max_memory: u64,
    /// A reader that asks again at the end of a replaced content after this long is waiting for
    /// more (`tail -f`), and gets the new one. A reader that asks sooner is still reading: it would
    /// take the rest of another content for that of its own.
    pub end_patience: Duration,
    /// How long appended data waits to be published without fsync or close.
    pub appends_after: Duration,
    /// How long after a change by another process the vault is counted again.
    pub verify_every: Duration,
}
