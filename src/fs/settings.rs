//! How a mount behaves.

use std::time::Duration;

/// How a mount behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long the kernel may remember names and attributes.
    pub ttl: Duration,
    /// Largest secret in bytes.
    pub max_secret_size: u64,
    /// Most bytes of drafts and snapshots in memory.
    pub max_memory: u64,
    /// A reader that asks again at the end of a replaced content after this long waits for more
    /// (`tail -f`) and is given the new one. One that asks sooner is still reading: it would take
    /// the rest of another content for that of its own.
    pub end_patience: Duration,
    /// How long what was only appended to a file may wait to be published without fsync or close.
    pub appends_after: Duration,
    /// How long after somebody else has changed the vault it is counted anew.
    pub verify_every: Duration,
}
