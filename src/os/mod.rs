//! What this process asks of the kernel, and what the kernel says of this host: processes, mounts,
//! users and limits. Knows nothing of vaults, and imports nothing of this crate.

pub mod cgroup;
pub mod mountinfo;
pub mod nice;
pub mod process;
pub mod stdio;
pub mod sys;
pub mod user;
