//! Encodes values as bytes and back: bincode with fixed-width little-endian integers.
//!
//! No other module knows the encoder. Golden vectors in the tests pin the bytes, so that another
//! encoder can replace it (bincode 2.0.1, the last release that compiles, is unmaintained).

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};

/// Limit on an encoded value, in bytes: a node with all its extended attributes fits.
pub const MAX_ENCODED: usize = 1 << 20;

/// The bytes are no encoded value of the expected type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are not an encoded {what}")]
pub struct DecodeError {
    /// The expected type.
    pub what: &'static str,
}

fn config() -> Configuration<LittleEndian, Fixint, Limit<MAX_ENCODED>> {
    bincode::config::standard()
        .with_fixed_int_encoding()
        .with_limit::<MAX_ENCODED>()
}

/// The bytes of `value`.
pub fn encode<T: Encode>(value: &T) -> Vec<u8> {
    // Encoding into a vector fails only for types whose encoding can fail; none here can.
    bincode::encode_to_vec(value, config()).unwrap_or_else(|_| std::process::abort())
}

/// Decodes a value that takes up all of `bytes`.
///
/// # Errors
/// When `bytes` are no such value, are longer than [`MAX_ENCODED`], or continue after it.
pub fn decode<T: Decode<()>>(bytes: &[u8], what: &'static str) -> Result<T, DecodeError> {
    match bincode::decode_from_slice(bytes, config()) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok(_) | Err(_) => Err(DecodeError { what }),
    }
}

/// Decodes the value at the start of `bytes`, and returns its length with it: for padded texts.
///
/// # Errors
/// When `bytes` do not begin with such a value.
pub fn decode_prefix<T: Decode<()>>(
    bytes: &[u8],
    what: &'static str,
) -> Result<(T, usize), DecodeError> {
    bincode::decode_from_slice(bytes, config()).map_err(|_| DecodeError { what })
}
