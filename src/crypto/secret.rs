//! Secrets as types. Each is in memory of its own, so that a move leaves no copy behind; it is
//! wiped when dropped, hidden from `Debug`, and compared in constant time only.

use std::fmt;

use subtle::ConstantTimeEq;

use super::memory::SecretBytes;

/// A 256-bit symmetric key.
pub struct SecretKey(SecretBytes);

impl SecretKey {
    /// Length in bytes.
    pub const LEN: usize = 32;

    fn empty() -> Self {
        // As `Box` does, abort when there is no memory.
        Self(SecretBytes::zeroed(Self::LEN).unwrap_or_else(|_| std::process::abort()))
    }

    /// A fresh key from the operating system's generator.
    ///
    /// # Errors
    /// When the generator fails, which on Linux means that the whole system is unusable.
    pub fn generate() -> Result<Self, RandomError> {
        let mut key = Self::empty();
        fill_random(&mut key.0)?;
        Ok(key)
    }

    /// Copies a key from `bytes`; `None` unless `bytes` has exactly 32 bytes. The caller wipes
    /// `bytes`.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::LEN {
            return None;
        }
        let mut key = Self::empty();
        key.0.copy_from_slice(bytes);
        Some(key)
    }

    /// A key that `fill` writes into 32 zero bytes.
    pub fn filled_by(fill: impl FnOnce(&mut [u8])) -> Self {
        let mut key = Self::empty();
        fill(&mut key.0);
        key
    }

    /// The same key in the memory reserved for master keys.
    #[must_use]
    pub fn into_master_memory(self) -> Self {
        match SecretBytes::for_master_key(Self::LEN) {
            Ok(mut home) => {
                home.copy_from_slice(&self.0);
                Self(home)
            }
            // The key stays where it is: in memory that is locked and undumpable, too.
            Err(_) => self,
        }
    }

    /// The key's bytes. Callers borrow them as briefly as possible.
    pub fn expose(&self) -> &[u8; 32] {
        // Every constructor makes 32 bytes.
        self.0
            .first_chunk()
            .unwrap_or_else(|| std::process::abort())
    }
}

impl Clone for SecretKey {
    fn clone(&self) -> Self {
        Self::filled_by(|copy| copy.copy_from_slice(&self.0))
    }
}

impl PartialEq for SecretKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretKey {}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// The operating system's random number generator failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the system's random number generator failed: {0}")]
pub struct RandomError(String);

/// Fills `buffer` from the operating system's generator.
///
/// # Errors
/// When the generator fails.
pub fn fill_random(buffer: &mut [u8]) -> Result<(), RandomError> {
    getrandom::fill(buffer).map_err(|e| RandomError(e.to_string()))
}
