//! One user against the others: memory and the disk's time.

#[path = "../support/mod.rs"]
mod support;

mod fairness;
mod memory;
mod turns;
