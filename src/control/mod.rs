//! The control plane: commands for the keys, status and history, and the two ways to reach them,
//! the control files of the mount and the socket in the vault's directory. It does not talk to the
//! kernel, and must never block a thread that reads requests.

mod client;
mod command;
mod commanders;
mod controller;
mod directory;
mod driver;
mod files;
mod handles;
mod holder;
mod opening;
mod protocol;
mod refusals;
mod renderers;
mod server;
mod status;
mod texts;

pub(crate) use client::{DaemonClient, Farewell};
pub use command::parse as parse_command;
pub use controller::{Controller, Settings};
pub use files::ControlFiles;
pub(crate) use holder::{Holder, ask_daemon};
pub(crate) use protocol::Answer;
pub(crate) use server::Socket;
pub use status::Shown;
