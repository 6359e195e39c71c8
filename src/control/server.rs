//! The server of the socket. It treats every peer as hostile: each connection has its own thread, a
//! deadline for the question and one for reading the answer; the number of connections is limited;
//! and none ever blocks a thread that serves the file system.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, UnixAddr, bind, getsockopt, listen,
    shutdown, socket,
};
use nix::sys::stat::{Mode, fchmod};

use super::command::{Commander, Refusal};
use super::controller::Controller;
use super::protocol::{Answer, MAX_QUESTION, mark, path_of};
use super::refusals::Refusals;
use crate::error::Class;
use crate::store::SOCKET;
use crate::sync::{Condvar, Mutex, MutexGuard, Rank, RwLock, RwLockReadGuard};

/// The time that a peer has to ask.
const TO_ASK: Duration = Duration::from_secs(2);
/// The time that a peer has to read the answer.
const TO_TAKE: Duration = Duration::from_secs(5);
/// Most connections that are served at the same time; others wait.
const AT_ONCE: usize = 8;
/// Most connections that wait.
const WAITING: i32 = 64;

/// The socket of a vault that is mounted for writing. Dropping this removes it.
pub(crate) struct Socket {
    shared: Arc<Shared>,
    directory: File,
}

struct Shared {
    listener: UnixListener,
    /// The directory of the socket, as clients name it.
    mark: String,
    /// `None` once the mount ends. Each use holds the lock, so that no use outlasts the controller.
    controller: RwLock<Option<Arc<Controller>>>,
    busy: Mutex<usize>,
    free: Condvar,
    /// Peers that wait for the end of the mount.
    farewells: Mutex<Vec<UnixStream>>,
    /// Refusals of users who may not ask. With `control-uid`, every user can connect.
    refusals: Refusals,
}

/// Peers that wait for the end of a mount.
pub(crate) struct Farewells(Vec<UnixStream>);

impl Farewells {
    /// Tells the peers that the mount has ended.
    pub(crate) fn send(&self, commit: u64) {
        for stream in &self.0 {
            // A peer may have left.
            let _ = send(stream, &Answer::Ended { commit });
        }
    }
}

impl Socket {
    /// Listens, if the vault is mounted for writing. A failure to listen does not prevent the
    /// mount.
    pub(crate) fn open(controller: Arc<Controller>) -> Option<Self> {
        let vault = controller.vault();
        if vault.is_read_only() {
            return None;
        }
        let opened = || {
            let directory = vault.locked_directory().map_err(io::Error::other)?;
            let socket = Self {
                shared: Arc::new(Shared {
                    listener: listen_in(&directory, controller.commanders().also().is_some())?,
                    mark: mark(&directory.metadata()?),
                    controller: RwLock::new(Rank::ControlSocket, Some(Arc::clone(&controller))),
                    busy: Mutex::new(Rank::Connections, 0),
                    free: Condvar::new(),
                    farewells: Mutex::new(Rank::Farewells, Vec::new()),
                    refusals: Refusals::default(),
                }),
                directory,
            };
            let shared = Arc::clone(&socket.shared);
            std::thread::Builder::new()
                .name("socket".to_owned())
                .spawn(move || shared.accept())?;
            Ok(socket)
        };
        opened()
            .inspect_err(|error: &io::Error| {
                tracing::warn!(
                    "no {SOCKET} in the vault's directory: {error}; commands must be given the \
                     mount point"
                );
            })
            .ok()
    }

    /// Stops answering, and returns the peers that wait for the end.
    pub(crate) fn close(self) -> Farewells {
        Farewells(std::mem::take(&mut self.shared.farewells()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // This process still holds the vault, so the name is still its own.
        let path = path_of(&self.directory).join(SOCKET);
        if let Err(error) = fs::symlink_metadata(&path).and_then(|found| remove(&path, &found)) {
            tracing::debug!("cannot remove {SOCKET}: {error}");
        }
        *self.shared.controller.write() = None;
        self.shared.refusals.end(&format!("refused at {SOCKET}"));
        // Wakes the thread that accepts.
        let _ = shutdown(self.shared.listener.as_raw_fd(), Shutdown::Both);
    }
}

fn remove(path: &std::path::Path, found: &Metadata) -> io::Result<()> {
    match found.file_type().is_socket() {
        true => fs::remove_file(path),
        false => Err(io::Error::other("something else has its name")),
    }
}

/// Listens on a socket in `directory`, in place of one that a killed daemon left: no other process
/// listens there while this one holds the writer's lock. `for_more`: users besides root and this
/// user may ask; then every user can connect, and the server checks the uid.
fn listen_in(directory: &File, for_more: bool) -> io::Result<UnixListener> {
    let path = path_of(directory).join(SOCKET);
    match fs::symlink_metadata(&path) {
        Ok(found) => remove(&path, &found)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let flags = SockFlag::SOCK_CLOEXEC;
    let made = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // bind(2) gives the file the socket's mode, so the file never has another.
    fchmod(&made, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(made.as_raw_fd(), &UnixAddr::new(&path)?)?;
    if for_more {
        open_to_all(&path)?;
    }
    listen(&made, Backlog::new(WAITING)?)?;
    Ok(UnixListener::from(made))
}

/// Lets every user connect to the socket at `path` itself; never follows a link.
fn open_to_all(path: &std::path::Path) -> io::Result<()> {
    let there = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_PATH | nix::libc::O_NOFOLLOW)
        .open(path)?;
    let found = there.metadata()?;
    if !found.file_type().is_socket() || found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::other("something else has its name"));
    }
    fs::set_permissions(path_of(&there), fs::Permissions::from_mode(0o666))
}

impl Shared {
    fn farewells(&self) -> MutexGuard<'_, Vec<UnixStream>> {
        self.farewells.lock()
    }

