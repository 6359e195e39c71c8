//! Logs that stay open: data that was only appended to a file is published some seconds later,
//! without fsync or close, so that others can read it and a crash does not lose it.
//!
//! This never publishes overwritten or truncated data, nor a replacement: half of a new secret
//! would be served as if it were complete. Data appended to the first content of a new file is
//! stored, too; until the file is closed, readers still see its draft, as if nothing were stored.

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
    /// The times at which nodes are due, the earliest first.
    due: BinaryHeap<Reverse<(Instant, NodeId)>>,
    stop: bool,
}

struct Shared {
    watched: Mutex<Watched>,
    wake: Condvar,
}

/// The thread for appended data, as the module describes. It sleeps while nothing is appended, and
/// ends when this is dropped.
pub(super) struct Appends {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The last attempt failed, and the log says so.
    is_failing: AtomicBool,
    after: Duration,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock()
    }

    /// Waits for the next node that is due; `None` at the end.
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
    /// Appended data waits at most `after`.
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

    /// Starts the thread. It calls `publish` for each node that is due, until that returns false.
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

    /// Watches a node whose in-place draft may have appended data to store. The caller holds the
    /// node's lock.
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

    /// Whether data appended since `since` is due.
    pub(super) fn is_due(&self, since: Instant) -> bool {
        since.elapsed() >= self.after
    }

    /// Notes that an attempt to publish succeeded.
    pub(super) fn note_success(&self) {
        self.is_failing.store(false, Ordering::Relaxed);
    }

    /// Notes that an attempt failed; returns whether the one before succeeded.
    pub(super) fn note_failure(&self) -> bool {
        !self.is_failing.swap(true, Ordering::Relaxed)
    }

    fn look_at(&self, node: NodeId, due: Instant) {
        let mut watched = self.shared.lock();
        watched.due.push(Reverse((due, node)));
        // Wake the thread only for the earliest node; it wakes itself for the others.
        if watched.due.peek() == Some(&Reverse((due, node))) {
            self.shared.wake.notify_one();
        }
    }

    /// Ends the thread: nothing more is published unasked.
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
