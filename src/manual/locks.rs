//! The order of locks.
//!
//! Every lock has a rank, and `src/sync/order.rs` lists the ranks in their order, each with the data
//! under it and with what may happen while it is held. A thread takes a lock only if its rank comes
//! after those of all locks that the thread holds. Then no two threads can wait for each other. Debug
//! builds check this at every lock and panic on a violation, even if no other thread was in the way; the
//! tests run such builds.
//!
//! A lock of the standard library has no rank. `tests/docs/house.rs` lists the two files that may name
//! one.
//!
//! Locks do not poison. A panic is caught where a request, a job or a thread begins, and the data under
//! a lock is consistent wherever a statement can panic.
