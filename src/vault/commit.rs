//! Committing: what waits for it, in which order, and how it is done.

mod committer;
mod job;
mod queue;
pub(super) mod transact;
mod users;

pub(crate) use committer::CommitQueue;
pub(crate) use queue::{Ticket, Whose};
