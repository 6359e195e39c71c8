//! The control plane: commands to the keys, what tells how a mount is, and the two doors to that, the
//! control files of the mount and the socket in the vault's directory. It knows no kernel, and must never
//! keep a thread that reads requests.

mod command;
mod commanders;
mod controller;
mod directory;
mod driver;
mod files;
mod handles;
mod opening;
mod refusals;
mod renderers;
mod status;
mod texts;

pub use command::parse as parse_command;
pub(crate) use command::{Asker, INTEGRITY, MAX_COMMAND, Refusal};
pub use controller::{Controller, Settings};
pub use files::ControlFiles;
pub(crate) use refusals::Refusals;
pub use status::Shown;
