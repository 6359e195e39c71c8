//! Threads that do something now and then, for as long as a mount is there: keeping the host's anchor
//! of the vault, and looking at a vault that others may change.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::crypto::memory;
use crate::sync::{Condvar, Mutex, Rank};

struct Shared {
    stop: Mutex<bool>,
    wake: Condvar,
}

/// See the module. Ends when dropped.
pub(super) struct Routine {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Routine {
    /// Has `deed` done every `pause` on a thread of this name.
    pub(super) fn start(
        name: &str,
        pause: Duration,
        mut deed: impl FnMut() + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            stop: Mutex::new(Rank::Routine, false),
            wake: Condvar::new(),
        });
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                memory::keep_stack_in();
                while own.sleep(pause) {
                    deed();
                }
            })?;
        Ok(Self {
            shared,
            thread: Mutex::new(Rank::MountThread, Some(thread)),
        })
    }

    /// Ends the thread, once what it is about is done.
    pub(super) fn stop(&self) {
        *self.shared.stop.lock() = true;
        self.shared.wake.notify_all();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread.filter(|t| t.thread().id() != std::thread::current().id())
            && thread.join().is_err()
        {
            tracing::error!("a thread of the mount has panicked");
        }
    }
}

impl Shared {
    /// False when it is the end.
    fn sleep(&self, pause: Duration) -> bool {
        let stop = self.stop.lock();
        !*self.wake.wait_timeout_while(stop, pause, |stop| !*stop)
    }
}

impl Drop for Routine {
    fn drop(&mut self) {
        self.stop();
    }
}
