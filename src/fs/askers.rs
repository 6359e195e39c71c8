//! Nodes held for threads that got `ESTALE` from a mount beside a writer, until the thread has
//! opened something, or some time has passed.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::store::NodeId;
use crate::sync::{Mutex, MutexGuard, Rank};
use crate::vault::Node;

use super::Errno;
use super::budget::Reservation;
use super::loaded::Pin;

/// Limit on the time that nodes are held for a thread.
const HELD: Duration = Duration::from_secs(10);
/// Limit on the threads for which nodes are held.
const THREADS: usize = 1024;
/// Limit on nodes held for a thread: directories and links on a path, and its end.
const NODES: usize = 64;
/// The number that stands for all threads that are not visible from here.
const UNSEEN: u32 = 0;

/// A node that a thread's look-up found.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) node: Arc<Node>,
    /// The content, for a file.
    pub(super) content: Result<Option<Pin>, Errno>,
    /// The user whose budget it counts in.
    pub(super) user: u32,
    /// The reservation for extended attributes.
    pub(super) _xattrs: Arc<Reservation>,
}

/// A thread that got `ESTALE`.
struct Asker {
    since: Instant,
    /// The removed node, until the thread looks up another name.
    missed: Option<NodeId>,
    held: VecDeque<Held>,
}

/// The threads that got `ESTALE` recently.
pub(super) struct Askers {
    /// Their number: mostly 0, and then no look-up takes the lock.
    count: AtomicUsize,
    threads: Mutex<HashMap<u32, Asker>>,
}

impl Default for Askers {
    fn default() -> Self {
        Self {
            count: AtomicUsize::new(0),
            threads: Mutex::new(Rank::Askers, HashMap::new()),
        }
    }
}

impl Askers {
    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Asker>> {
        self.threads.lock()
    }

    /// Runs `change` on the threads, and updates their number.
    fn with<T>(&self, change: impl FnOnce(&mut HashMap<u32, Asker>) -> T) -> T {
        let mut threads = self.lock();
        let result = change(&mut threads);
        self.count.store(threads.len(), Ordering::Relaxed);
        result
    }

    /// Drops nodes that were held for too long.
    pub(super) fn expire(&self) {
        if !self.is_empty() {
            self.with(|threads| threads.retain(|_, asker| asker.since.elapsed() < HELD));
        }
    }

    /// Frees the memory of contents held for a user; for root, of all.
    pub(super) fn drop_contents(&self, user: u32) {
        if !self.is_empty() {
            let mut threads = self.lock();
            let held = threads.values_mut().flat_map(|asker| &mut asker.held);
            held.filter(|held| user == 0 || held.user == user)
                .for_each(|held| held.content = Err(Errno(libc::ENOMEM)));
        }
    }

    /// Notes that `thread` has met a removed node, and returns the errno for it. If the kernel asks
    /// for the same node again at once, it has not come to it by a look-up: the node is, for
    /// example, the thread's working directory. Then the answer is `ENOENT`.
    pub(super) fn missed(&self, thread: u32, node: NodeId) -> Errno {
        self.expire();
        self.with(|threads| {
            if threads.len() >= THREADS && !threads.contains_key(&thread) {
                let oldest = threads.iter().min_by_key(|(_, asker)| asker.since);
                if let Some(oldest) = oldest.map(|(thread, _)| *thread) {
                    threads.remove(&oldest);
                }
            }
            let asker = threads.entry(thread).or_insert_with(|| Asker {
                since: Instant::now(),
                missed: None,
                held: VecDeque::new(),
            });
            asker.since = Instant::now();
            match asker.missed.replace(node) == Some(node) && thread != UNSEEN {
                true => Errno(libc::ENOENT),
                false => Errno(libc::ESTALE),
            }
        })
    }

    pub(super) fn is_asking(&self, thread: u32) -> bool {
        !self.is_empty() && self.lock().contains_key(&thread)
    }

    /// Notes that `thread` has looked up a name in an existing directory.
    pub(super) fn looked_up(&self, thread: u32, found: Option<Held>) {
        if let Some(asker) = self.lock().get_mut(&thread) {
            asker.missed = None;
            if asker.held.len() >= NODES {
                asker.held.pop_front();
            }
            asker.held.extend(found);
        }
    }

    /// Notes that `thread` has opened its file, and drops the nodes held for it.
    pub(super) fn satisfied(&self, thread: u32) {
        if thread != UNSEEN && !self.is_empty() {
            self.with(|threads| threads.remove(&thread));
        }
    }

    /// A node that is held for any thread.
    pub(super) fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        if self.is_empty() {
            return None;
        }
        let threads = self.lock();
        let mut held = threads.values().flat_map(|asker| &asker.held);
        let found = held.find(|held| held.node.id == id);
        found.map(|held| Arc::clone(&held.node))
    }

    pub(super) fn holds(&self, thread: u32, id: NodeId) -> bool {
        let threads = self.lock();
        let asker = threads.get(&thread);
        asker.is_some_and(|asker| asker.held.iter().any(|held| held.node.id == id))
    }

    /// The file `id` as the last look-up of `thread` found it.
    pub(super) fn file(&self, thread: u32, id: NodeId) -> Option<Held> {
        let threads = self.lock();
        let held = &threads.get(&thread)?.held;
        held.iter().rfind(|held| held.node.id == id).cloned()
    }
}
