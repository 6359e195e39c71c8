//! How requests come from the kernel, and how it is told things. Nothing outside of this folder knows
//! fuser, and nothing in it decides what a request means.

mod busy_poll;
mod fuser;
mod session;
mod threads;
mod who;

pub use self::fuser::MAX_TRANSFER;
pub use session::{Serving, start};
