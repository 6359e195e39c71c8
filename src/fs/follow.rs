//! Wakes watchers of files and directories in a read-only mount, whose files another process
//! changes without the kernel's knowledge. After each commit of that process, the nodes that the
//! kernel knows are compared with the vault, and touched if they have changed. A touch also makes
//! the kernel ask again.
//!
//! The comparing thread has the lowest priority, and works for at most a tenth of the time.

mod names;

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::crypto::memory;
use crate::os::nice::lower_priority;
use crate::store::NodeId;
use crate::sync::{Mutex, Rank};
use crate::vault::{Kind, Node, ROOT, Since, Vault, VaultError};

use super::Attr;
use super::getattr::Attributes;
use super::kernel::Kernel;
use super::table::Table;
use super::touch::{Touched, Touches};
use names::{Listed, Names};

/// Number of nodes compared in one transaction.
const BATCH: usize = 256;
/// Wait between a write of the writer and the look for its commit, since it writes before it
/// commits.
const COMMIT_DELAY: Duration = Duration::from_millis(30);
/// Number of looks after a write, with pauses that double each time.
const LOOKS: u32 = 4;
/// Interval of looks without a write, in milliseconds: if the system reports writes, and if it does
/// not.
const PAUSE_NOTIFIED: u16 = 1000;
const PAUSE_UNNOTIFIED: u16 = 200;

/// The thread that wakes watchers, as the module describes. `stop` ends it.
pub(super) struct Follower {
    stop: UnixStream,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Follower {
    /// Starts the thread for `parts`.
    pub(super) fn start(parts: Followed) -> std::io::Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        let comparing = Comparing {
            stopped,
            writes: watch_writes(&parts.vault),
            parts,
            changes: None,
            revisions: HashMap::new(),
            gone: HashSet::new(),
            names: Names::default(),
        };
        let thread = std::thread::Builder::new()
            .name("follower".into())
            .spawn(move || comparing.run())?;
        Ok(Self {
            stop,
            thread: Mutex::new(Rank::MountThread, Some(thread)),
        })
    }

    /// Ends the thread after its present work.
    pub(super) fn stop(&self) {
        let _ = self.stop.shutdown(std::net::Shutdown::Both);
        let thread = self.thread.lock().take();
        if let Some(thread) = thread.filter(|t| t.thread().id() != std::thread::current().id())
            && thread.join().is_err()
        {
            tracing::error!("a thread of the mount has panicked");
        }
    }
}

/// An inotify instance that reports writes to the vault, if the system has one left.
fn watch_writes(vault: &Vault) -> Option<Inotify> {
    let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
    let watched = Inotify::init(flags).and_then(|writes| {
        let events = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE;
        writes.add_watch(vault.path(), events)?;
        Ok(writes)
    });
    watched
        .inspect_err(|e| {
            tracing::info!("the vault is looked at five times a second: cannot watch it ({e})");
        })
        .ok()
}

/// The changes of a commit.
#[derive(Default)]
struct Found {
    /// Changed nodes that the kernel knows.
    known: Vec<Touched>,
    /// Other changed nodes, with names in directories that the kernel knows.
    unknown: HashSet<NodeId>,
    directories: HashSet<NodeId>,
}

/// The parts that the thread compares, and the means to wake watchers.
pub(super) struct Followed {
    pub(super) vault: Arc<Vault>,
    pub(super) table: Arc<Table>,
    pub(super) attributes: Arc<Attributes>,
    pub(super) touches: Arc<Touches>,
    pub(super) kernel: Arc<Kernel>,
}

struct Comparing {
    parts: Followed,
    stopped: UnixStream,
    writes: Option<Inotify>,
    /// The store's number of foreign changes at the last full comparison.
    changes: Option<u64>,
    /// The revisions of compared nodes.
    revisions: HashMap<NodeId, u64>,
    /// Removed nodes that the kernel still knows, and whose removal was reported.
    gone: HashSet<NodeId>,
    names: Names,
}

impl Comparing {
    fn run(mut self) {
        memory::keep_stack_in();
        lower_priority();
        if !self.parts.vault.await_service() {
            return;
        }
        let mut logged = None;
        let mut looks = 0;
        loop {
            let began = Instant::now();
            let failed = self.look().err().map(|error| error.to_string());
            if let Some(error) = failed.as_ref().filter(|_| failed != logged) {
                tracing::warn!("{error}; who watches files may not be told of a change");
            }
            logged = failed;
            // Sleep in proportion, however much there is to compare.
            if !self.sleep(began.elapsed() * 9) {
                return;
            }
            let wait = match looks {
                0 => PAUSE_NOTIFIED,
                _ => 0,
            };
            looks = match self.await_write(wait) {
                None => return,
                Some(true) => LOOKS,
                Some(false) if looks == 0 => continue,
                Some(false) => looks - 1,
            };
            if !self.sleep(COMMIT_DELAY * (1 << (LOOKS - looks))) {
                return;
            }
        }
    }

