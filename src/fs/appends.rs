//! Logs that are kept open: what was only added at the end of a file is published some seconds later,
//! without any fsync or close, so that others can read it and a crash does not take it.
//!
//! Never what was written over or cut, and never a replacement: half of a new secret would be served
//! as if it were one. What is added to the first content of a new file is stored as well; whoever may
//! read the file is shown its draft until the file is closed, as if it were not.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::crypto::memory;
use crate::store::NodeId;

use super::draft::Draft;
use super::handles::NodeState;
use super::publish::{Awaited, Pending, Source};
use super::{Done, Errno, FileSystem};

#[derive(Default)]
struct Watched {
    /// When nodes are to be looked at; the first comes first.
    due: BinaryHeap<Reverse<(Instant, NodeId)>>,
    stop: bool,
}

#[derive(Default)]
struct Shared {
    watched: Mutex<Watched>,
    wake: Condvar,
}

/// See the module. Its thread sleeps as long as nothing was appended. Ends when dropped.
#[derive(Default)]
pub(super) struct Appends {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The last attempt failed, and that is logged.
    is_failing: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
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
                None => self
                    .wake
                    .wait(watched)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(rest) if rest.is_zero() => {
                    return watched.due.pop().map(|Reverse((_, node))| node);
                }
                Some(rest) => {
                    let waited = self.wake.wait_timeout(watched, rest);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl Appends {
    /// Starts the thread.
    pub(super) fn start(&self, fs: &Arc<FileSystem>) -> std::io::Result<()> {
        let (shared, fs) = (Arc::clone(&self.shared), Arc::downgrade(fs));
        let serve = move || {
            memory::keep_stack_in();
            while let Some(node) = shared.next()
                && let Some(fs) = Weak::upgrade(&fs)
            {
                fs.publish_appended(node);
            }
        };
        let thread = std::thread::Builder::new()
            .name("appends".into())
            .spawn(serve)?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    fn watch(&self, node: NodeId, due: Instant) {
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
        let thread = self.thread.lock();
        let thread = thread.unwrap_or_else(PoisonError::into_inner).take();
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

impl FileSystem {
    /// To be called, with the node locked, when its in-place draft may have become one of which
    /// something that was appended is to be stored.
    pub(super) fn watch_appended(&self, node: NodeId, state: &mut NodeState) {
        if state.is_watched {
            return;
        }
        let since = state.shared.as_ref().and_then(Draft::appended_since);
        if let Some(since) = since {
            state.is_watched = true;
            self.appends
                .watch(node, since + self.settings.appends_after);
        }
    }

    /// Publishes what was appended to a node, if that is all and it is time.
    fn publish_appended(self: &Arc<Self>, id: NodeId) {
        let Some(node) = self.table.node(id) else {
            return;
        };
        let mut state = node.lock();
        state.is_watched = false;
        let since = state.shared.as_ref().and_then(Draft::appended_since);
        let Some(since) = since else { return };
        // Whoever publishes something now sees to what is left then.
        if state.publishing > 0 {
            return;
        }
        if since.elapsed() < self.settings.appends_after {
            return self.watch_appended(id, &mut state);
        }
        let Some(draft) = &mut state.shared else {
            return;
        };
        let Ok(found) = self.nodes.node(id) else {
            draft.put_off();
            return self.watch_appended(id, &mut state);
        };
        // What has no name any more is lost with its last close in any case.
        let Some(file) = found.file().ok().filter(|_| found.attributes.links > 0) else {
            return;
        };
        let pending = Pending::appended(draft, file.version);
        let whose = state.user_in_place();
        let fs = Arc::clone(self);
        let done: Done<()> = Box::new(move |outcome| match outcome {
            // Somebody else has published something meanwhile: what is left is looked at anew.
            Err(Errno(libc::ESTALE)) => {}
            Ok(()) => fs.appends.is_failing.store(false, Ordering::Relaxed),
            Err(Errno(errno)) => {
                if !fs.appends.is_failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "what was appended to node {id} could not be stored (error {errno}); it is \
                         tried again, and a close or fsync tells its program"
                    );
                }
            }
        });
        self.publish(
            &node,
            state,
            pending,
            (Source::Appended, Awaited::No(whose)),
            done,
        );
    }
}
