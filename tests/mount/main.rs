//! Mounting, unmounting, and who commands a mount.

#[path = "../support/mod.rs"]
mod support;

mod control;
mod endings;
mod exposure;
mod held;
mod idmap;
mod operator;
mod process_mount;
mod process_user;
mod read_only_media;
mod refused;
mod socket;
mod socket_hostile;
mod stale;
mod traps;
