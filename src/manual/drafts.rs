//! Why there are drafts.
//!
//! `echo new > file` is three calls: open with `O_TRUNC`, write, close. A file system that passes them
//! through shows readers an empty file, then a part of the new one. A secret must never be seen so, and
//! programs must not have to know that.
//!
//! So an open with `O_TRUNC` of a published file begins a *replacement draft*, which belongs to the FUSE
//! file handle: duplicates and children share it, other opens do not. The published version stays where
//! it is until the draft takes its place in one transaction, under a fresh content key. Opens for
//! writing without `O_TRUNC`, and all opens of a file that was never published, share the node's one
//! *in-place draft*, because databases and `r+` editors expect to see each other's writes.
//!
//! # Which close publishes
//!
//! The kernel sends FLUSH for every `close` of every duplicate. A shell closes duplicates before it
//! writes, and a child closes them when it exits. So a FLUSH publishes only what the process that opened
//! the draft has written, or, where process ids cannot be seen, a `lock_owner` that wrote. The last
//! RELEASE publishes the rest; nobody waits for its result, so a failure is logged, counted and retried.
//!
//! # What waits
//!
//! After `close` returned, every open sees the publication. An open that meets one under way waits for
//! it, but never on a thread that reads requests: that thread could be the one that the publication
//! needs.
