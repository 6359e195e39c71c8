//! Bounds of all values, in bytes, in both directions: nothing longer is written, and nothing longer
//! is returned, whatever the medium says.

use super::RecordId;

/// The header is a few fixed fields.
pub(super) const MAX_HEADER: usize = 4 << 10;
/// Many generations, each with many wraps.
pub(super) const MAX_KEYRING: usize = 1 << 20;
/// The state is a few sums.
pub(super) const MAX_STATE: usize = 64 << 10;
/// Attributes of up to 1 MiB, sealed, and a wrapped key.
pub(super) const MAX_NODE: usize = (1 << 20) + (4 << 10);
/// A padded name of up to 512 bytes, sealed, and a few numbers.
pub(super) const MAX_ENTRY: usize = 16 << 10;
/// A wrapped key and sealed numbers.
pub(super) const MAX_VERSION: usize = 16 << 10;
/// 64 KiB of content, sealed.
pub(super) const MAX_CHUNK: usize = (64 << 10) + 64;
/// One event of the key-management history.
pub(super) const MAX_EVENT: usize = 64 << 10;

/// Versions of one node that are listed at once.
pub(super) const MAX_VERSIONS: usize = 1 << 20;

/// Limit on the value of a record.
pub(super) fn of(id: &RecordId) -> usize {
    match id {
        RecordId::Header => MAX_HEADER,
        RecordId::Keyring => MAX_KEYRING,
        RecordId::State => MAX_STATE,
        RecordId::Node(_) => MAX_NODE,
        RecordId::Entry(..) => MAX_ENTRY,
        RecordId::Version(..) => MAX_VERSION,
        RecordId::Orphan(_) => 0,
        RecordId::Event(_) => MAX_EVENT,
    }
}
