//! KMS key URIs: `local-kms://NAME` and `aws-kms://KEY`.

use std::fmt;
use std::str::FromStr;

/// The provider of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Provider {
    /// The embedded KMS.
    Local,
    /// AWS KMS.
    Aws,
}

/// A well-formed KMS key URI.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyUri(String);

/// The string is not a KMS key URI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{uri}` is no KMS key URI: {why}; write local-kms://NAME, or aws-kms:// and a key ARN, key id or alias/NAME"
)]
pub struct KeyUriError {
    uri: String,
    why: &'static str,
}

/// Limit on a URI, in bytes. An alias ARN is shorter: it has at most 256 characters after its
/// prefix.
const MAX_LEN: usize = 2048;

impl KeyUri {
    /// The URI that `init` uses by default.
    pub fn default_local() -> Self {
        Self("local-kms://default".to_owned())
    }

    /// The key's provider.
    pub fn provider(&self) -> Provider {
        if self.0.starts_with("local-kms://") {
            Provider::Local
        } else {
            Provider::Aws
        }
    }

    /// The part after `://`: a local key's name, or an AWS key ARN, key id or alias.
    pub fn key(&self) -> &str {
        self.0.split_once("://").map_or("", |(_, key)| key)
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyUri {
    type Err = KeyUriError;

    fn from_str(uri: &str) -> Result<Self, KeyUriError> {
        let fail = |why| {
            Err(KeyUriError {
                uri: uri
                    .chars()
                    .take(200)
                    .collect::<String>()
                    .escape_debug()
                    .to_string(),
                why,
            })
        };
        if uri.len() > MAX_LEN {
            return fail("it is too long");
        }
        match uri.split_once("://") {
            Some(("local-kms", name)) => {
                let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
                if name.is_empty() || name.len() > 128 {
                    return fail("the key's name must have 1 to 128 characters");
                }
                if !name.chars().all(plain) || name.starts_with('.') {
                    return fail(
                        "a key's name is made of letters, digits, `-`, `_` and `.`, and begins with no dot",
                    );
                }
            }
            Some(("aws-kms", key)) => {
                let plain =
                    |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':');
                if key.is_empty() {
                    return fail("the key is missing");
                }
                if !key.chars().all(plain) {
                    return fail("the key holds a character that no AWS key name has");
                }
            }
            Some(_) => return fail("unknown provider"),
            None => return fail("it has no `://`"),
        }
        Ok(Self(uri.to_owned()))
    }
}

impl fmt::Display for KeyUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyUri({})", self.0)
    }
}