    /// False if the thread must end.
    fn sleep(&self, pause: Duration) -> bool {
        let pause = PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX);
        let mut stopped = [PollFd::new(self.stopped.as_fd(), PollFlags::POLLIN)];
        matches!(
            poll(&mut stopped, pause),
            Ok(0) | Err(nix::errno::Errno::EINTR)
        )
    }

    /// Whether the writer has written since the last call, or does within `wait` milliseconds.
    /// `None` at the end.
    fn await_write(&self, wait: u16) -> Option<bool> {
        let Some(writes) = &self.writes else {
            let pause = Duration::from_millis(wait.min(PAUSE_UNNOTIFIED).into());
            return self.sleep(pause).then_some(false);
        };
        let mut polled = [
            PollFd::new(self.stopped.as_fd(), PollFlags::POLLIN),
            PollFd::new(writes.as_fd(), PollFlags::POLLIN),
        ];
        let ready = poll(&mut polled, PollTimeout::from(wait));
        let happened = |at: usize| polled[at].revents().is_some_and(|what| !what.is_empty());
        match ready {
            Ok(1..) if happened(0) => None,
            Ok(1..) => {
                // Read all events so far; their kind does not matter.
                while writes.read_events().is_ok_and(|events| !events.is_empty()) {}
                Some(true)
            }
            Ok(_) | Err(_) => Some(false),
        }
    }

    /// Compares, if another process has committed, or the kernel knows a new directory.
    fn look(&mut self) -> Result<(), VaultError> {
        // A condemned vault serves nothing.
        if !self.parts.touches.is_served() || self.parts.vault.is_condemned() {
            return Ok(());
        }
        let changes = self.parts.vault.changes_of_others()?;
        let has_changed = self.changes != Some(changes);
        if !has_changed && !self.parts.table.has_new_directories() {
            return Ok(());
        }
        let all = self.parts.table.all_seen();
        let seen: HashMap<_, _> = all.into_iter().map(|attr| (attr.ino, attr)).collect();
        self.gone.retain(|id| seen.contains_key(id));
        self.names.retain(|id| id == ROOT || seen.contains_key(&id));
        let mut found = Found::default();
        let compared = match has_changed {
            true => self.compare(&seen, &mut found),
            false => Ok(()),
        };
        // A touch by name looks up the name. So touch the previous node of that name first, which
        // makes the kernel drop it.
        found
            .known
            .into_iter()
            .for_each(|one| self.parts.touches.add(one));
        for (directory, name) in self.names.of(&found.unknown) {
            self.parts.touches.add(Touched::Name(directory, name));
        }
        let mut directories = found.directories;
        let all = seen.values().filter(|attr| attr.kind == Kind::Directory);
        let all = all.map(|attr| attr.ino).chain([ROOT]);
        directories.extend(all.filter(|id| !self.names.is_listed(*id)));
        // Until everything succeeds, compare everything again.
        self.changes = None;
        let mut listed = Ok(());
        for directory in directories {
            if let Err(error) = self.list(directory, seen.get(&directory)) {
                self.revisions.remove(&directory);
                listed = Err(error);
            }
        }
        compared.and(listed)?;
        self.changes = Some(changes);
        Ok(())
    }

    /// Compares all nodes that the kernel knows, and those with a name in a directory that it
    /// knows.
    fn compare(
        &mut self,
        seen: &HashMap<NodeId, Attr>,
        found: &mut Found,
    ) -> Result<(), VaultError> {
        let mut ids: HashSet<NodeId> = seen.keys().copied().chain([ROOT]).collect();
        ids.extend(self.names.nodes());
        self.revisions.retain(|id, _| ids.contains(id));
        ids.retain(|id| !self.gone.contains(id));
        let ids: Vec<_> = ids.into_iter().collect();
        for batch in ids.chunks(BATCH) {
            if self.parts.kernel.has_ended() {
                return Ok(());
            }
            let revisions = batch.iter().map(|id| self.revisions.get(id).copied());
            let asked: Vec<_> = batch.iter().copied().zip(revisions).collect();
            for (id, since) in batch.iter().zip(self.parts.vault.since(&asked)?) {
                match (since, seen.get(id)) {
                    (Since::Same, _) | (Since::Gone, None) => {}
                    (Since::Gone, Some(before)) => {
                        self.gone.insert(*id);
                        self.parts.touches.add_gone(Attr {
                            links: 0,
                            ..*before
                        });
                    }
                    (Since::Changed(node), before) => self.note(&node, before, found),
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, node: &Node, before: Option<&Attr>, found: &mut Found) {
        let compared = self.revisions.insert(node.id, node.revision).is_some();
        if node.kind == Kind::Directory {
            found.directories.insert(node.id);
        }
        // A rotation changes a node, too, but nothing visible in it.
        let now = self.parts.attributes.attr_of(node);
        match before {
            Some(before) if before.changed == now.changed => {}
            Some(_) => found.known.push(Touched::Node(node.id)),
            None if !compared => {}
            None if node.id == ROOT => found.known.push(Touched::Node(ROOT)),
            None => drop(found.unknown.insert(node.id)),
        }
        self.parts.table.see(&now);
    }

    /// Touches the names that a directory got since it was listed, or since the kernel saw it.
    fn list(&mut self, directory: NodeId, before: Option<&Attr>) -> Result<(), VaultError> {
        let Some(now) = self.names.read(&self.parts.vault, directory)? else {
            return Ok(());
        };
        let new = match self.names.replace(directory, now) {
            Listed::Before(new) => new,
            Listed::Never(all) => self.named_since(&all, before)?,
        };
        for name in new {
            self.parts.touches.add(Touched::Name(directory, name));
        }
        Ok(())
    }

    /// Among names that are listed for the first time, those that the directory did not have at
    /// `before`: getting a name has changed their nodes since.
    fn named_since(
        &mut self,
        all: &[(Vec<u8>, NodeId)],
        before: Option<&Attr>,
    ) -> Result<Vec<Vec<u8>>, VaultError> {
        let mut new = Vec::new();
        for names in all.chunks(BATCH) {
            let asked: Vec<_> = names.iter().map(|(_, id)| (*id, None)).collect();
            for ((name, id), since) in names.iter().zip(self.parts.vault.since(&asked)?) {
                if let Since::Changed(node) = since {
                    self.revisions.entry(*id).or_insert(node.revision);
                    if before.is_some_and(|before| node.attributes.changed > before.changed) {
                        new.push(name.clone());
                    }
                }
            }
        }
        Ok(new)
    }
}
