//! The mount helper: a process that is forked before hardening, can still run the setuid
//! fusermount3, and holds no key. It mounts and unmounts one mount point when the daemon asks, and
//! removes the dead mount when the daemon dies. It must never see the vault, and never touch a
//! mount other than its own.
//!
//! Each message is one packet. Requests: `M` (mount), `U` (unmount), `D` (detach). Answers: `+`
//! (with the descriptor, for `M`), `0` (its own mount is not found), or `-`, the class as one byte,
//! and a line for people.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};
use nix::unistd::ForkResult;

use crate::error::{Class, Error};
use crate::os::stdio;
use crate::os::sys::{self, MountId};

use super::fusermount;
use super::mount_options::{MountOptions, fusermount_options};
use super::point::{self, Point};
use super::quote::quoted;

/// The daemon's end.
pub(crate) struct Helper {
    socket: OwnedFd,
    point: PathBuf,
}

impl Helper {
    /// Forks the helper for one mount point.
    pub(crate) fn fork(point: &Path, options: &MountOptions) -> Result<Self, Error> {
        let fail =
            |e: io::Error| Error::new(Class::System, format!("cannot start the mount helper: {e}"));
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(|e| fail(e.into()))?;
        match sys::fork().map_err(fail)? {
            ForkResult::Parent { .. } => Ok(Self {
                socket: ours,
                point: point.to_owned(),
            }),
            ForkResult::Child => {
                // Above all, close the pipe on which the daemon reports: the process that reads it
                // must see the end of file when the daemon dies.
                sys::close_inherited(Some(theirs.as_raw_fd()));
                Server {
                    socket: theirs,
                    point: point.to_owned(),
                    options: options.clone(),
                    mounted: None,
                }
                .run()
            }
        }
    }

    /// Mounts and returns the descriptor of /dev/fuse.
    pub(crate) fn mount(&self, point: &Path) -> Result<OwnedFd, Error> {
        debug_assert_eq!(point, self.point);
        match self.ask(b"M")? {
            Answer::Mounted(device) => Ok(device),
            Answer::Done | Answer::NotOurs => Err(Error::new(
                Class::Internal,
                "the mount helper passed no descriptor",
            )),
        }
    }

    /// Unmounts, or detaches if `lazy`; `false` when the helper's mount is not found.
    pub(crate) fn unmount(&self, lazy: bool) -> Result<bool, Error> {
        let answer = self.ask(if lazy { b"D" } else { b"U" })?;
        Ok(!matches!(answer, Answer::NotOurs))
    }

    fn ask(&self, request: &[u8]) -> Result<Answer, Error> {
        let gone =
            |why: String| Error::new(Class::Failed, format!("the mount helper is gone{why}"));
        nix::sys::socket::send(self.socket.as_raw_fd(), request, MsgFlags::MSG_NOSIGNAL)
            .map_err(|e| gone(format!(": {e}")))?;
        let mut buffer = [0; 4096];
        let (length, passed) =
            sys::receive_with_fd(&self.socket, &mut buffer).map_err(|e| gone(format!(": {e}")))?;
        match buffer.get(..length) {
            Some([b'+', ..]) => Ok(passed.map_or(Answer::Done, Answer::Mounted)),
            Some([b'0', ..]) => Ok(Answer::NotOurs),
            Some([b'-', class, message @ ..]) => Err(Error::new(
                Class::from_byte(*class).unwrap_or(Class::Failed),
                String::from_utf8_lossy(message),
            )),
            _ => Err(gone(String::new())),
        }
    }
}

/// The helper's answer when nothing failed.
enum Answer {
    /// With the descriptor of /dev/fuse.
    Mounted(OwnedFd),
    Done,
    /// Nothing is done: the helper's own mount is not found.
    NotOurs,
}

/// The helper's end.
struct Server {
    socket: OwnedFd,
    point: PathBuf,
    options: MountOptions,
    mounted: Option<MountId>,
}

impl Server {
    fn run(mut self) -> ! {
        // A terminal's Ctrl-C goes to the daemon only, and a process that reads our output must not
        // wait for the helper.
        let _ = nix::unistd::setsid();
        stdio::point_at_null();
        let _ = std::env::set_current_dir("/");
        let mut request = [0; 16];
        while let Ok((1, _)) = sys::receive_with_fd(&self.socket, &mut request) {
            let answer = self.serve(request[0]);
            if self.answer(answer).is_err() {
                break;
            }
        }
        // The daemon is gone. If it died, its mount no longer answers.
        let _ = self.take_away(true);
        std::process::exit(0)
    }

    fn serve(&mut self, request: u8) -> Result<Answer, Error> {
        match request {
            b'M' => self.mount().map(Answer::Mounted),
            b'U' => self.take_away(false),
            b'D' => self.take_away(true),
            _ => Err(Error::new(
                Class::Internal,
                "the mount helper got an unknown request",
            )),
        }
    }

    fn answer(&self, answer: Result<Answer, Error>) -> nix::Result<usize> {
        let (text, fd) = match answer {
            Ok(Answer::Mounted(fd)) => (vec![b'+'], Some(fd)),
            Ok(Answer::Done) => (vec![b'+'], None),
            Ok(Answer::NotOurs) => (vec![b'0'], None),
            Err(e) => {
                let mut text = vec![b'-', e.class.as_byte()];
                text.extend(e.message.bytes().take(3000));
                (text, None)
            }
        };
        let fds: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<()>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&text)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
    }

    /// Runs fusermount3, which opens /dev/fuse, mounts, and passes the descriptor back.
    fn mount(&mut self) -> Result<OwnedFd, Error> {
        let fail =
            |e: io::Error| Error::new(Class::System, format!("cannot talk to fusermount3: {e}"));
        let (ours, theirs) = UnixStream::pair().map_err(fail)?;
        // fusermount3 inherits this descriptor only.
        nix::fcntl::fcntl(
            &theirs,
            nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
        )
        .map_err(|e| fail(e.into()))?;
        // After the mount, the path may lead to another mount.
        let directory = Point::open(&self.point).map_err(|e| {
            let shown = quoted(&self.point);
            Error::new(
                Class::Failed,
                format!("cannot use the mount point {shown}: {e}"),
            )
        })?;
        let child = fusermount::command()
            .arg("-o")
            .arg(fusermount_options(&self.options))
            .arg("--")
            .arg(&self.point)
            .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| fusermount::missing(&e))?;
        drop(theirs);
        let received = sys::receive_with_fd(&ours, &mut [0; 16]);
        let output = child.wait_with_output().map_err(fail)?;
        match received {
            Ok((_, Some(device))) => {
                self.mounted = directory.covered_by().ok().flatten().map(|(id, _)| id);
                Ok(device)
            }
            _ => Err(fusermount::refusal(&output.stderr)),
        }
    }

    /// Unmounts the helper's own mount, wherever it is now, and nothing else.
    fn take_away(&mut self, lazy: bool) -> Result<Answer, Error> {
        let found = self
            .mounted
            .and_then(|id| Some((id, point::find(id, &self.point)?)));
        let Some((id, path)) = found else {
            return Ok(Answer::NotOurs);
        };
        if !fusermount::unmount(&path, id, lazy)? {
            return Ok(Answer::NotOurs);
        }
        self.mounted = None;
        Ok(Answer::Done)
    }
}
