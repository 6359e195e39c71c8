//! Logs that are kept open: what was only added at the end of a file is published some seconds later,
//! without any fsync or close, so that others can read it and a crash does not take it.
//!
//! Never what was written over or cut, and never a replacement: half of a new secret would be served
//! as if it were one. What is added to the first content of a new file is stored as well; whoever may
//! read the file is shown its draft until the file is closed, as if it were not.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::crypto::memory;
use crate::store::NodeId;
use crate::sync::{Condvar, Mutex, MutexGuard, Rank};

use super::draft::Draft;
use super::handles::NodeState;

#[derive(Default)]
struct Watched {
    /// When nodes are to be looked at; the first comes first.
    due: BinaryHeap<Reverse<(Instant, NodeId)>>,
    stop: bool,
}

struct Shared {
    watched: Mutex<Watched>,
    wake: Condvar,
}

/// See the module. Its thread sleeps as long as nothing was appended. Ends when dropped.
pub(super) struct Appends {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The last attempt failed, and that is logged.
    is_failing: AtomicBool,
    after: Duration,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock()
    }

    /// Waits for a node to be looked at; `None` at the end.
    fn next(&self) -> Option<NodeId> {
        let mut watched = self.lock();
        loop {
            if watched.stop {
                return None;
            }
            let rest = watched
                .due
                .peek()
                .map(|Reverse((due, _))| due.saturating_duration_since(Instant::now()));
            watched = match rest {
                None => self.wake.wait(watched),
                Some(rest) if rest.is_zero() => {
                    return watched.due.pop().map(|Reverse((_, node))| node);
                }
                Some(rest) => self.wake.wait_timeout(watched, rest),
            };
        }
    }
}

impl Appends {
    /// How long what was appended may wait is `after`.
    pub(super) fn new(after: Duration) -> Self {
        Self {
            shared: Arc::new(Shared {
                watched: Mutex::new(Rank::Appends, Watched::default()),
                wake: Condvar::new(),
            }),
            thread: Mutex::new(Rank::MountThread, None),
            is_failing: AtomicBool::new(false),
            after,
        }
    }

    /// Starts the thread, which has `publish` publish what was appended to a node, until that is false.
    pub(super) fn start(
        &self,
        publish: impl Fn(NodeId) -> bool + Send + 'static,
    ) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let serve = move || {
            memory::keep_stack_in();
            while let Some(node) = shared.next()
                && publish(node)
            {}
        };
        let thread = std::thread::Builder::new()
            .name("appends".into())
            .spawn(serve)?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// To be called, with the node locked, when its in-place draft may have become one of which
    /// something that was appended is to be stored.
    pub(super) fn watch(&self, node: NodeId, state: &mut NodeState) {
        if state.is_watched {
            return;
        }
        let since = state.shared.as_ref().and_then(Draft::appended_since);
        if let Some(since) = since {
            state.is_watched = true;
            self.look_at(node, since + self.after);
        }
    }

    /// Whether what was appended since `since` may not wait any longer.
    pub(super) fn is_due(&self, since: Instant) -> bool {
        since.elapsed() >= self.after
    }

    /// An attempt to publish went well.
    pub(super) fn note_success(&self) {
        self.is_failing.store(false, Ordering::Relaxed);
    }

    /// An attempt has failed; whether the one before had not.
    pub(super) fn note_failure(&self) -> bool {
        !self.is_failing.swap(true, Ordering::Relaxed)
    }

    fn look_at(&self, node: NodeId, due: Instant) {
        let mut watched = self.shared.lock();
        watched.due.push(Reverse((due, node)));
        // It wakes by itself for those that come first.
        if watched.due.peek() == Some(&Reverse((due, node))) {
            self.shared.wake.notify_one();
        }
    }

    /// Ends the thread: nothing more is published without being asked for.
    pub(super) fn stop(&self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_one();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread.filter(|t| t.thread().id() != std::thread::current().id())
            && thread.join().is_err()
        {
            tracing::error!("the thread that publishes what was appended has panicked");
        }
    }
}

impl Drop for Appends {
    fn drop(&mut self) {
        self.stop();
    }
}
