//! The fork into the background, and the pipe over which the daemon tells how its start went. The
//! process that was called waits with bounded patience; it never reports success on its own guess,
//! and a daemon that cannot report is not left behind.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};

use crate::error::{Class, Error};
use crate::os::{mountinfo, sys};

/// How a mount is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// It answers.
    Served,
    /// It will, once the vault was counted.
    Counting,
}

/// Which side of the fork this is.
pub(crate) enum Side {
    /// The process that was called, which waits for the daemon.
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

/// Leaves the caller's session, directory and terminal. Before the caller is told, so that it
/// cannot end, and its terminal close, while the daemon still belongs to it.
pub(crate) fn leave_session() {
    let _ = nix::unistd::setsid();
    let _ = std::env::set_current_dir("/");
}

/// The daemon's end of the pipe. Dropping it without a report is itself one: it died.
pub(crate) struct Reporter {
    pipe: Option<OwnedFd>,
}

impl Reporter {
    /// Tells that the mount is there, and whether it is served already.
    pub(crate) fn ready(&mut self, ready: Ready) {
        self.send(match ready {
            Ready::Served => b"+",
            Ready::Counting => b"*",
        });
    }

    /// Tells why the start failed; `false` when a report was already sent.
    pub(crate) fn failed(&mut self, error: &Error) -> bool {
        let mut report = vec![b'-', error.class.as_byte()];
        report.extend(error.message.bytes().take(3000));
        self.send(&report)
    }

    /// One write of less than PIPE_BUF bytes, so that the caller reads all of it or nothing.
    fn send(&mut self, report: &[u8]) -> bool {
        let Some(pipe) = self.pipe.take() else {
            return false;
        };
        // A caller that is gone cannot be told anything; the mount is there all the same.
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
    /// Waits until the daemon has reported and, if there is a path to ask at, until its mount
    /// answers.
    ///
    /// # Errors
    /// The daemon's own, or that it died or stayed silent. Then it is gone, and so is its mount.
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
                    Err(e) => e,
                },
                [b'*', ..] => return Ok(Ready::Counting),
                [b'-', class, message @ ..] => {
                    // It has reported and is about to exit by itself.
                    let _ = self.wait_for_exit(Duration::from_secs(5));
                    return Err(Error::new(
                        Class::from_byte(*class).unwrap_or(Class::Failed),
                        String::from_utf8_lossy(message),
                    ));
                }
                _ => self.died(),
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
        Err(error)
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

    /// Ends the daemon: politely, so that it takes its mount along, then for good.
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

/// How long a mount may take to answer for the first time: on a busy machine, beside a rotation that it
/// goes on with, that has taken more than ten seconds.
const TO_ANSWER: Duration = Duration::from_secs(30);

/// Asks the mount on `point` for its root, as any program would.
///
/// # Errors
/// When it does not answer, or not in time.
pub(crate) fn answers(point: &Path) -> Result<(), Error> {
    let (tell, told) = std::sync::mpsc::channel();
    let path = point.to_owned();
    let fail = |why: String| {
        Error::new(
            Class::Failed,
            format!("the mount on {} does not answer: {why}", point.display()),
        )
    };
    // A stat that hangs cannot be called back; the thread ends with the process.
    std::thread::Builder::new()
        .name("ask".to_owned())
        .spawn(move || {
            let mounted = mountinfo::mount_at(&path)
                .and_then(|m| {
                    m.filter(mountinfo::Mount::is_secretfs)
                        .ok_or_else(|| io::Error::other("it is not a mount of secretfs"))
                })
                .and_then(|_| std::fs::metadata(&path).map(drop));
            let _ = tell.send(mounted);
        })
        .map_err(|e| fail(e.to_string()))?;
    match told.recv_timeout(TO_ANSWER) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => Err(fail(e.to_string())),
        Err(_) => Err(fail(format!("no answer within {} s", TO_ANSWER.as_secs()))),
    }
}
