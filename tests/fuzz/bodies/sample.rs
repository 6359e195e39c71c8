//! A small vault, made once by `fuzz/seed.rs`: as it was closed, and as it was killed a little
//! later, with what is not in the database yet in its log.

/// The key of the local KMS, as a file.
pub const KEY: &[u8] = include_bytes!("../sample/default.key");
/// The database as it was closed.
pub const DATABASE: &[u8] = include_bytes!("../sample/vault.db");
/// The log that was left beside it later.
pub const LOG: &[u8] = include_bytes!("../sample/vault.db-wal");
/// What the host remembers of the later state.
pub const ANCHOR: &[u8] = include_bytes!("../sample/anchor.json");
