//! The process: start order, hardening, mounting, signals and the end. It knows nothing of what is
//! stored or how it is encrypted. Must never report a mount that is not served, leave a mount that
//! nobody serves, or unmount what it did not mount.

mod detach;
mod harden;
mod helper;
mod holders;
mod log;
mod mount;
mod mountinfo;
mod panics;
mod plan;
mod point;
mod quote;
mod seen;
mod serve;
mod signals;
mod start;
mod sys;
mod touch;
mod unmount;

pub use harden::{Locked, Protection};
pub use mountinfo::{FS_TYPE, Mount as MountInfo, absolute, mount_at, mounts};
pub use panics::{caught, install_hook};
pub use plan::{Request, Target, check as plan};
pub(crate) use signals::interruptions;
pub use start::mount;
pub use sys::ignore_file_size_signal;
pub use unmount::{Unmounted, unmount};
