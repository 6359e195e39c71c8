//! Touches files through the daemon's own mount, so that the kernel wakes their watchers (see
//! `fs/touch.rs`). It uses a clone of the mount outside of the tree, so that no mount in the tree
//! becomes busy. The clone keeps the file system alive, so it is closed as soon as the tree has no
//! mount of it.
//!
//! The touching thread waits for answers of its own process. When the process is killed, the kernel
//! wakes such a thread only once the connection closes. So the thread must not itself keep the
//! connection open, nor any other descriptor that others wait for: it has its own descriptor table.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;

use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::mount::Mount;
use crate::error::{Class, Error};
use crate::fs::{FileSystem, Touched, Touches};
use crate::os::mountinfo;
use crate::os::sys::{self, MountId};
use crate::vault::Timestamp;

/// The reasons that watchers are not woken, for mounts that this process did not make itself.
const BY_FUSERMOUNT: &str = "fusermount3 has mounted; it takes CAP_SYS_ADMIN to touch files here";
const BY_OTHERS: &str = "somebody else has mounted, and this process does not know where";

/// Starts the threads that touch, if this process may. `status` shows the reason if not.
///
/// # Errors
/// When a thread cannot start.
pub(crate) fn start(
    fs: &Arc<FileSystem>,
    mount: Option<&Arc<Mount>>,
    read_only: bool,
) -> Result<(), Error> {
    let fail = |e: io::Error| Error::new(Class::System, format!("cannot start a thread: {e}"));
    let mount = match mount {
        None => return tell(fs, BY_OTHERS),
        Some(mount) if !mount.is_by_system() => return tell(fs, BY_FUSERMOUNT),
        Some(mount) => mount,
    };
    let (point, id) = (mount.point().to_owned(), mount.id());
    let table = match File::open("/proc/self/mountinfo") {
        Ok(table) => table,
        Err(e) => return tell(fs, &format!("cannot watch /proc/self/mountinfo: {e}")),
    };
    let (report, begun) = mpsc::channel();
    let (touches, at) = (Arc::clone(fs.touches()), point.clone());
    std::thread::Builder::new()
        .name("toucher".to_owned())
        .spawn(move || match Detached::of(&at, id, read_only) {
            Ok(mut detached) => {
                let _ = report.send(Ok(()));
                touches.serve(|touched, token| detached.touch(touched, token));
            }
            Err(e) => drop(report.send(Err(e))),
        })
        .map_err(fail)?;
    match begun.recv() {
        Ok(Ok(())) => {}
        Ok(Err(e)) => return tell(fs, &format!("no mount to touch them in: {e}")),
        Err(e) => return tell(fs, &e.to_string()),
    }
    fs.wake_from_now_on().map_err(fail)?;
    let touches = Arc::clone(fs.touches());
    std::thread::Builder::new()
        .name("mount-table".to_owned())
        .spawn(move || watch_table(&table, &point, id, &touches))
        .map_err(fail)?;
    Ok(())
}

#[allow(
    clippy::unnecessary_wraps,
    reason = "it is the end of a start that succeeds"
)]
fn tell(fs: &FileSystem, why: &str) -> Result<(), Error> {
    tracing::info!("who watches files is not woken when they are published: {why}");
    fs.touches().end(why);
    Ok(())
}

/// Ends the touches once no visible mount of the file system is left.
fn watch_table(table: &File, point: &Path, id: MountId, touches: &Touches) {
    while touches.is_served() {
        if !is_mounted(point, id) {
            return touches.end("the mount has left the mount table");
        }
        // The first poll returns at once if the table has changed since it was opened.
        let mut changed = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
        match nix::poll::poll(&mut changed, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return touches.end(format!("the mount table cannot be watched: {e}")),
        }
    }
}

fn is_mounted(point: &Path, id: MountId) -> bool {
    let is_there = sys::mount_id(point).is_ok_and(|now| now == id);
    // The mount may be covered, or bound elsewhere.
    is_there
        || mountinfo::mounts()
            .unwrap_or_default()
            .iter()
            .any(|mount| mount.device == id.device)
}

/// A clone of our mount outside of the tree.
struct Detached {
    mount: OwnedFd,
    entered: bool,
}

impl Detached {
    /// The thread that uses the clone makes it, and has no other descriptors afterwards.
    fn of(point: &Path, id: MountId, read_only: bool) -> io::Result<Self> {
        sys::part_from_descriptors()?;
        let mount = sys::clone_mount(point)?;
        // Another mount may have been made there since.
        if sys::device_of(&mount)? != id.device {
            return Err(io::Error::other(format!(
                "something else is mounted on {}",
                point.display()
            )));
        }
        if read_only {
            sys::make_superblock_writable(&mount)?;
        }
        sys::make_writable_and_private(&mount)?;
        Ok(Self {
            mount,
            entered: false,
        })
    }

    fn touch(&mut self, touched: &Touched, token: Timestamp) -> io::Result<()> {
        // fchdir(2) sends a request to the file system, which must be served by now.
        if !self.entered {
            nix::unistd::fchdir(&self.mount)?;
            self.entered = true;
        }
        let time = (token.seconds, token.nanoseconds);
        match touched {
            Touched::Node(node) => sys::set_modified(&sys::open_remembered(*node)?, None, time),
            Touched::Name(directory, name) => {
                let name = CString::new(name.as_slice())?;
                sys::set_modified(&sys::open_remembered(*directory)?, Some(&name), time)
            }
        }
    }
}
