//! Serves requests until the mount ends, and ends it on request. It decides the kind of end: after
//! an orderly end, all written data is published; after an abort, only the data that its writer
//! flushed.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::mount::{Mount, Unmounted};
use super::signals::Event;
use crate::config::Settings;
use crate::control::Socket;
use crate::error::{Class, Error};
use crate::fs::{self, Ending, FrontDoor, Serving};

/// Performs the handshake with the kernel and starts the thread that serves. `is_own`: this process
/// mounted.
///
/// # Errors
/// When the kernel refuses the handshake.
pub(crate) fn start(
    door: &Arc<FrontDoor>,
    device: OwnedFd,
    settings: &Settings,
    is_own: bool,
    events: Sender<Event>,
) -> Result<(), Error> {
    let serving = Serving {
        threads: settings.threads,
        patience: settings.busy_poll,
        idmap: settings.idmap,
        is_own,
    };
    let on_end = move |ended| {
        // The main thread may have ended already.
        let _ = events.send(Event::SessionEnded(ended));
    };
    fs::start_session(door, device, serving, on_end).map_err(|e| {
        Error::new(
            Class::System,
            format!("the kernel and secretfs do not agree on FUSE: {e}"),
        )
    })
}

const ABORTED: &str = "the connection to the kernel was aborted";

/// Tells systemd that the end has begun, and why, if it was not requested. This comes before
/// publication, which may take long.
fn tell_systemd_why(ended: &Result<(), String>, ending: Ending) {
    let why = match (ended, ending) {
        (Err(e), _) => Some(format!("the session with the kernel broke: {e}")),
        (Ok(()), Ending::Aborted) => Some(ABORTED.to_owned()),
        // An earlier status stays.
        (Ok(()), Ending::Orderly | Ending::CutOff) => None,
    };
    let mut states = vec![sd_notify::NotifyState::Stopping];
    // Make it one line, whatever the kernel's text is.
    let why = why.map(|why| why.replace('\n', " "));
    if let Some(why) = &why {
        tracing::error!("{why}: ending; what was not flushed is lost");
        states.push(sd_notify::NotifyState::Status(why));
    }
    let _ = sd_notify::notify(&states);
}

/// The state that the end of a mount needs.
pub(crate) struct Mounted {
    /// The socket for questions, if there is one. It is removed before the vault is released.
    pub(crate) socket: Option<Socket>,
    pub(crate) door: Arc<FrontDoor>,
    /// `None` when the mount belongs to the process that passed the descriptor.
    pub(crate) mount: Option<Arc<Mount>>,
    pub(crate) events: Receiver<Event>,
    pub(crate) drain_timeout: Duration,
}

impl Mounted {
    /// Serves until the mount has ended, then publishes and closes.
    ///
    /// # Errors
    /// When the mount did not end in order.
    pub(crate) fn until_the_end(mut self) -> Result<(), Error> {
        let mut cut_off = false;
        let ended = match self.events.recv() {
            Ok(Event::SessionEnded(ended)) => ended,
            Ok(Event::End(signal)) => {
                tracing::info!("{signal}: ending");
                self.door.vault().stop_counting();
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
                self.take_away();
                self.drain(&mut cut_off)
            }
            Err(_) => Err("internal error: nobody is left to tell of the end".to_owned()),
        };
        let ending = match self.kind_of_end(&ended) {
            Ending::Orderly if cut_off => Ending::CutOff,
            ending => ending,
        };
        tell_systemd_why(&ended, ending);
        let farewells = self.socket.take().map(Socket::close);
        let finished = self.door.finish(ending).map_err(Error::from);
        if let (Ok(()), Some(farewells)) = (&finished, farewells) {
            farewells.send(self.door.vault().state().commit);
        }
        if let Err(e) = &finished {
            tracing::error!("the vault was not closed in order: {e}");
        }
        tracing::info!("ended");
        match (ended, ending) {
            (Err(e), _) => Err(Error::new(
                Class::Failed,
                format!("the session with the kernel broke: {e}"),
            )),
            (Ok(()), Ending::Aborted) => Err(Error::new(
                Class::Failed,
                format!("{ABORTED}; what was not flushed is lost, the mount is removed"),
            )),
            (Ok(()), Ending::Orderly | Ending::CutOff) => finished,
        }
    }

    /// Takes the mount out of the tree, so that no process finds it. Open files are still served.
    fn take_away(&self) {
        // The clone that touches go through would keep the mount alive.
        self.door.fs().touches().end("the mount is ending");
        let Some(mount) = &self.mount else { return };
        let busy = match mount.unmount() {
            Ok(Unmounted::Done | Unmounted::NotOurs) => return,
            Ok(Unmounted::Busy) => {
                tracing::info!("the mount is in use: detaching it");
                Ok(())
            }
            Err(e) => Err(e),
        };
        if let Err(e) = busy.and_then(|()| mount.detach().map(drop)) {
            tracing::error!("{e}");
        }
    }

    /// Serves until all files are closed, but no longer than the drain timeout: other mount
    /// namespaces may hold copies of the mount unknown to this process. Sets `cut_off` if the
    /// timeout ended it.
    fn drain(&self, cut_off: &mut bool) -> Result<(), String> {
        let deadline = Instant::now() + self.drain_timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self
                .events
                .recv_timeout(left.min(Duration::from_millis(50)))
            {
                Ok(Event::SessionEnded(ended)) => return ended,
                Ok(Event::End(_)) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err("internal error: nobody is left to tell of the end".to_owned());
                }
            }
            // Only the process that passed the descriptor can unmount; an idle mount is the most to
            // wait for.
            if self.mount.is_none() && self.door.open_files() == 0 {
                return Ok(());
            }
            if left.is_zero() {
                tracing::warn!(
                    open_files = self.door.open_files(),
                    "drain-timeout is over: open files are cut off"
                );
                *cut_off = true;
                return Ok(());
            }
        }
    }

    /// An unmount first removes the mount from the tree, then ends the session. If the session ends
    /// while its mount remains, it was aborted, and the dead mount must go.
    fn kind_of_end(&self, ended: &Result<(), String>) -> Ending {
        let Some(mount) = &self.mount else {
            return if ended.is_ok() {
                Ending::Orderly
            } else {
                Ending::Aborted
            };
        };
        // `umount -f` aborts first and unmounts right after.
        let deadline = Instant::now() + Duration::from_secs(1);
        while mount.is_there() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        if !mount.is_there() && ended.is_ok() {
            return Ending::Orderly;
        }
        if let Err(e) = mount.detach() {
            tracing::error!("{e}");
        }
        Ending::Aborted
    }
}
