//! The fork into the background, and the pipe over which the daemon reports its start. The calling
//! process waits for a limited time. It never guesses success, and never leaves a daemon behind
//! that cannot report.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};

use crate::error::{Class, Error};
use crate::os::asking::answer_within;
use crate::os::{mountinfo, sys};

use super::point::Point;

/// The state of a mount at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// It serves requests.
    Served,
    /// It serves requests once the vault is counted.
    Counting,
}

/// The side of the fork.
pub(crate) enum Side {
    /// The calling process, which waits for the daemon.
    Caller(Child),
    /// The daemon.
    Daemon(Reporter),
}

/// Forks. Signals must be blocked already, so that the daemon misses none.
pub(crate) fn fork() -> Result<Side, Error> {
    let fail = |e: io::Error| Error::new(Class::System, format!("cannot start the daemon: {e}"));
    let (read, write) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| fail(e.into()))?;
    match sys::fork().map_err(fail)? {
        ForkResult::Parent { child } => Ok(Side::Caller(Child {
            pid: child,
            report: read,
        })),
        ForkResult::Child => Ok(Side::Daemon(Reporter { pipe: Some(write) })),
    }
}

/// Leaves the caller's session, directory and terminal. This comes before the report to the caller:
/// once it has the report, the caller ends and its terminal may close.
pub(crate) fn leave_session() {
    let _ = nix::unistd::setsid();
    let _ = std::env::set_current_dir("/");
}

/// The daemon's end of the pipe. If the daemon drops it without a report, the caller knows that the
/// daemon died.
pub(crate) struct Reporter {
    pipe: Option<OwnedFd>,
}

impl Reporter {
    /// Reports that the mount exists, and whether it is served already.
    pub(crate) fn ready(&mut self, ready: Ready) {
        self.send(match ready {
            Ready::Served => b"+",
            Ready::Counting => b"*",
        });
    }

    /// Reports why the start failed; `false` when a report was sent before.
    pub(crate) fn failed(&mut self, error: &Error) -> bool {
        let mut report = vec![b'-', error.class.as_byte()];
        report.extend(error.message.bytes().take(3000));
        self.send(&report)
    }

    /// Sends one write of less than PIPE_BUF bytes, so that the caller reads all of it or nothing.
    fn send(&mut self, report: &[u8]) -> bool {
        let Some(pipe) = self.pipe.take() else {
            return false;
        };
        // The caller may be gone; the mount stays.
        let _ = nix::unistd::write(&pipe, report);
        true
    }
}

/// The caller's view of the daemon.
pub(crate) struct Child {
    pid: Pid,
    report: OwnedFd,
}

enum Heard {
    Report(Vec<u8>),
    Interrupted,
    Nothing,
}

impl Child {
    /// Waits until the daemon has reported and, if the mount point is known, until its mount
    /// answers.
    ///
    /// # Errors
    /// The daemon's own error, or one for a daemon that died or stayed silent. Then neither daemon
    /// nor mount is left.
    pub(crate) fn wait_until_ready(
        self,
        point: Option<&Path>,
        patience: Duration,
    ) -> Result<Ready, Error> {
        let heard = self.listen(patience)?;
        let error = match heard {
            Heard::Report(report) => match report.as_slice() {
                [b'+', ..] => match point.map_or(Ok(()), answers) {
                    Ok(()) => return Ok(Ready::Served),
                    Err(e) => short_of_memory(e),
                },
                [b'*', ..] => return Ok(Ready::Counting),
                [b'-', class, message @ ..] => {
                    // The daemon has reported and exits by itself.
                    let _ = self.wait_for_exit(Duration::from_secs(5));
                    return Err(Error::new(
                        Class::from_byte(*class).unwrap_or(Class::Failed),
                        String::from_utf8_lossy(message),
                    ));
                }
                _ => short_of_memory(self.died()),
            },
            Heard::Interrupted => Error::new(Class::Interrupted, "interrupted; nothing is mounted"),
            Heard::Nothing => Error::new(
                Class::Failed,
                format!(
                    "the daemon did not get ready within {} s; it was stopped, and nothing is mounted",
                    patience.as_secs()
                ),
            ),
        };
        self.stop();
        Err(match point.map_or(Ok(()), take_dead_mount_away) {
            Ok(()) => error,
            Err(left) => Error::new(error.class, format!("{error}; {left}")),
        })
    }

