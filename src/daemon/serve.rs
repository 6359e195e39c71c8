//! Serves requests until the mount ends, and ends it when asked to. Decides what kind of end it
//! was: after an orderly one, everything written is published; after an abort, only what its
//! writer had flushed.

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

/// Speaks the handshake with the kernel and starts the thread that serves. `is_own`: nobody else has
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
        // The main thread may have ended by itself.
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

/// Tells systemd that the end has begun, and why, if nobody has asked for it. Before anything is
/// published, which may take its time.
fn tell_systemd_why(ended: &Result<(), String>, ending: Ending) {
    let why = match (ended, ending) {
        (Err(e), _) => Some(format!("the session with the kernel broke: {e}")),
        (Ok(()), Ending::Aborted) => Some(ABORTED.to_owned()),
        // A status that was told before stays.
        (Ok(()), Ending::Orderly | Ending::CutOff) => None,
    };
    let mut states = vec![sd_notify::NotifyState::Stopping];
    // One line, whatever the kernel said.
    let why = why.map(|why| why.replace('\n', " "));
    if let Some(why) = &why {
        tracing::error!("{why}: ending; what was not flushed is lost");
        states.push(sd_notify::NotifyState::Status(why));
    }
    let _ = sd_notify::notify(&states);
}

/// What the end of a mount needs to know.
pub(crate) struct Mounted {
    /// Where the vault can be asked, if it can. Goes before the vault is let go.
    pub(crate) socket: Option<Socket>,
    pub(crate) door: Arc<FrontDoor>,
    /// `None` when the mount belongs to whoever passed the descriptor.
    pub(crate) mount: Option<Arc<Mount>>,
    pub(crate) events: Receiver<Event>,
    pub(crate) drain_timeout: Duration,
}

impl Mounted {
    /// Serves until the mount has ended, then publishes and closes.
    ///
    /// # Errors
    /// When it ended otherwise than it should.
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

    /// Takes the mount out of the tree, so that nobody finds it any more. What is open is served on.
    fn take_away(&self) {
        // The mount would stay with whoever touches in it.
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

    /// Serves until everything is closed, but not for ever. Other mount namespaces may hold copies
    /// of the mount that nobody tells us of.
    /// Tells whether anything was cut off.
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
            // Whoever passed the descriptor unmounts, if ever; idle is all that can be had.
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

    /// An unmount takes the mount out of the tree first and ends the session after. A session that
    /// ended while its mount is still there was aborted, and the dead mount must go.
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
