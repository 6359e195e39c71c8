//! Keys are replaced while programs read and write, through any crash.

#[path = "../support/mod.rs"]
mod support;

mod blocked;
mod commands;
mod crash;
mod ended;
mod forged;
mod forged_record;
mod interrupted;
mod killed;
mod kms;
mod latency;
mod names;
mod online;
mod open;
mod priority;
mod rewrap;
mod scale;
mod sums;
mod told;
