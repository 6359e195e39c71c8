//! Backups: made of a vault in use, restored, damaged, refused, and cut off.

#[path = "../support/mod.rs"]
mod support;

mod killed;
mod kit;
mod live;
mod refused;
mod restored;
