//! Vaults of format 1 that are committed, with what is in them: whatever a later program writes, it opens
//! them and finds the same.

mod make;
mod open;
mod store;
#[path = "../support/mod.rs"]
mod support;
