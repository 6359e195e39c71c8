//! The holder of a vault: the daemon that has it mounted. Commands reach it through the socket in
//! the vault's directory, or, where there is none, through the control files of its mount.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde_json::Value;

use super::client::{Asked, DaemonClient};
use super::protocol::Answer;
use crate::error::{Class, Error};
use crate::vault::Request;

/// Limit on the bytes of a refusal that a client reads from the control file: its text may name as
/// many KMS keys as a command does.
const MAX_REFUSAL: usize = 64 << 10;

/// The daemon that has the vault mounted, by the way to reach it.
pub(crate) enum Holder {
    /// The mount at this path.
    Mount(PathBuf),
    /// The daemon that listens in the directory of the vault that this path names.
    Vault(PathBuf, DaemonClient),
}

/// A command that did not begin.
pub(crate) struct NotBegun {
    pub(crate) class: Class,
    pub(crate) why: String,
}

impl NotBegun {
    fn of(class: Option<Class>, errno: &str, why: String) -> Self {
        let class = class.unwrap_or_else(|| class_before(errno));
        Self { class, why }
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.class == Class::Busy
    }
}

/// The class of a refusal that has only an errno: from an older daemon without classes, or from the
/// kernel.
fn class_before(errno: &str) -> Class {
    match errno {
        "EINVAL" => Class::Usage,
        "EBUSY" => Class::Busy,
        "EPERM" => Class::NotPermitted,
        "ENOKEY" | "EKEYREVOKED" | "EACCES" => Class::KeyDenied,
        "ETIMEDOUT" => Class::KmsUnreachable,
        _ => Class::Failed,
    }
}

impl Holder {
    /// The holder of the vault that is mounted on `point`, under this device number. `user` mounted
    /// it. The mount names `source` as its vault, but a mount may name anything: the daemon that
    /// listens in that directory counts only if it serves this device.
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

    /// The path by which the caller named it.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Mount(path) | Self::Vault(path, _) => path,
        }
    }

    /// The status of the mount.
    ///
    /// # Errors
    /// When the holder does not answer.
    pub(crate) fn status(&self) -> Result<Value, Error> {
        match self {
            Self::Mount(point) => status_of_mount(point),
            Self::Vault(path, client) => match client.status()? {
                Asked::Answered(Answer::Status(status)) => Ok(status),
                other => Err(unexpected(path, other)),
            },
        }
    }

    /// Asks the holder to begin a command.
    ///
    /// # Errors
    /// When the holder does not answer.
    pub(crate) fn command(&self, request: &Request) -> Result<Result<(), NotBegun>, Error> {
        let request = request.to_string();
        match self {
            Self::Mount(point) => command_by_mount(point, &request),
            Self::Vault(path, client) => match client.command(&request)? {
                Asked::Answered(Answer::Begun) => Ok(Ok(())),
                Asked::Answered(Answer::Refused { class, errno, why }) => {
                    Ok(Err(NotBegun::of(class, &errno, why)))
                }
                other => Err(unexpected(path, other)),
            },
        }
    }
}

/// Writes a command to the control file of a mount, and reads the answer through the same descriptor.
fn command_by_mount(point: &Path, request: &str) -> Result<Result<(), NotBegun>, Error> {
    let control = point.join(".secretfs/control");
    let by_errno = |error: &io::Error, why: String| {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or_default());
        NotBegun::of(None, &format!("{errno:?}"), why)
    };
    let mut options = OpenOptions::new();
    let mut file = match options.read(true).write(true).open(&control) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let may =
                "only root, the user of its daemon, and whom control-uid names may command it";
            let message = format!("cannot open {}: {error}; {may}", control.display());
            return Err(Error::new(Class::NotPermitted, message));
        }
        Err(error) => {
            let why = format!("cannot open {}: {error}", control.display());
            return Ok(Err(by_errno(&error, why)));
        }
    };
    let Err(error) = file.write_all(request.as_bytes()) else {
        return Ok(Ok(()));
    };
    Ok(Err(match answer_through(&file) {
        Some(Answer::Refused { class, errno, why }) => NotBegun::of(class, &errno, why),
        _ => {
            let why = format!("{error}; {} may say why", control.display());
            by_errno(&error, why)
        }
    }))
}

/// The answer to the command written through a descriptor of the control file; `None` when there is
/// none, as from an older daemon, which shows another text there.
fn answer_through(control: &File) -> Option<Answer> {
    let mut line = vec![0; MAX_REFUSAL];
    // Read from offset 0, wherever a write has left the descriptor. An answer comes in one read.
    let length = control.read_at(&mut line, 0).ok()?;
    serde_json::from_slice(&line[..length]).ok()
}

fn serves(client: &DaemonClient, device: &str) -> bool {
    match client.status() {
        Ok(Asked::Answered(Answer::Status(status))) => status["device"] == device,
        _ => false,
    }
}

/// Asks the daemon that has the vault in `path` mounted for writing; `None` when there is none that
/// this user may ask and trust.
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
        Asked::Answered(Answer::Refused { class, errno, why }) => {
            let refusal = NotBegun::of(class, &errno, why);
            Error::new(refusal.class, format!("{shown}: {}", refusal.why))
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
