//! The mount helper: a process that is forked before hardening, keeps its right to run the setuid
//! fusermount3, and holds no key. It mounts and unmounts one mount point when the daemon asks, and
//! removes a dead mount when the daemon dies. It must never see the vault, and never touch a mount
//! other than the one it made.
//!
//! Each message is one packet. Requests: `M`, `U` (unmount), `D` (detach). Answers: `+` (with the
//! descriptor, for `M`), or `-`, the class as one byte, and a line for people.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};
use nix::unistd::ForkResult;

use super::error::{Class, Error};
use super::mount::{MountOptions, fusermount_options};
use super::sys::{self, MountId};

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
                // Above all the pipe on which the daemon reports: whoever waits for it must see
                // its end when the daemon dies.
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
        self.ask(b"M")?
            .ok_or_else(|| Error::new(Class::Internal, "the mount helper passed no descriptor"))
    }

    /// Unmounts, or detaches if `lazy`.
    pub(crate) fn unmount(&self, lazy: bool) -> Result<(), Error> {
        self.ask(if lazy { b"D" } else { b"U" }).map(drop)
    }

    fn ask(&self, request: &[u8]) -> Result<Option<OwnedFd>, Error> {
        let gone =
            |why: String| Error::new(Class::Failed, format!("the mount helper is gone{why}"));
        nix::sys::socket::send(self.socket.as_raw_fd(), request, MsgFlags::MSG_NOSIGNAL)
            .map_err(|e| gone(format!(": {e}")))?;
        let mut buffer = [0; 4096];
        let (length, passed) =
            sys::receive_with_fd(&self.socket, &mut buffer).map_err(|e| gone(format!(": {e}")))?;
        match buffer.get(..length) {
            Some([b'+', ..]) => Ok(passed),
            Some([b'-', class, message @ ..]) => Err(Error::new(
                Class::from_byte(*class).unwrap_or(Class::Failed),
                String::from_utf8_lossy(message),
            )),
            _ => Err(gone(String::new())),
        }
    }
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
        // A terminal's Ctrl-C is for the daemon, and whoever waits for our output must not wait
        // for the helper.
        let _ = nix::unistd::setsid();
        super::detach::stdio_to_null();
        let _ = std::env::set_current_dir("/");
        let mut request = [0; 16];
        while let Ok((1, _)) = sys::receive_with_fd(&self.socket, &mut request) {
            let answer = self.serve(request[0]);
            if self.answer(answer).is_err() {
                break;
            }
        }
        // The daemon is gone. If it died, its mount answers nobody any more.
        if let Some(id) = self.mounted
            && sys::mount_id(&self.point).is_ok_and(|now| now == id)
        {
            let _ = self.take_away(true);
        }
        std::process::exit(0)
    }

    fn serve(&mut self, request: u8) -> Result<Option<OwnedFd>, Error> {
        match request {
            b'M' => self.mount().map(Some),
            b'U' => self.take_away(false).map(|()| None),
            b'D' => self.take_away(true).map(|()| None),
            _ => Err(Error::new(
                Class::Internal,
                "the mount helper got an unknown request",
            )),
        }
    }

    fn answer(&self, answer: Result<Option<OwnedFd>, Error>) -> nix::Result<usize> {
        let (text, fd) = match answer {
            Ok(fd) => (vec![b'+'], fd),
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
        // The only descriptor that fusermount3 is to inherit.
        nix::fcntl::fcntl(
            &theirs,
            nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
        )
        .map_err(|e| fail(e.into()))?;
        let child = fusermount()
            .arg("-o")
            .arg(fusermount_options(&self.options))
            .arg("--")
            .arg(&self.point)
            .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| missing(&e))?;
        drop(theirs);
        let received = sys::receive_with_fd(&ours, &mut [0; 16]);
        let output = child.wait_with_output().map_err(fail)?;
        match received {
            Ok((_, Some(device))) => {
                self.mounted = sys::mount_id(&self.point).ok();
                Ok(device)
            }
            _ => Err(refusal(&output.stderr)),
        }
    }

    fn take_away(&mut self, lazy: bool) -> Result<(), Error> {
        unmount_by_fusermount(&self.point, lazy)?;
        self.mounted = None;
        Ok(())
    }
}

/// Unmounts through fusermount3.
///
/// # Errors
/// When it refuses; the class is `Busy` when something is open there.
pub(crate) fn unmount_by_fusermount(point: &Path, lazy: bool) -> Result<(), Error> {
    let mut command = fusermount();
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command
        .arg("--")
        .arg(point)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| missing(&e))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(refusal(&output.stderr))
    }
}

fn fusermount() -> Command {
    let mut command = Command::new("fusermount3");
    // Its messages are read below.
    command.env("LC_ALL", "C");
    command
}

fn missing(error: &io::Error) -> Error {
    Error::new(
        Class::System,
        format!(
            "cannot run fusermount3 ({error}): install it (`apt install fuse3`); ordinary users mount through it"
        ),
    )
}

/// What fusermount3 said, and what to do.
fn refusal(stderr: &[u8]) -> Error {
    let said = String::from_utf8_lossy(stderr);
    let said = said.trim().trim_start_matches("fusermount3: ");
    let class = if said.contains("busy") {
        Class::Busy
    } else if said.contains("ermi")
        || said.contains("only allowed")
        || said.contains("not owned")
        || said.contains("no write access")
    {
        Class::NotPermitted
    } else {
        Class::Failed
    };
    let next = if said.contains("user_allow_other") {
        "; write that line into /etc/fuse.conf, or leave allow_other out"
    } else if said.contains("/dev/fuse") {
        "; /dev/fuse must exist with mode 0666"
    } else if said.contains("has to be setuid") || said.contains("Operation not permitted") {
        "; fusermount3 must be setuid root"
    } else {
        ""
    };
    let said = if said.is_empty() {
        "it gave no reason"
    } else {
        said
    };
    Error::new(class, format!("fusermount3 refused: {said}{next}"))
}