    fn listen(&self, patience: Duration) -> Result<Heard, Error> {
        let fail =
            |e: nix::Error| Error::new(Class::System, format!("cannot wait for the daemon: {e}"));
        let signals = SignalFd::with_flags(
            &super::signals::handled(),
            SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
        )
        .map_err(fail)?;
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Heard::Nothing);
            }
            let mut polled = [
                PollFd::new(self.report.as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            let timeout = PollTimeout::try_from(left.min(Duration::from_secs(1)))
                .unwrap_or(PollTimeout::from(1000u16));
            match nix::poll::poll(&mut polled, timeout) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(e) => return Err(fail(e)),
            }
            let [report, signal] = polled.map(|p| p.revents().is_some_and(|r| !r.is_empty()));
            if report {
                let mut buffer = vec![0; 4096];
                let length = nix::unistd::read(&self.report, &mut buffer).unwrap_or(0);
                buffer.truncate(length);
                return Ok(Heard::Report(buffer));
            }
            if signal && signals.read_signal().is_ok_and(|s| s.is_some()) {
                return Ok(Heard::Interrupted);
            }
        }
    }

    /// Ends the daemon: first with SIGTERM, so that it unmounts, then with SIGKILL.
    fn stop(&self) {
        let _ = kill(self.pid, Signal::SIGTERM);
        if self.wait_for_exit(Duration::from_secs(3)).is_none() {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = self.wait_for_exit(Duration::from_secs(3));
        }
    }

    fn wait_for_exit(&self, patience: Duration) -> Option<WaitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(WaitStatus::StillAlive) | Err(_) => return None,
                Ok(status) => return Some(status),
            }
        }
    }

    fn died(&self) -> Error {
        let how = match self.wait_for_exit(Duration::from_secs(3)) {
            Some(WaitStatus::Exited(_, code)) => format!("exited with code {code}"),
            Some(WaitStatus::Signaled(_, signal, _)) => format!("was killed by {signal}"),
            _ => "closed its pipe".to_owned(),
        };
        Error::new(
            Class::Failed,
            format!("the daemon {how} before it was ready; run it with -f to see its log"),
        )
    }
}

/// Removes the mount of a daemon that has died, if it is on `point`.
fn take_dead_mount_away(point: &Path) -> Result<(), Error> {
    match Point::open(point) {
        Ok(point) if point.is_dead() => point.detach_dead(),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Names the limit on memory, if there is one, in the error of a daemon that ended by itself: an
/// allocation that fails ends the process at once.
fn short_of_memory(error: Error) -> Error {
    match getrlimit(Resource::RLIMIT_AS) {
        Ok((limit, _)) if limit != RLIM_INFINITY => Error::new(
            error.class,
            format!(
                "{error}; it may have no more than {} MiB of memory, which may be too little: raise the \
                 limit (`ulimit -v`, LimitAS= of a systemd unit)",
                limit >> 20
            ),
        ),
        Ok(_) | Err(_) => error,
    }
}

/// The time that a mount has for its first answer. On a busy machine, while it continues a
/// rotation, that has taken more than ten seconds.
const TO_ANSWER: Duration = Duration::from_secs(30);

/// Asks the mount on `point` for its root, as any program would.
///
/// # Errors
/// When the mount answers with an error, or not in time.
pub(crate) fn answers(point: &Path) -> Result<(), Error> {
    let path = point.to_owned();
    let fail = |why: String| {
        Error::new(
            Class::Failed,
            format!("the mount on {} does not answer: {why}", point.display()),
        )
    };
    let ask = move || {
        mountinfo::mount_at(&path)?
            .filter(mountinfo::Mount::is_secretfs)
            .ok_or_else(|| io::Error::other("it is not a mount of secretfs"))?;
        std::fs::metadata(&path).map(drop)
    };
    match answer_within(TO_ANSWER, ask) {
        Ok(Some(Ok(()))) => Ok(()),
        Ok(Some(Err(e))) | Err(e) => Err(fail(e.to_string())),
        Ok(None) => Err(fail(format!("no answer within {} s", TO_ANSWER.as_secs()))),
    }
}
