//! What each fuzz target does with its input: calls a decoder, and fails if more comes of it than
//! the input can justify. Shared by the targets beside it and by `corpora.rs`, so that
//! the targets never rot.
//!
//! What is guarded by a checksum, a MAC or a seal is tried twice: from outside, where nothing but
//! the genuine bytes may pass, and from inside, with the guard computed anew.

mod anchor;
mod aws_answer;
mod database;
mod heap;
mod keyring;
mod local_kms;
mod node;
mod records;
mod requests;
mod sample;
mod settings;
mod world;

/// A target, by the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 9] = [
    ("anchor", anchor::run),
    ("aws_answer", aws_answer::run),
    ("database", database::run),
    ("keyring", keyring::run),
    ("local_kms", local_kms::run),
    ("node", node::run),
    ("records", records::run),
    ("requests", requests::run),
    ("settings", settings::run),
];

/// Runs one target on one input. Aborts when a single allocation is larger than the input can
/// justify.
pub fn run(name: &str, input: &[u8]) {
    let (_, body) = TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .unwrap_or_else(|| panic!("there is no target {name}"));
    // SQLite begins with room for 20 pages, of as much as 64 KiB each, and a row may have 2 MiB.
    let floor = if name == "database" { 2 << 20 } else { 1 << 20 };
    heap::within(floor + 16 * input.len(), || body(input));
}

/// The selector of a case, and its bytes.
fn split(input: &[u8], cases: u8) -> Option<(u8, &[u8])> {
    let (first, rest) = input.split_first()?;
    Some((first % cases, rest))
}

/// A directory in memory, for files that are written thousands of times.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a directory")
}
