//! System calls mean in a mount what POSIX and a native file system mean by them.

#[path = "../support/mod.rs"]
mod support;

mod directories;
mod files;
mod kinds;
mod links;
mod permissions;
mod refusals;
mod removed;
mod set_id;
mod times;
