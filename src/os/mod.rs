//! The interface to the kernel: processes, mounts, users and limits. Nothing here knows about
//! vaults, or imports anything of this crate.

pub(crate) mod asking;
pub mod cgroup;
pub mod mountinfo;
pub mod nice;
pub mod process;
pub mod reach;
pub mod stdio;
pub mod sys;
pub mod user;