    fn controller(&self) -> RwLockReadGuard<'_, Option<Arc<Controller>>> {
        self.controller.read()
    }

    fn is_over(&self) -> bool {
        self.controller().is_none()
    }

    fn accept(self: Arc<Self>) {
        loop {
            let turn = Turn::take(&self);
            let accepted = self.listener.accept();
            if self.is_over() {
                return;
            }
            let serve = |stream: UnixStream| {
                std::thread::Builder::new()
                    .name("asked".to_owned())
                    .spawn(move || {
                        // A peer that leaves early or dawdles gets no answer.
                        let _ = turn.shared.serve(&stream);
                    })
            };
            if let Err(error) = accepted.and_then(|(stream, _)| serve(stream)) {
                tracing::warn!("cannot serve who asks at {SOCKET}: {error}");
                // Descriptors or memory may be available again in a moment.
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }

    fn serve(&self, stream: &UnixStream) -> io::Result<()> {
        let peer = getsockopt(stream, PeerCredentials)?;
        let (uid, pid) = (peer.uid(), peer.pid());
        let commanders = match &*self.controller() {
            Some(controller) => *controller.commanders(),
            None => return Ok(()),
        };
        let Some(right) = commanders.right(uid) else {
            self.refusals.log(uid, || {
                format!("refused at {SOCKET}: user {uid}, process {pid}")
            });
            let why = format!("user {uid} may not ask; {commanders}");
            let refusal = Refusal::new(Class::NotPermitted, nix::libc::EPERM, why);
            return send(stream, &refusal.into());
        };
        match question(stream, Instant::now() + TO_ASK)? {
            Some(question) => self.answer(&question, Commander { uid, right }, stream),
            None => send(stream, &no_question("this is no question").into()),
        }
    }

    fn answer(&self, question: &str, by: Commander, stream: &UnixStream) -> io::Result<()> {
        let (mark, question) = question.split_once(' ').unwrap_or((question, ""));
        if mark != self.mark {
            let why = "this is the socket of a vault in another directory";
            let refusal = Refusal::new(Class::Failed, nix::libc::ESTALE, why);
            return send(stream, &refusal.into());
        }
        let guard = self.controller();
        let Some(controller) = &*guard else {
            return Ok(());
        };
        let answer = match question.split_once(' ') {
            // The thread that calls the KMS sends the answer.
            Some(("control", command)) => {
                let stream = stream.try_clone()?;
                controller.command(
                    command.as_bytes(),
                    by,
                    Box::new(move |begun| {
                        // The peer may have left; the command runs anyway.
                        let _ = send(&stream, &begun.into());
                    }),
                );
                return Ok(());
            }
            None if question == "end" => {
                let mut farewells = self.farewells();
                farewells.retain(|waiting| !has_left(waiting));
                if farewells.len() < AT_ONCE {
                    farewells.push(stream.try_clone()?);
                    Ok(Answer::Begun)
                } else {
                    let why = "too many wait for the end of the mount";
                    Err(Refusal::new(Class::Busy, nix::libc::EBUSY, why))
                }
            }
            _ => look(controller, question),
        };
        // The peer may read the answer slowly.
        drop(guard);
        send(stream, &answer.unwrap_or_else(Answer::from))
    }
}

/// Whether the peer has closed the connection.
fn has_left(stream: &UnixStream) -> bool {
    let mut polled = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    // A waiting peer sends nothing more, so only its end makes this readable.
    poll(&mut polled, PollTimeout::ZERO) != Ok(0)
}

/// Answers a question that changes no keys.
fn look(controller: &Controller, question: &str) -> Result<Answer, Refusal> {
    // The peer found this socket by the vault's path, and means the vault at that path.
    let unmoved = controller.vault().check_unmoved();
    unmoved.map_err(|error| controller.refuse(&error))?;
    match question {
        "status" => Ok(Answer::Status(controller.status())),
        "audit" => match controller.audit() {
            Ok(events) => Ok(Answer::Audit(events)),
            Err(error) => Err(Refusal::from(&error)),
        },
        _ => Err(no_question(
            "unknown question; ask for status, audit, end or control COMMAND",
        )),
    }
}

fn no_question(why: &str) -> Refusal {
    Refusal::new(Class::Usage, nix::libc::EINVAL, why)
}

/// Reads one line, without its end; `None` if it is too long or no text.
fn question(mut stream: &UnixStream, until: Instant) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let mut piece = [0; 1024];
    loop {
        stream.set_read_timeout(Some(left(until)?))?;
        let count = match stream.read(&mut piece) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        line.extend_from_slice(&piece[..count]);
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            line.truncate(end);
            return Ok(String::from_utf8(line).ok());
        }
        if line.len() > MAX_QUESTION {
            return Ok(None);
        }
    }
}

fn send(mut stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    let until = Instant::now() + TO_TAKE;
    let text = answer.line()?;
    let mut rest = &text[..];
    while !rest.is_empty() {
        stream.set_write_timeout(Some(left(until)?))?;
        match stream.write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The time until `until`; an error when none is left.
fn left(until: Instant) -> io::Result<Duration> {
    match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

/// One of the places for connections that are served at the same time.
struct Turn {
    shared: Arc<Shared>,
}

impl Turn {
    /// Waits for a free place.
    fn take(shared: &Arc<Shared>) -> Self {
        let mut busy = shared.busy.lock();
        while *busy >= AT_ONCE {
            busy = shared.free.wait(busy);
        }
        *busy += 1;
        drop(busy);
        Self {
            shared: Arc::clone(shared),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.shared.busy.lock() -= 1;
        self.shared.free.notify_one();
    }
}
