//! The cryptography of secretfs: key derivation, the context bound into every seal, and the types
//! that hold secrets. Nothing here knows about files, databases or KMS.

pub mod aead;
pub mod heap;
pub mod memory;
pub mod padding;
mod pages;
pub mod schedule;
pub mod secret;
pub mod sum;

pub use aead::{Nonces, OpenError, OpenFailure, SealError};
pub use memory::{MemoryError, SecretBytes};
pub use secret::{RandomError, SecretKey};
pub use sum::SetSum;
