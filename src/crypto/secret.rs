//! Secrets as types: boxed so that moves leave no copies behind, wiped when dropped, shown by no
//! `Debug`, compared in constant time only.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A 256-bit symmetric key.
#[derive(Clone)]
pub struct SecretKey(Box<Zeroizing<[u8; 32]>>);

impl SecretKey {
    /// Length in bytes.
    pub const LEN: usize = 32;

    /// A fresh key from the operating system's generator.
    ///
    /// # Errors
    /// When the generator fails, which on Linux means that the system is not usable at all.
    pub fn generate() -> Result<Self, RandomError> {
        let mut key = Self(Box::new(Zeroizing::new([0; 32])));
        fill_random(&mut key.0[..])?;
        Ok(key)
    }

    /// Takes a key out of `bytes`; `None` unless there are exactly 32 of them. The caller wipes
    /// `bytes`.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let mut key = Self(Box::new(Zeroizing::new([0; 32])));
        if bytes.len() != Self::LEN {
            return None;
        }
        key.0.copy_from_slice(bytes);
        Some(key)
    }

    /// The key's bytes, to be borrowed as briefly as possible.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for SecretKey {
    fn eq(&self, other: &Self) -> bool {
        self.0[..].ct_eq(&other.0[..]).into()
    }
}

impl Eq for SecretKey {}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// The operating system's random number generator failed.
#[derive(Debug, thiserror::Error)]
#[error("the system's random number generator failed: {0}")]
pub struct RandomError(String);

/// Fills `buffer` from the operating system's generator.
///
/// # Errors
/// When the generator fails.
pub fn fill_random(buffer: &mut [u8]) -> Result<(), RandomError> {
    getrandom::fill(buffer).map_err(|e| RandomError(e.to_string()))
}
