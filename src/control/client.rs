//! The client of the socket. It believes answers from root, from this user and from the owner of
//! the vault's directory only: any user may have put a socket there. The path that a mount names
//! may lead elsewhere here, to a directory that any user made: for a mount, the user who mounted
//! takes the owner's place.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};

use super::protocol::{Answer, MAX_ANSWER, mark, path_of};
use crate::error::{Class, Error};
use crate::store::SOCKET;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait until a command has begun. To begin one, the daemon calls several KMS, some more
/// than once.
const TO_BEGIN: Duration = Duration::from_secs(600);

/// Asks the daemon that has a vault mounted for writing.
pub(crate) struct DaemonClient {
    directory: File,
    shown: PathBuf,
    /// One more user whose answers count, besides root and this user.
    believed: Option<u32>,
}

/// The outcome of a request.
pub(crate) enum Asked {
    /// An answer.
    Answered(Answer),
    /// No daemon answers.
    Gone,
}

impl DaemonClient {
    /// Connects to the daemon that listens in the directory of `vault`; `None` when there is none.
    ///
    /// # Errors
    /// When this user may not ask, or the listener is not trusted.
    pub(crate) fn of(vault: &Path) -> Result<Option<Self>, Error> {
        Self::believing(vault, |directory| Some(directory.metadata().ok()?.uid()))
    }

    /// Like [`of`](Self::of), for the vault that a mount names as its own; `user` mounted it.
    ///
    /// # Errors
    /// As for [`of`](Self::of).
    pub(crate) fn of_mount(vault: &Path, user: Option<u32>) -> Result<Option<Self>, Error> {
        Self::believing(vault, |_| user)
    }

