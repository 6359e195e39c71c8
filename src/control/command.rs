//! Commands, as programs write them to `.secretfs/control` and send them over the socket.
//!
//! One write is one command. The answer comes once the intent is durable, or has failed.

use crate::error::Class;
use crate::fs::Errno;
use crate::keyring::RotationKind;
use crate::kms::KeyUri;
use crate::vault::{Request, VaultError};

use super::commanders::Right;

/// Longest command, in bytes.
pub(super) const MAX_COMMAND: usize = 4096;

/// The words of a refusal begin with this when a record is not what was stored.
const INTEGRITY: &str = "integrity failure: ";

/// Parses a command.
///
/// # Errors
/// The reason, when `text` is no command.
pub fn parse(text: &[u8]) -> Result<Request, String> {
    let text = match text {
        [.., _] if text.len() > MAX_COMMAND => return Err("the command is too long".into()),
        _ => std::str::from_utf8(text).map_err(|_| "the command is not UTF-8")?,
    };
    let mut words = text.split_ascii_whitespace();
    match words.next() {
        Some(name @ ("rotate" | "reencrypt")) => match words.next() {
            None if name == "rotate" => Ok(Request::Rotate),
            None => Ok(Request::Reencrypt),
            Some("--retire-despite") if words.next().is_none() => {
                Ok(Request::Despite(match name {
                    "rotate" => RotationKind::Rotate,
                    _ => RotationKind::Reencrypt,
                }))
            }
            Some(_) => Err(format!("`{name}` takes no argument but --retire-despite")),
        },
        Some("rewrap") => {
            let mut leave_aws = false;
            let mut to = Vec::new();
            for word in words {
                match word {
                    "--yes-leave-aws" => leave_aws = true,
                    uri => to.push(uri.parse::<KeyUri>().map_err(|e| e.to_string())?),
                }
            }
            Ok(Request::Rewrap { to, leave_aws })
        }
        Some(_) => {
            Err("unknown command; write one of: rotate, reencrypt, rewrap [KMS-KEY-URI ...]".into())
        }
        None => Err(
            "the command is empty; write one of: rotate, reencrypt, rewrap [KMS-KEY-URI ...]"
                .into(),
        ),
    }
}

/// The reason that a command did not begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The exit code of the program follows from it.
    pub(crate) class: Class,
    /// The errno for the program that writes to the control file.
    pub(crate) errno: Errno,
    /// The reason, for people.
    pub(crate) why: String,
}

impl Refusal {
    pub(super) fn new(class: Class, errno: i32, why: impl Into<String>) -> Self {
        Self {
            class,
            errno: Errno(errno),
            why: why.into(),
        }
    }
}

impl From<&VaultError> for Refusal {
    fn from(error: &VaultError) -> Self {
        let errno = Errno::from(error);
        let class = error.failure();
        let mut why = error.to_string();
        // EIO alone does not distinguish a failing disk from a changed record.
        if class == Class::Integrity && !why.starts_with(INTEGRITY) {
            why.insert_str(0, INTEGRITY);
        }
        Self { class, errno, why }
    }
}

/// The user who gives a command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Commander {
    pub(crate) uid: u32,
    pub(crate) right: Right,
}

/// The function that is called once, when a command has begun or is refused.
pub(crate) type OnReply = Box<dyn FnOnce(Result<(), Refusal>) + Send>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_taken_apart_and_anything_else_is_refused_in_words() {
        assert_eq!(parse(b"rotate\n"), Ok(Request::Rotate));
        let despite = Request::Despite(RotationKind::Reencrypt);
        assert_eq!(parse(despite.to_string().as_bytes()), Ok(despite));
        let to = vec!["local-kms://b".parse().expect("a URI")];
        assert_eq!(
            parse(b"rewrap  local-kms://b\n"),
            Ok(Request::Rewrap {
                to,
                leave_aws: false
            })
        );
        for wrong in [
            &b""[..],
            b"\n",
            b"rotate now",
            b"rotate --retire-despite now",
            b"rewrap nonsense",
            b"\xff",
            &[b'r'; 5000],
        ] {
            assert!(!parse(wrong).expect_err("refused").is_empty());
        }
    }
}
