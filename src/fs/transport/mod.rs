//! The transport: it takes requests from the kernel, and sends notifications to it. Nothing outside
//! this folder knows fuser, and nothing in it decides the meaning of a request.

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
