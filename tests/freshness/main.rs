//! Nothing older than what was seen is served, and nothing forged.

#[path = "../support/mod.rs"]
mod support;

mod guard;
mod history_unknown;
mod live;
mod rollback;
