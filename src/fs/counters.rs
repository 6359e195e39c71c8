//! The counters of a mount.

use std::sync::atomic::AtomicU64;

/// Counters for `status` and metrics.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) published: AtomicU64,
    pub(super) failed_publications: AtomicU64,
    /// Bytes of contents being stored in pieces.
    pub(super) in_pieces: AtomicU64,
}
