//! Reading beside a writer, in another process, who removes files without knowing what is about to be
//! opened here.
//!
//! The kernel looks a name up, and then asks for the node by its number. When the node has gone in
//! between it is told `ESTALE`, looks the whole path up anew, and does so once: if it met the same
//! again, the program would be told. So what a thread looks up after it was told `ESTALE` is held for
//! it, the content from the snapshot that the name was found in, and what the thread asks for next is
//! served from there, as other file systems serve a file that was removed just after it was looked up.
//! That ends when the thread has opened something, or after a while.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::store::NodeId;
use crate::vault::{Node, ROOT, VaultError};

use super::budget::Reservation;
use super::handles::Access;
use super::loaded::{Pin, pin_of};
use super::open::Opened;
use super::{Attr, Caller, Errno, FileSystem};

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
struct Held {
    node: Arc<Node>,
    /// Of a file.
    content: Result<Option<Pin>, Errno>,
    /// For whom that counts.
    user: u32,
    /// Room for extended attributes.
    _xattrs: Arc<Reservation>,
}

/// A thread that was told `ESTALE`.
struct Asker {
    since: Instant,
    /// The node that was gone, until the thread looks up something else.
    missed: Option<NodeId>,
    held: VecDeque<Held>,
}

/// The threads that were told `ESTALE` lately.
#[derive(Default)]
pub(super) struct Askers {
    /// How many there are: mostly none, and then nobody need look.
    count: AtomicUsize,
    threads: Mutex<HashMap<u32, Asker>>,
}

impl Askers {
    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Asker>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn missed(&self, thread: u32, node: NodeId) -> Errno {
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

    fn is_asking(&self, thread: u32) -> bool {
        !self.is_empty() && self.lock().contains_key(&thread)
    }

    /// `thread` has looked a name up in a directory that is there.
    fn looked_up(&self, thread: u32, found: Option<Held>) {
        if let Some(asker) = self.lock().get_mut(&thread) {
            asker.missed = None;
            if asker.held.len() >= NODES {
                asker.held.pop_front();
            }
            asker.held.extend(found);
        }
    }

    /// `thread` has got what it wanted.
    fn satisfied(&self, thread: u32) {
        if thread != UNSEEN && !self.is_empty() {
            self.with(|threads| threads.remove(&thread));
        }
    }

    /// A node that is held for somebody.
    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        if self.is_empty() {
            return None;
        }
        let threads = self.lock();
        let mut held = threads.values().flat_map(|asker| &asker.held);
        let found = held.find(|held| held.node.id == id);
        found.map(|held| Arc::clone(&held.node))
    }

    fn holds(&self, thread: u32, id: NodeId) -> bool {
        let threads = self.lock();
        let asker = threads.get(&thread);
        asker.is_some_and(|asker| asker.held.iter().any(|held| held.node.id == id))
    }

    /// What is held for `thread` of a file, as it was found last.
    fn file(&self, thread: u32, id: NodeId) -> Option<Held> {
        let threads = self.lock();
        let held = &threads.get(&thread)?.held;
        held.iter().rfind(|held| held.node.id == id).cloned()
    }
}

impl FileSystem {
    /// As [`lookup`](Self::lookup), by a thread that may have been told `ESTALE` before.
    pub(super) fn lookup_beside_writer(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &[u8],
    ) -> Result<Attr, Errno> {
        let thread = caller.pid;
        let asking = self.askers.is_asking(thread);
        let found = match asking {
            true => self.lookup_and_hold(caller, parent, name),
            false => self.vault.lookup(parent, name),
        };
        match found {
            Ok(node) => Ok(self.attr_of(&node)),
            // What is absent may be the directory itself.
            Err(error) => match self.present(parent) {
                Err(stale @ Errno(libc::ESTALE)) if !self.askers.holds(thread, parent) => {
                    Err(stale)
                }
                _ => {
                    if asking {
                        self.askers.looked_up(thread, None);
                    }
                    Err(error.into())
                }
            },
        }
    }

    fn lookup_and_hold(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &[u8],
    ) -> Result<Arc<Node>, VaultError> {
        let mut room = Err(Errno(libc::ENOMEM));
        let (node, content) = self.vault.lookup_with_content(parent, name, &mut |file| {
            room = Err(Errno(libc::ENOMEM));
            room = self.room_for(caller.uid, file.size);
            room.as_ref().map_or(0, |_| file.size)
        })?;
        let content = match content {
            Ok(content) => pin_of(&node, content, room),
            // It is no file, perhaps; else opening it tells.
            Err(error) => Err(error.into()),
        };
        let xattrs = node.xattr_bytes() as u64;
        let Ok(xattrs) = self.budget.of(caller.uid).reserve(xattrs, xattrs) else {
            self.askers.looked_up(caller.pid, None);
            return Ok(node);
        };
        let held = Held {
            node: Arc::new(node.without_name()),
            content,
            user: caller.uid,
            _xattrs: Arc::new(xattrs),
        };
        self.askers.looked_up(caller.pid, Some(held));
        Ok(node)
    }

    /// What came of opening a file for `thread`: what was there when it looked the file up is opened,
    /// if it has gone since.
    pub(super) fn opened_beside_writer(
        &self,
        caller: Caller,
        ino: NodeId,
        access: Access,
        opened: Result<Opened, Errno>,
    ) -> Result<Opened, Errno> {
        let opened = match opened {
            Err(Errno(libc::ESTALE)) => self.open_held(caller, ino, access),
            opened => opened,
        };
        if opened.is_ok() {
            self.askers.satisfied(caller.pid);
        }
        opened
    }

    fn open_held(&self, caller: Caller, ino: NodeId, access: Access) -> Result<Opened, Errno> {
        let held = self.askers.file(caller.pid, ino);
        let held = held.ok_or(Errno(libc::ESTALE))?;
        let pin = held.content?;
        let (fh, handle) = self.table.open(ino, access, None, caller.uid)?;
        let mut state = handle.node.lock();
        state.settle_beside_writer(fh, held.node, pin);
        Ok(Opened { fh, flushes: false })
    }

    /// What `thread` is told when it has asked, beside a writer, for a node that is gone.
    pub fn gone_for(&self, thread: u32, ino: NodeId, error: Errno) -> Errno {
        match error {
            // No writer removes the top directory.
            Errno(libc::ESTALE) if ino != ROOT => self.askers.missed(thread, ino),
            error => error,
        }
    }

    /// A node that is there.
    pub(super) fn present(&self, id: NodeId) -> Result<Arc<Node>, Errno> {
        self.vault.node(id).map_err(|error| self.gone(error))
    }

    /// A node that is not there any more, beside a writer, if it is held.
    pub(super) fn held(&self, id: NodeId) -> Option<Arc<Node>> {
        self.askers.node(id)
    }

    /// A node, or what it was when it was opened.
    pub(super) fn node_or_opened(&self, id: NodeId) -> Result<Arc<Node>, Errno> {
        self.node(id).or_else(|error| match error {
            Errno(libc::ESTALE) => {
                let open = self.table.node(id);
                let opened = open.and_then(|open| {
                    let state = open.lock();
                    // Without them, nothing can be said of its extended attributes.
                    state.opened.clone().filter(|_| !state.opened_bare)
                });
                opened
                    .map(|node| Arc::new(node.without_name()))
                    .ok_or(error)
            }
            error => Err(error),
        })
    }
}
