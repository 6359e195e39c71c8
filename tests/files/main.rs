//! Files of a mount behave as programs expect: drafts, lengths, times, watchers, readers beside a writer.

#[path = "../support/mod.rs"]
mod support;

mod appends;
mod beside;
mod drafts;
mod limits;
mod page_cache;
mod sizes;
mod torn;
mod watchers;
