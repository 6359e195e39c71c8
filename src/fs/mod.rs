//! The file system: what open, read, write, rename and the rest mean for secrets.
//!
//! It knows inodes, handles, bytes and errno, not fuser and no kernel: [`fuse`] is one adapter.
//! Every operation takes a `done` that is called exactly once, on whichever thread: what can wait
//! (for the disk, for a publication under way) never keeps the thread that reads requests.

mod appended;
mod appends;
mod askers;
mod attr;
mod attributes;
mod authors;
mod beside;
mod blocks;
mod budget;
mod closing;
mod commits;
mod counters;
mod descriptors;
mod directories;
mod directory_entry;
mod draft;
mod drafts;
mod ending;
mod entry;
mod errno;
mod follow;
mod handles;
mod handoff;
mod io;
mod kernel;
mod loaded;
mod loading;
mod names;
mod nodes;
mod open;
mod opened;
mod page_cache;
mod pages;
mod process;
mod publish;
mod queue;
mod readings;
mod reaping;
mod room;
mod routine;
mod set_attributes;
mod set_id;
mod settling;
mod touch;
mod transport;
mod truncation;
mod virtual_dir;
mod watch;
mod watchers;
mod write;
mod writer;
mod xattrs;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::store::NodeId;
use crate::vault::{Kind, Timestamp, Vault, VaultError};

pub use directory_entry::DirectoryEntry;
pub use ending::Ending;
pub use entry::FrontDoor;
pub use errno::Errno;
pub use handles::{Access, FileHandle};
pub(crate) use handoff::answered_elsewhere;
pub(crate) use io::window;
pub use io::{ReadDone, Transfer};
pub use kernel::Transport;
pub use opened::Opened;
pub use room::Figures;
pub use set_attributes::SetAttributes;
pub use touch::{Touched, Touches};
pub use transport::{MAX_TRANSFER, Serving, start as start_session};
pub use virtual_dir::{FIRST_VIRTUAL_HANDLE, VIRTUAL_DIRECTORY, VirtualDirectory};

use appended::Appended;
use appends::Appends;
use askers::Askers;
use attr::Attributes;
use attributes::AttributeChanges;
use beside::Beside;
use budget::Budget;
use closing::Closing;
use commits::Commits;
use counters::Counters;
use directories::Directories;
use drafts::Drafts;
use ending::LeftOver;
use follow::{Followed, Follower};
use handles::Table;
use io::Reads;
use kernel::{Device, Kernel};
use loading::Loader;
use names::Names;
use nodes::Nodes;
use open::Opens;
use page_cache::PageCache;
use publish::Publisher;
use queue::Whose;
use reaping::Reaping;
use room::DiskRoom;
use routine::Routine;
use set_id::SetIdBits;
use settling::Settling;
use truncation::Truncation;
use watchers::Watchers;
use write::Writes;
use xattrs::Xattrs;

/// What an operation tells its caller, when it is done.
pub type Done<T> = Box<dyn FnOnce(Result<T, Errno>) + Send>;

/// How a mount behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long the kernel may remember names and attributes.
    pub ttl: Duration,
    /// Largest secret in bytes.
    pub max_secret_size: u64,
    /// Most bytes of drafts and snapshots in memory.
    pub max_memory: u64,
    /// A reader that asks again at the end of a replaced content after this long waits for more
    /// (`tail -f`) and is given the new one. One that asks sooner is still reading: it would take
    /// the rest of another content for that of its own.
    pub end_patience: Duration,
    /// How long what was only appended to a file may wait to be published without fsync or close.
    pub appends_after: Duration,
    /// How long after somebody else has changed the vault it is counted anew.
    pub verify_every: Duration,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Thread id, 0 when it cannot be seen from here.
    pub pid: u32,
}

impl Caller {
    /// Whose share of the disk's time what it asks for comes out of.
    fn whose(&self) -> Whose {
        Whose::of(self.uid)
    }
}

/// What `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, set-id bits and sticky bit.
    pub mode: u32,
    /// Links.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub device: u32,
    /// Length in bytes.
    pub size: u64,
    /// Last access.
    pub accessed: Timestamp,
    /// Last change of the content.
    pub modified: Timestamp,
    /// Last change of anything.
    pub changed: Timestamp,
    /// How long that may be remembered.
    pub ttl: Duration,
    /// Which version of a file's content that is.
    pub version: u64,
}

/// What a file system is about at a moment.
pub(crate) struct Activity {
    /// The device number of the mount, as `major, minor`; none when somebody else has mounted it.
    pub(crate) device: Option<(u32, u32)>,
    pub(crate) open_files: usize,
    /// `woken`, or why those who watch files are not.
    pub(crate) watchers: String,
    pub(crate) published: u64,
    pub(crate) failed_publications: u64,
    /// Bytes of drafts and snapshots, and most of them.
    pub(crate) memory_used: u64,
    pub(crate) memory_limit: u64,
}

