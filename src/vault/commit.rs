//! Committing: what waits for it, in which order, and how it is done.

mod committer;
mod job;
mod queue;
mod ticket;
pub(super) mod transact;
mod users;

pub(crate) use committer::CommitQueue;
pub(crate) use ticket::{Ticket, Whose};