    fn believing(
        vault: &Path,
        believed: impl FnOnce(&File) -> Option<u32>,
    ) -> Result<Option<Self>, Error> {
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_PATH | nix::libc::O_DIRECTORY)
            .open(vault);
        let Ok(directory) = directory else {
            return Ok(None);
        };
        let client = Self {
            believed: believed(&directory),
            directory,
            shown: vault.to_owned(),
        };
        Ok(client.connect()?.map(|_| client))
    }

    /// Asks for the status of the mount.
    ///
    /// # Errors
    /// When there is no answer.
    pub(crate) fn status(&self) -> Result<Asked, Error> {
        self.ask("status", PATIENCE)
    }

    /// Asks for the key-management history.
    ///
    /// # Errors
    /// When there is no answer.
    pub(crate) fn audit(&self) -> Result<Asked, Error> {
        self.ask("audit", PATIENCE)
    }

    /// Asks the daemon to begin a command.
    ///
    /// # Errors
    /// When there is no answer.
    pub(crate) fn command(&self, command: &str) -> Result<Asked, Error> {
        self.ask(&format!("control {command}"), TO_BEGIN)
    }

    /// Whether the daemon serves the mount with this device number; `None` when it does not answer
    /// within `patience`.
    pub(crate) fn serves(&self, device: (u32, u32), patience: Duration) -> Option<bool> {
        match self.ask("status", patience) {
            Ok(Asked::Answered(Answer::Status(status))) => {
                let own = status["device"].as_str()?;
                Some(own == format!("{}:{}", device.0, device.1))
            }
            _ => None,
        }
    }

    /// Registers for the end of the mount, from now on; `None` when the daemon cannot announce it.
    pub(crate) fn farewell(&self) -> Option<Farewell> {
        let stream = self.connect().ok()??;
        match self.ask_over(&stream, "end", PATIENCE) {
            Ok(Asked::Answered(Answer::Begun)) => Some(Farewell(stream)),
            _ => None,
        }
    }

    fn ask(&self, question: &str, patience: Duration) -> Result<Asked, Error> {
        match self.connect()? {
            Some(stream) => self.ask_over(&stream, question, patience),
            None => Ok(Asked::Gone),
        }
    }

    fn ask_over(
        &self,
        mut stream: &UnixStream,
        question: &str,
        patience: Duration,
    ) -> Result<Asked, Error> {
        let fail = |error: &io::Error| self.fail(Class::Failed, &error.to_string());
        let directory = self.directory.metadata().map_err(|e| fail(&e))?;
        let line = format!("{} {question}\n", mark(&directory));
        // A daemon that refuses may not read the question.
        let asked = stream.write_all(line.as_bytes());
        match (answer(stream, Instant::now() + patience), asked) {
            (Ok(Some(answer)), _) => Ok(Asked::Answered(answer)),
            (Ok(None), Ok(())) => Ok(Asked::Gone),
            (Err(error), Ok(())) if error.kind() == io::ErrorKind::TimedOut => Err(self.fail(
                Class::Failed,
                &format!("no answer within {} s", patience.as_secs()),
            )),
            (Err(error), _) | (Ok(None), Err(error)) => Err(fail(&error)),
        }
    }

    fn connect(&self) -> Result<Option<UnixStream>, Error> {
        match self.try_connect() {
            Ok(Ok(stream)) => Ok(Some(stream)),
            Ok(Err(uid)) => Err(self.fail(
                Class::NotPermitted,
                &format!(
                    "it is that of user {uid}, who is neither root, nor you, nor whose the vault or \
                     its mount is, and is not asked; find out who put it there"
                ),
            )),
            Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
                Errno::ENOENT | Errno::ECONNREFUSED => Ok(None),
                Errno::EACCES => Err(self.fail(
                    Class::NotPermitted,
                    "only root and the user who mounted the vault may ask",
                )),
                Errno::EAGAIN => Err(self.fail(Class::Failed, "nobody takes the call")),
                _ => Err(self.fail(Class::Failed, &error.to_string())),
            },
        }
    }

    /// Connects; the inner error is the uid of a listener that is not trusted.
    fn try_connect(&self) -> io::Result<Result<UnixStream, u32>> {
        // Opens the socket itself, and follows no link.
        let there = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_PATH | nix::libc::O_NOFOLLOW)
            .open(path_of(&self.directory).join(SOCKET))?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let made = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        let stream = UnixStream::from(made);
        // This timeout covers connect(2), too, which waits while the backlog is full.
        stream.set_write_timeout(Some(PATIENCE))?;
        connect(stream.as_raw_fd(), &UnixAddr::new(&path_of(&there))?)?;
        let uid = getsockopt(&stream, PeerCredentials)?.uid();
        let own = nix::unistd::geteuid().as_raw();
        match [Some(0), Some(own), self.believed].contains(&Some(uid)) {
            true => Ok(Ok(stream)),
            false => Ok(Err(uid)),
        }
    }

    fn fail(&self, class: Class, why: &str) -> Error {
        let shown = self.shown.join(SOCKET);
        Error::new(class, format!("{}: {why}", shown.display()))
    }
}

/// A registration for the end of a mount.
pub(crate) struct Farewell(UnixStream);

impl Farewell {
    /// Waits for the end of the mount. Returns the vault's last commit, or `None` when the mount
    /// does not end in order, or not within `patience`.
    pub(crate) fn await_end(self, patience: Duration) -> Option<u64> {
        match answer(&self.0, Instant::now() + patience) {
            Ok(Some(Answer::Ended { commit })) => Some(commit),
            _ => None,
        }
    }
}

/// Reads one line of JSON; `None` when the other side closes without one.
fn answer(mut stream: &UnixStream, until: Instant) -> io::Result<Option<Answer>> {
    let mut line = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let count = match stream.read(&mut piece) {
            Ok(0) => return Ok(None),
            Ok(count) => count,
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => continue,
                io::ErrorKind::ConnectionReset => return Ok(None),
                _ => return Err(error),
            },
        };
        let end = piece[..count].iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(&piece[..end.unwrap_or(count)]);
        if end.is_some() {
            return Ok(Some(serde_json::from_slice(&line)?));
        }
        if line.len() > MAX_ANSWER {
            return Err(io::Error::other("the answer is too long"));
        }
    }
}
