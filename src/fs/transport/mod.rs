//! The transport: it takes requests from the kernel, and tells the kernel things. Nothing outside of this
//! folder knows fuser, and nothing in it decides what a request means.

mod adapter;
mod busy_poll;
mod convert;
mod fuser;
mod negotiation;
mod replies;
mod session;
mod threads;
mod who;

pub use convert::MAX_TRANSFER;
pub use session::{Serving, start};
