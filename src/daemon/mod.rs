//! The process: start order, hardening, mounting, signals and the end. It does not know what is
//! stored or how it is encrypted. It must never report a mount that is not served, leave a mount
//! that no process serves, or unmount another process' mount.

mod detach;
mod fusermount;
mod harden;
mod helper;
mod holders;
mod log;
mod mount;
mod mount_options;
mod panics;
mod patience;
mod plan;
mod point;
mod quote;
mod seen;
mod serve;
mod signals;
mod start;
mod touch;
mod unmount;

pub use crate::os::mountinfo::{FS_TYPE, Mount as MountInfo, absolute, mount_at, mounts};
pub use crate::os::sys::ignore_file_size_signal;
pub use harden::{Locked, Protection};
pub use panics::{caught, install_hook};
pub(crate) use patience::patiently;
pub use plan::{Request, Target, check as plan};
pub(crate) use signals::{go_on, interruptions};
pub use start::mount;
pub use unmount::{Unmounted, unmount};