/// A file system of which what was left is published, as far as that could be done.
#[derive(Clone, Copy, Debug)]
#[must_use = "it is to be closed"]
pub(super) struct Drained {
    ending: Ending,
    /// Publications that had failed before.
    failed: u64,
}

/// A mounted vault.
pub struct FileSystem {
    left_over: LeftOver,
    directories: Directories,
    opens: Arc<Opens>,
    names: Arc<Names>,
    beside: Arc<Beside>,
    changes: Arc<AttributeChanges>,
    truncation: Arc<Truncation>,
    writes: Arc<Writes>,
    reads: Arc<Reads>,
    drafts: Arc<Drafts>,
    appended: Arc<Appended>,
    closing: Arc<Closing>,
    publisher: Arc<Publisher>,
    page_cache: Arc<PageCache>,
    watchers: Arc<Watchers>,
    set_id: Arc<SetIdBits>,
    vault: Arc<Vault>,
    settings: Settings,
    commits: Arc<Commits>,
    reaping: Arc<Reaping>,
    table: Arc<Table>,
    budget: Arc<Budget>,
    askers: Arc<Askers>,
    nodes: Arc<Nodes>,
    counters: Arc<Counters>,
    room: Arc<DiskRoom>,
    xattrs: Xattrs,
    appends: Arc<Appends>,
    kernel: Arc<Kernel>,
    loader: Arc<Loader>,
    settling: Arc<Settling>,
    device: Arc<Device>,
    attributes: Arc<Attributes>,
    routines: OnceLock<[Routine; 2]>,
    /// Who watches is woken by these.
    touches: Arc<Touches>,
    follower: OnceLock<Follower>,
}

impl std::fmt::Debug for FileSystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileSystem({:?})", self.vault)
    }
}

