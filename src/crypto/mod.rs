//! The cryptography of secretfs: what is derived from what, what is bound into every seal, and
//! the types that hold secrets. Nothing here knows of files, databases or KMS.

pub mod secret;

pub use secret::SecretKey;
