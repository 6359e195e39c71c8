//! Crashes, kills, full and failing disks.

#[path = "../support/mod.rs"]
mod support;

mod crash;
mod disk_faults;
mod pieces;
mod soak;
mod vault_faults;
