//! The file system and the vault against references, without a kernel in between.

#[path = "../support/mod.rs"]
mod support;

mod model;
mod model_threads;
mod vault_jobs;
