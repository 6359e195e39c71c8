//! Signals. They are blocked before any thread starts, and a thread of their own waits for them, so
//! that none ever interrupts a system call. That thread obeys a second request to end at once,
//! whatever the rest of the process waits for.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock, Weak};

use nix::sys::signal::{SigSet, Signal};

use crate::error::{Class, Error};

use super::mount::Mount;

/// An event that the main thread waits for.
pub(crate) enum Event {
    /// A signal asks the process to end.
    End(Signal),
    /// The session with the kernel has ended.
    SessionEnded(Result<(), String>),
}

/// The signals that the daemon handles.
pub(crate) fn handled() -> SigSet {
    [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGHUP,
    ]
    .into_iter()
    .collect()
}

/// Blocks the handled signals in this thread and its future threads, and also signals that mean
/// nothing here but would end the process.
pub(crate) fn block() -> Result<(), Error> {
    let mut blocked = handled();
    for meaningless in [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGALRM] {
        blocked.add(meaningless);
    }
    blocked
        .thread_block()
        .map_err(|e| Error::new(Class::System, format!("cannot block signals: {e}")))
}

/// For commands that stop in order: the flag becomes true with the first of these signals. The
/// second ends the process at once. Callers call this before they start other threads.
pub(crate) fn interruptions() -> Result<Arc<AtomicBool>, Error> {
    block()?;
    let stop = Arc::new(AtomicBool::new(false));
    let mine = Arc::clone(&stop);
    let watch = move || {
        while handled().wait().is_ok() {
            if mine.swap(true, Ordering::Relaxed) {
                std::process::exit(1);
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(watch)
        .map_err(|e| Error::new(Class::System, format!("cannot start a thread: {e}")))?;
    Ok(stop)
}

/// A function for operations that ask again and again whether to go on: until `stop` is set.
pub(crate) fn go_on(stop: &AtomicBool) -> impl Fn() -> ControlFlow<()> {
    || match stop.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

/// The thread that takes signals, by what it must know of the daemon's state.
#[derive(Default)]
pub(crate) struct SignalThread {
    serving: AtomicBool,
    ending: AtomicUsize,
    mount: OnceLock<Weak<Mount>>,
}

impl SignalThread {
    /// Starts the thread. `foreground`: a hang-up means that the terminal is gone; otherwise it
    /// asks to reopen the log.
    pub(crate) fn start(foreground: bool, events: Sender<Event>) -> Result<Arc<Self>, Error> {
        let known = Arc::new(Self::default());
        let own = Arc::clone(&known);
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || own.run(foreground, &events))
            .map_err(|e| Error::new(Class::System, format!("cannot start a thread: {e}")))?;
        Ok(known)
    }

    /// From now on, there is a mount to remove when the process has to end.
    pub(crate) fn mounted(&self, mount: &Arc<Mount>) {
        let _ = self.mount.set(Arc::downgrade(mount));
    }

    /// From now on, the main thread handles events.
    pub(crate) fn serving(&self) {
        self.serving.store(true, Ordering::SeqCst);
    }

    fn run(&self, foreground: bool, events: &Sender<Event>) {
        loop {
            match handled().wait() {
                Ok(Signal::SIGHUP) if !foreground => super::log::reopen(),
                Ok(signal) => {
                    let first = self.ending.fetch_add(1, Ordering::SeqCst) == 0;
                    if !(first && self.serving.load(Ordering::SeqCst)) {
                        self.end_at_once(signal);
                    }
                    if events.send(Event::End(signal)).is_err() {
                        self.end_at_once(signal);
                    }
                }
                Err(_) => {}
            }
        }
    }

    fn end_at_once(&self, signal: Signal) -> ! {
        tracing::warn!("{signal}: ending at once");
        if let Some(mount) = self.mount.get().and_then(Weak::upgrade) {
            mount.detach_at_once();
        }
        std::process::exit(1)
    }
}
