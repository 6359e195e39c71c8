//! How values are turned into bytes and back: bincode with fixed-width little-endian integers.
//!
//! The one place that knows the encoder. Golden vectors in the tests pin the bytes, so that
//! another encoder can take over (bincode 2.0.1 is the last that compiles and is unmaintained).

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};

/// Largest encoded value, in bytes: a node with all its extended attributes fits.
pub const MAX_ENCODED: usize = 1 << 20;

/// Bytes that are no encoded value of the type wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are not an encoded {what}")]
pub struct DecodeError {
    /// The type wanted.
    pub what: &'static str,
}

fn config() -> Configuration<LittleEndian, Fixint, Limit<MAX_ENCODED>> {
    bincode::config::standard()
        .with_fixed_int_encoding()
        .with_limit::<MAX_ENCODED>()
}

/// The bytes of `value`.
pub fn encode<T: Encode>(value: &T) -> Vec<u8> {
    // Encoding into a vector fails for values that refuse to be encoded, of which there are none.
    bincode::encode_to_vec(value, config()).unwrap_or_else(|_| std::process::abort())
}

/// The value that `bytes` encode, all of them.
///
/// # Errors
/// When they encode no such value, are too many, or some are left over.
pub fn decode<T: Decode<()>>(bytes: &[u8], what: &'static str) -> Result<T, DecodeError> {
    match bincode::decode_from_slice(bytes, config()) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok(_) | Err(_) => Err(DecodeError { what }),
    }
}

/// The value at the start of `bytes`, and how many bytes it took: for padded texts.
///
/// # Errors
/// When they begin with no such value.
pub fn decode_prefix<T: Decode<()>>(
    bytes: &[u8],
    what: &'static str,
) -> Result<(T, usize), DecodeError> {
    bincode::decode_from_slice(bytes, config()).map_err(|_| DecodeError { what })
}
