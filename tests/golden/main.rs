//! Vaults of format 1 that are committed, with what is in them: whatever a later program writes, it opens
//! them and finds the same. And ways to tamper with them, each refused for a reason of its own.

mod forged;
mod insider;
mod make;
mod open;
mod past;
mod reader;
mod store;
#[path = "../support/mod.rs"]
mod support;
mod tamper;
mod tampered;
