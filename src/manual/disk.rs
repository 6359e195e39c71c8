//! What is assumed about the disk.
//!
//! - After `fsync` or `fdatasync` of a file returned 0, its content outlives a power cut. After one of a
//!   directory, so do its names.
//! - Before a sync, any of the writes since the last one may be on the disk, in any order, and a write of
//!   a page may be torn. SQLite's log has a checksum for each frame and is replayed to the last whole
//!   commit.
//! - A sync that fails says nothing about which writes are on the disk, and a later success takes nothing
//!   back. So after a failure the store writes nothing more until the vault is opened again.
//! - OFD locks and shared memory work between the processes of the host. That is why network and FUSE
//!   file systems are refused.
//! - What is read may be anything. Whoever writes the disk is an attacker of the threat model: all
//!   lengths are bounded before use, the schema is compared byte by byte, and nothing read is trusted
//!   before it is authenticated.
//! - Deleted and overwritten bytes may stay on the medium (SSDs, copy-on-write, snapshots). So a content
//!   is erased by its key; keys are overwritten in the database file.
//!
//! `tests/power_cuts.rs` records, below the C library, what is written and synced, cuts the power at some
//! point of it, and opens what these rules allow the disk to be left with.
