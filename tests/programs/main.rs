//! Ordinary programs do in a mount what they do on any file system.

#[path = "../support/mod.rs"]
mod support;

mod appending;
mod databases;
mod editing;
mod following;
mod mapping;
mod serving;
mod trees;
