//! The holder of a vault: the daemon that has it mounted. It is asked through the socket in the vault's
//! directory, or where there is none through the control files of its mount.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde_json::Value;

use super::client::{Asked, DaemonClient};
use super::command::INTEGRITY;
use super::protocol::Answer;
use crate::error::{Class, Error};
use crate::vault::Request;

/// The daemon that has the vault mounted, by the way in which it is asked.
pub(crate) enum Holder {
    /// The mount here.
    Mount(PathBuf),
    /// The daemon that listens in the directory of the vault that this path stands for.
    Vault(PathBuf, DaemonClient),
}

/// A command that was not begun.
pub(crate) struct NotBegun {
    /// The errno's name.
    errno: String,
    pub(crate) why: String,
}

impl NotBegun {
    pub(crate) fn is_busy(&self) -> bool {
        self.errno == "EBUSY"
    }

    pub(crate) fn class(&self) -> Class {
        match self.errno.as_str() {
            "EINVAL" => Class::Usage,
            "EBUSY" => Class::Busy,
            "EPERM" => Class::NotPermitted,
            "ENOKEY" | "EKEYREVOKED" | "EACCES" => Class::KeyDenied,
            "ETIMEDOUT" => Class::KmsUnreachable,
            "EIO" if self.why.contains(INTEGRITY) => Class::Integrity,
            _ => Class::Failed,
        }
    }
}

impl Holder {
    /// The holder of the vault that is mounted on `point`, under this device number. The mount names
    /// `source` as its vault, but may name what it likes: the daemon that listens in that directory counts
    /// only if it serves this device. `user` has mounted it.
    pub(crate) fn of_mount(
        point: PathBuf,
        device: (u32, u32),
        source: &Path,
        user: Option<u32>,
    ) -> Self {
        let device = format!("{}:{}", device.0, device.1);
        match DaemonClient::of_mount(source, user) {
            Ok(Some(client)) if serves(&client, &device) => Self::Vault(point, client),
            _ => Self::Mount(point),
        }
    }

    /// The path by which it was named.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Mount(path) | Self::Vault(path, _) => path,
        }
    }

    /// The status of the mount.
    ///
    /// # Errors
    /// When the holder cannot be asked.
    pub(crate) fn status(&self) -> Result<Value, Error> {
        match self {
            Self::Mount(point) => status_of_mount(point),
            Self::Vault(path, client) => match client.status()? {
                Asked::Answered(Answer::Status(status)) => Ok(status),
                other => Err(unexpected(path, other)),
            },
        }
    }

    /// Has the holder begin a command.
    ///
    /// # Errors
    /// When the holder cannot be asked.
    pub(crate) fn command(&self, request: &Request) -> Result<Result<(), NotBegun>, Error> {
        let request = request.to_string();
        match self {
            Self::Mount(point) => {
                let control = point.join(".secretfs/control");
                let opened = std::fs::OpenOptions::new().write(true).open(&control);
                if let Err(error) = &opened
                    && error.kind() == io::ErrorKind::PermissionDenied
                {
                    let may = "only root, the user of its daemon, and whom control-uid names may command it";
                    let message = format!("cannot open {}: {error}; {may}", control.display());
                    return Err(Error::new(Class::NotPermitted, message));
                }
                let written = opened.and_then(|mut file| file.write_all(request.as_bytes()));
                Ok(written.map_err(|error| {
                    let errno = error.raw_os_error().unwrap_or_default();
                    // The words of a busy daemon are about another command.
                    let words = last_words(&control).filter(|_| errno != nix::libc::EBUSY);
                    NotBegun {
                        errno: format!("{:?}", Errno::from_raw(errno)),
                        why: words.unwrap_or_else(|| error.to_string()),
                    }
                }))
            }
            Self::Vault(path, client) => match client.command(&request)? {
                Asked::Answered(Answer::Begun) => Ok(Ok(())),
                Asked::Answered(Answer::Refused { errno, why }) => Ok(Err(NotBegun { errno, why })),
                other => Err(unexpected(path, other)),
            },
        }
    }
}

fn serves(client: &DaemonClient, device: &str) -> bool {
    match client.status() {
        Ok(Asked::Answered(Answer::Status(status))) => status["device"] == device,
        _ => false,
    }
}

/// Asks the daemon that has the vault in `path` mounted for writing; `None` when there is none that may be
/// asked and believed.
///
/// # Errors
/// When it refuses.
pub(crate) fn ask_daemon(
    path: &Path,
    ask: impl FnOnce(&DaemonClient) -> Result<Asked, Error>,
) -> Result<Option<Answer>, Error> {
    let Ok(Some(client)) = DaemonClient::of(path) else {
        return Ok(None);
    };
    match ask(&client)? {
        Asked::Answered(answer @ (Answer::Status(_) | Answer::Audit(_))) => Ok(Some(answer)),
        Asked::Gone => Ok(None),
        other => Err(unexpected(path, other)),
    }
}

/// The error for an answer that does not fit the question.
fn unexpected(vault: &Path, asked: Asked) -> Error {
    let shown = vault.display();
    match asked {
        Asked::Gone => Error::new(Class::Failed, format!("{shown}: {GONE}")),
        Asked::Answered(Answer::Refused { errno, why }) => {
            let refusal = NotBegun { errno, why };
            Error::new(refusal.class(), format!("{shown}: {}", refusal.why))
        }
        Asked::Answered(_) => Error::new(
            Class::Failed,
            format!("{shown}: the daemon that has it mounted gives an answer to something else"),
        ),
    }
}

const GONE: &str = "the mount has ended; what was begun is finished by the next mount for writing, or \
                    by the next command on the vault";

fn status_of_mount(point: &Path) -> Result<Value, Error> {
    let file = point.join(".secretfs/status");
    let fail = |why: String| Error::new(Class::Failed, format!("{}: {why}", file.display()));
    let text = std::fs::read_to_string(&file).map_err(|e| {
        let gone = matches!(
            e.raw_os_error(),
            Some(nix::libc::ENOENT | nix::libc::ENOTCONN | nix::libc::ECONNABORTED)
        );
        fail(match gone {
            true => GONE.to_owned(),
            false => e.to_string(),
        })
    })?;
    serde_json::from_str(&text).map_err(|e| fail(e.to_string()))
}

/// The outcome of the last command, as the control file shows it.
fn last_words(control: &Path) -> Option<String> {
    let mut text = String::new();
    let file = std::fs::File::open(control).ok()?;
    file.take(4096).read_to_string(&mut text).ok()?;
    let (at, words) = text.trim_end().split_once(' ')?;
    // Before the first command it says something else.
    at.parse::<i64>().ok()?;
    let (_time, words) = words.split_once(' ')?;
    Some(words.to_owned())
}
