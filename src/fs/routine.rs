//! Threads with a periodic task for the life of a mount: updating the vault's anchor, and looking
//! at a vault that others may change.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::crypto::memory;
use crate::sync::{Condvar, Mutex, Rank};

struct Shared {
    stop: Mutex<bool>,
    wake: Condvar,
}

/// A thread with a periodic task. It ends when this is dropped.
pub(super) struct Routine {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Routine {
    /// Runs `deed` every `pause` on a thread of this name.
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

    /// Ends the thread after its present work.
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
    /// False if the thread must end.
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
