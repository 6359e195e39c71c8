//! What is held for threads that were told `ESTALE` by a mount beside a writer, until they have opened
//! something, or for a while.

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

/// How long a thread's next look-ups are awaited, and what they found is held.
const HELD: Duration = Duration::from_secs(10);
/// Most threads for which that is so.
const THREADS: usize = 1024;
/// Most nodes held for a thread: directories and links on the way, and where it leads to.
const NODES: usize = 64;
/// The number of all threads that cannot be seen from here, which are taken for one.
const UNSEEN: u32 = 0;

/// What was found for a thread.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) node: Arc<Node>,
    /// Of a file.
    pub(super) content: Result<Option<Pin>, Errno>,
    /// For whom that counts.
    pub(super) user: u32,
    /// Room for extended attributes.
    pub(super) _xattrs: Arc<Reservation>,
}

/// A thread that was told `ESTALE`.
struct Asker {
    since: Instant,
    /// The node that was gone, until the thread looks up something else.
    missed: Option<NodeId>,
    held: VecDeque<Held>,
}

/// The threads that were told `ESTALE` lately.
pub(super) struct Askers {
    /// How many there are: mostly none, and then nobody need look.
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

    /// Runs `change` on the askers, and counts them again.
    fn with<T>(&self, change: impl FnOnce(&mut HashMap<u32, Asker>) -> T) -> T {
        let mut threads = self.lock();
        let result = change(&mut threads);
        self.count.store(threads.len(), Ordering::Relaxed);
        result
    }

    /// Lets go of what was held for too long.
    pub(super) fn expire(&self) {
        if !self.is_empty() {
            self.with(|threads| threads.retain(|_, asker| asker.since.elapsed() < HELD));
        }
    }

    /// Gives back the memory of the contents that are held for a user; for root all of it.
    pub(super) fn drop_contents(&self, user: u32) {
        if !self.is_empty() {
            let mut threads = self.lock();
            let held = threads.values_mut().flat_map(|asker| &mut asker.held);
            held.filter(|held| user == 0 || held.user == user)
                .for_each(|held| held.content = Err(Errno(libc::ENOMEM)));
        }
    }

    /// Takes down that `thread` has met a node that is gone, and tells what it is to be told. The
    /// kernel has not come to it by looking a name up if it asks for the same again at once: it is a
    /// directory that the thread works in, say. Then `ENOENT` is the answer.
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

    /// `thread` has looked a name up in a directory that is there.
    pub(super) fn looked_up(&self, thread: u32, found: Option<Held>) {
        if let Some(asker) = self.lock().get_mut(&thread) {
            asker.missed = None;
            if asker.held.len() >= NODES {
                asker.held.pop_front();
            }
            asker.held.extend(found);
        }
    }

    /// `thread` has got what it wanted.
    pub(super) fn satisfied(&self, thread: u32) {
        if thread != UNSEEN && !self.is_empty() {
            self.with(|threads| threads.remove(&thread));
        }
    }

    /// A node that is held for somebody.
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

    /// What is held for `thread` of a file, as it was found last.
    pub(super) fn file(&self, thread: u32, id: NodeId) -> Option<Held> {
        let threads = self.lock();
        let held = &threads.get(&thread)?.held;
        held.iter().rfind(|held| held.node.id == id).cloned()
    }
}