impl FileSystem {
    /// Serves `vault`. Starts the writer's thread, and those that keep anchor and integrity, and that
    /// publish what was appended.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(vault: impl Into<Arc<Vault>>, settings: Settings) -> std::io::Result<Arc<Self>> {
        let vault = vault.into();
        let commits = Arc::new(Commits::start(&vault)?);
        let table = Arc::new(Table::of(vault.is_read_only()));
        let askers: Arc<Askers> = Arc::default();
        let nodes = Arc::new(Nodes::new(&vault, &table, &askers));
        let kernel: Arc<Kernel> = Arc::default();
        let budget = Budget::new(settings.max_memory);
        let loader = Arc::new(Loader {
            vault: Arc::clone(&vault),
            table: Arc::clone(&table),
            nodes: Arc::clone(&nodes),
            budget: Arc::clone(&budget),
            askers: Arc::clone(&askers),
            kernel: Arc::clone(&kernel),
        });
        let settling = Arc::new(Settling {
            table: Arc::clone(&table),
            kernel: Arc::clone(&kernel),
        });
        let device: Arc<Device> = Arc::default();
        let attributes = Arc::new(Attributes {
            is_beside_writer: vault.is_read_only(),
            ttl: settings.ttl,
            table: Arc::clone(&table),
            nodes: Arc::clone(&nodes),
            loader: Arc::clone(&loader),
            settling: Arc::clone(&settling),
            kernel: Arc::clone(&kernel),
            device: Arc::clone(&device),
        });
        let reaping = Arc::new(Reaping {
            table: Arc::clone(&table),
            nodes: Arc::clone(&nodes),
            commits: Arc::clone(&commits),
        });
        let counters: Arc<Counters> = Arc::default();
        let room = Arc::new(DiskRoom {
            vault: Arc::clone(&vault),
            counters: Arc::clone(&counters),
        });
        let xattrs = Xattrs {
            is_read_only: vault.is_read_only(),
            nodes: Arc::clone(&nodes),
            commits: Arc::clone(&commits),
        };
        let set_id = Arc::new(SetIdBits {
            table: Arc::clone(&table),
            nodes: Arc::clone(&nodes),
            commits: Arc::clone(&commits),
        });
        let touches: Arc<Touches> = Arc::default();
        let watchers = Arc::new(Watchers {
            vault: Arc::clone(&vault),
            table: Arc::clone(&table),
            attributes: Arc::clone(&attributes),
            touches: Arc::clone(&touches),
        });
        let page_cache = Arc::new(PageCache {
            table: Arc::clone(&table),
            kernel: Arc::clone(&kernel),
        });
        let appends = Arc::new(Appends::new(settings.appends_after));
        let publisher = Arc::new(Publisher {
            vault: Arc::clone(&vault),
            commits: Arc::clone(&commits),
            nodes: Arc::clone(&nodes),
            reaping: Arc::clone(&reaping),
            room: Arc::clone(&room),
            counters: Arc::clone(&counters),
            kernel: Arc::clone(&kernel),
            appends: Arc::clone(&appends),
            watchers: Arc::clone(&watchers),
        });
        let closing = Arc::new(Closing {
            table: Arc::clone(&table),
            commits: Arc::clone(&commits),
            publisher: Arc::clone(&publisher),
            reaping: Arc::clone(&reaping),
            counters: Arc::clone(&counters),
            kernel: Arc::clone(&kernel),
        });
        let appended = Arc::new(Appended {
            table: Arc::clone(&table),
            nodes: Arc::clone(&nodes),
            appends: Arc::clone(&appends),
            publisher: Arc::clone(&publisher),
        });
        let drafts = Arc::new(Drafts {
            is_beside_writer: vault.is_read_only(),
            max_secret_size: settings.max_secret_size,
            vault: Arc::clone(&vault),
            table: Arc::clone(&table),
            nodes: Arc::clone(&nodes),
            budget: Arc::clone(&budget),
            appends: Arc::clone(&appends),
        });
        let reads = Arc::new(Reads {
            end_patience: settings.end_patience,
            vault: Arc::clone(&vault),
            table: Arc::clone(&table),
            nodes: Arc::clone(&nodes),
            loader: Arc::clone(&loader),
            page_cache: Arc::clone(&page_cache),
            settling: Arc::clone(&settling),
            budget: Arc::clone(&budget),
            device: Arc::clone(&device),
        });
        let writes = Arc::new(Writes {
            table: Arc::clone(&table),
            drafts: Arc::clone(&drafts),
            set_id: Arc::clone(&set_id),
            settling: Arc::clone(&settling),
            closing: Arc::clone(&closing),
        });
        let truncation = Arc::new(Truncation {
            table: Arc::clone(&table),
            nodes: Arc::clone(&nodes),
            drafts: Arc::clone(&drafts),
            publisher: Arc::clone(&publisher),
            closing: Arc::clone(&closing),
            settling: Arc::clone(&settling),
        });
        let changes = Arc::new(AttributeChanges {
            is_read_only: vault.is_read_only(),
            table: Arc::clone(&table),
            nodes: Arc::clone(&nodes),
            commits: Arc::clone(&commits),
            attributes: Arc::clone(&attributes),
            watchers: Arc::clone(&watchers),
            set_id: Arc::clone(&set_id),
            truncation: Arc::clone(&truncation),
        });
        let beside = Arc::new(Beside {
            vault: Arc::clone(&vault),
            table: Arc::clone(&table),
            askers: Arc::clone(&askers),
            budget: Arc::clone(&budget),
            nodes: Arc::clone(&nodes),
            loader: Arc::clone(&loader),
            attributes: Arc::clone(&attributes),
        });
        let names = Arc::new(Names {
            vault: Arc::clone(&vault),
            table: Arc::clone(&table),
            nodes: Arc::clone(&nodes),
            attributes: Arc::clone(&attributes),
            commits: Arc::clone(&commits),
            reaping: Arc::clone(&reaping),
            beside: Arc::clone(&beside),
        });
        let opens = Arc::new(Opens {
            vault: Arc::clone(&vault),
            table: Arc::clone(&table),
            nodes: Arc::clone(&nodes),
            names: Arc::clone(&names),
            beside: Arc::clone(&beside),
            drafts: Arc::clone(&drafts),
            truncation: Arc::clone(&truncation),
            settling: Arc::clone(&settling),
            set_id: Arc::clone(&set_id),
            reaping: Arc::clone(&reaping),
            room: Arc::clone(&room),
            loader: Arc::clone(&loader),
            budget: Arc::clone(&budget),
            kernel: Arc::clone(&kernel),
        });
        let directories = Directories::new(
            &vault,
            &table,
            &nodes,
            &attributes,
            &reaping,
            &closing,
        );
        let left_over = LeftOver {
            table: Arc::clone(&table),
            publisher: Arc::clone(&publisher),
        };
        let fs = Arc::new(Self {
            left_over,
            directories,
            opens,
            names,
            beside,
            changes,
            truncation,
            writes,
            reads,
            drafts,
            appended,
            closing,
            publisher,
            page_cache,
            watchers,
            set_id,
            counters,
            room,
            xattrs,
            commits,
            reaping,
            settling,
            device,
            attributes,
            nodes,
            table,
            askers,
            kernel,
            loader,
            budget,
            appends,
            routines: OnceLock::new(),
            touches,
            follower: OnceLock::new(),
            settings,
            vault,
        });
        if !fs.vault.is_read_only() {
            let appended = Arc::downgrade(&fs.appended);
            fs.appends.start(move |node| {
                let appended = appended.upgrade();
                appended.inspect(|appended| appended.publish(node)).is_some()
            })?;
        }
        let routines = watch::start(
            &fs.vault,
            &fs.askers,
            &fs.reaping,
            fs.settings.verify_every,
        )?;
        // There are none yet.
        let _ = fs.routines.set(routines);
        Ok(fs)
    }

    /// Tells what brings the requests. Starts the thread that has the kernel drop pages.
    ///
    /// # Errors
    /// When that cannot be started.
    pub(super) fn attach(self: &Arc<Self>, transport: Arc<dyn Transport>) -> std::io::Result<()> {
        let stale = self.kernel.attach(&transport);
        // The thread ends with the file system, which has the sender.
        let page_cache = Arc::downgrade(&self.page_cache);
        std::thread::Builder::new()
            .name("notifier".into())
            .spawn(move || {
                for node in stale {
                    let begun = page_cache.upgrade().and_then(|c| c.begin_to_drop(node));
                    transport.drop_pages(node);
                    if let (Some(page_cache), Some(begun)) = (page_cache.upgrade(), begun) {
                        page_cache.note_dropped(node, begun);
                    }
                }
            })?;
        Ok(())
    }

    /// Tells the device number of the mount.
    pub fn attach_device(&self, device: (u32, u32)) {
        self.device.attach(device);
    }

    /// What is to be touched when somebody may watch it.
    pub fn touches(&self) -> &Arc<Touches> {
        &self.touches
    }

    /// Those who watch files are woken from now on, by whoever serves [`touches`](Self::touches).
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn wake_from_now_on(&self) -> std::io::Result<()> {
        self.touches.begin();
        if self.vault.is_read_only() && self.follower.get().is_none() {
            let followed = Followed {
                vault: Arc::clone(&self.vault),
                table: Arc::clone(&self.table),
                attributes: Arc::clone(&self.attributes),
                touches: Arc::clone(&self.touches),
                kernel: Arc::clone(&self.kernel),
            };
            // There is none yet.
            let _ = self.follower.set(Follower::start(followed)?);
        }
        Ok(())
    }

    /// Publishes what is left if the mount ended in an orderly way, and waits for what is being
    /// published.
    pub(super) fn drain(&self, ending: Ending) -> Drained {
        let failed = self.counters.failed_publications.load(Ordering::Relaxed);
        self.appends.stop();
        self.vault.stop_counting();
        if ending != Ending::Aborted {
            self.left_over.publish_all(ending);
        }
        self.left_over.await_publications();
        Drained { ending, failed }
    }

    /// Makes everything durable, and remembers how far the vault has come.
    ///
    /// # Errors
    /// When something could not be published or made durable.
    pub(super) fn close(&self, drained: Drained) -> Result<(), VaultError> {
        let Drained { ending, failed } = drained;
        self.kernel.end();
        self.touches.end("the mount has ended");
        if let Some(follower) = self.follower.get() {
            follower.stop();
        }
        for routine in self.routines.get().into_iter().flatten() {
            routine.stop();
        }
        if !self.commits.close() {
            return Ok(());
        }
        // Nobody comes back to what was open, and what the kernel has forgotten last it may not have
        // told any more.
        if ending != Ending::Aborted
            && !self.vault.is_condemned()
            && let Err(error) = self.vault.reap_orphans()
        {
            tracing::warn!("left-overs stay until the next mount: {error}");
        }
        self.vault.sync()?;
        if let Err(error) = self.vault.record_findings() {
            tracing::error!("the history does not say what was found: {error}");
        }
        if let Err(error) = self.vault.keep_anchor() {
            tracing::warn!("{error}; this host does not remember how far the vault has come");
        }
        if self.counters.failed_publications.load(Ordering::Relaxed) > failed {
            return Err(VaultError::Unpublished);
        }
        Ok(())
    }

    /// The mounted vault.
    pub fn vault(&self) -> &Arc<Vault> {
        &self.vault
    }

    /// Number of files that programs have open.
    pub fn open_files(&self) -> usize {
        self.table.len()
    }

    /// What it is about, for `status`.
    pub(crate) fn activity(&self) -> Activity {
        Activity {
            device: self.device.get(),
            open_files: self.open_files(),
            watchers: self.touches.said(),
            published: self.counters.published.load(Ordering::Relaxed),
            failed_publications: self.counters.failed_publications.load(Ordering::Relaxed),
            memory_used: self.budget.used(),
            memory_limit: self.settings.max_memory,
        }
    }

    /// How often something read was not what was stored.
    pub(crate) fn unauthentic_reads(&self) -> u64 {
        errno::UNAUTHENTIC.load(Ordering::Relaxed)
    }
}

/// Turns a vault's result into a program's.
fn to_errno<T>(result: Result<T, VaultError>) -> Result<T, Errno> {
    Ok(result?)
}
