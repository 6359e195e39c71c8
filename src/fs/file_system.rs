//! A mounted vault as a whole: it puts the parts together, runs the background threads, and ends
//! the mount. The parts answer requests.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use crate::vault::{Vault, VaultError};

use super::appended::Appended;
use super::appends::Appends;
use super::askers::Askers;
use super::beside::Beside;
use super::budget::Budget;
use super::closing::Closing;
use super::commits::Commits;
use super::counters::Counters;
use super::directories::Directories;
use super::drafts::Drafts;
use super::ending::{Ending, LeftOver};
use super::failures::Failures;
use super::follow::{Followed, Follower};
use super::getattr::Attributes;
use super::kernel::{Device, Kernel, Transport};
use super::loading::Loader;
use super::names::Names;
use super::nodes::Nodes;
use super::open::Opens;
use super::page_cache::PageCache;
use super::publication_wait::PublicationWait;
use super::publish::Publisher;
use super::read::Reads;
use super::reaping::Reaping;
use super::room::DiskRoom;
use super::routine::Routine;
use super::set_id::SetIdBits;
use super::setattr::AttributeChanges;
use super::settings::Settings;
use super::table::Table;
use super::touch::Touches;
use super::truncation::Truncation;
use super::upkeep;
use super::watchers::Watchers;
use super::write::Writes;
use super::xattrs::Xattrs;

/// The activity of a file system at one moment.
pub(crate) struct Activity {
    /// The device number of the mount, as `major, minor`; `None` if another program has mounted it.
    pub(crate) device: Option<(u32, u32)>,
    pub(crate) open_files: usize,
    /// `woken`, or the reason why watchers of files are not.
    pub(crate) watchers: String,
    pub(crate) published: u64,
    pub(crate) failed_publications: u64,
    /// Bytes of drafts and snapshots, and the limit on them.
    pub(crate) memory_used: u64,
    pub(crate) memory_limit: u64,
}

/// A file system whose remaining data was published, as far as possible.
#[derive(Clone, Copy, Debug)]
#[must_use = "it is to be closed"]
pub(super) struct Drained {
    ending: Ending,
    /// Number of publications that failed before.
    failed: u64,
}

/// A mounted vault.
pub struct FileSystem {
    vault: Arc<Vault>,
    max_memory: u64,
    // The parts that answer requests.
    pub(super) names: Arc<Names>,
    pub(super) directories: Directories,
    pub(super) attributes: Arc<Attributes>,
    pub(super) changes: Arc<AttributeChanges>,
    pub(super) xattrs: Xattrs,
    pub(super) opens: Arc<Opens>,
    pub(super) reads: Arc<Reads>,
    pub(super) writes: Arc<Writes>,
    pub(super) set_id: Arc<SetIdBits>,
    pub(super) closing: Arc<Closing>,
    pub(super) beside: Arc<Beside>,
    pub(super) room: Arc<DiskRoom>,
    // The parts that those share.
    table: Arc<Table>,
    budget: Arc<Budget>,
    counters: Arc<Counters>,
    failures: Arc<Failures>,
    kernel: Arc<Kernel>,
    device: Arc<Device>,
    page_cache: Arc<PageCache>,
    commits: Arc<Commits>,
    // The background threads.
    appends: Arc<Appends>,
    /// The thread of `appends` publishes through this until it is dropped.
    _appended: Arc<Appended>,
    routines: [Routine; 2],
    touches: Arc<Touches>,
    follower: OnceLock<Follower>,
    left_over: LeftOver,
}

impl std::fmt::Debug for FileSystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileSystem({:?})", self.vault)
    }
}

impl FileSystem {
    /// Serves `vault`. Starts the writer's thread, those that update anchor and integrity, and the
    /// one that publishes appended data.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(vault: impl Into<Arc<Vault>>, settings: Settings) -> std::io::Result<Arc<Self>> {
        let vault: Arc<Vault> = vault.into();
        let failures: Arc<Failures> = Arc::default();
        let commits = Arc::new(Commits::start(&vault, &failures)?);
        let table = Arc::new(Table::of(vault.is_read_only()));
        let askers: Arc<Askers> = Arc::default();
        let nodes = Arc::new(Nodes::new(&vault, &table, &askers, &failures));
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
        let publications = Arc::new(PublicationWait {
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
            publications: Arc::clone(&publications),
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
            failures: Arc::clone(&failures),
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
            failures: Arc::clone(&failures),
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
            failures: Arc::clone(&failures),
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
            failures: Arc::clone(&failures),
            table: Arc::clone(&table),
            nodes: Arc::clone(&nodes),
            budget: Arc::clone(&budget),
            appends: Arc::clone(&appends),
        });
        let reads = Arc::new(Reads {
            end_patience: settings.end_patience,
            vault: Arc::clone(&vault),
            failures: Arc::clone(&failures),
            table: Arc::clone(&table),
            nodes: Arc::clone(&nodes),
            loader: Arc::clone(&loader),
            page_cache: Arc::clone(&page_cache),
            publications: Arc::clone(&publications),
            budget: Arc::clone(&budget),
            device: Arc::clone(&device),
        });
        let writes = Arc::new(Writes {
            table: Arc::clone(&table),
            drafts: Arc::clone(&drafts),
            set_id: Arc::clone(&set_id),
            publications: Arc::clone(&publications),
            closing: Arc::clone(&closing),
        });
        let truncation = Arc::new(Truncation {
            table: Arc::clone(&table),
            nodes: Arc::clone(&nodes),
            drafts: Arc::clone(&drafts),
            publisher: Arc::clone(&publisher),
            closing: Arc::clone(&closing),
            publications: Arc::clone(&publications),
        });
        let changes = Arc::new(AttributeChanges {
            is_read_only: vault.is_read_only(),
            failures: Arc::clone(&failures),
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
            failures: Arc::clone(&failures),
            table: Arc::clone(&table),
            askers: Arc::clone(&askers),
            budget: Arc::clone(&budget),
            nodes: Arc::clone(&nodes),
            loader: Arc::clone(&loader),
            attributes: Arc::clone(&attributes),
        });
        let names = Arc::new(Names {
            vault: Arc::clone(&vault),
            failures: Arc::clone(&failures),
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
            publications: Arc::clone(&publications),
            set_id: Arc::clone(&set_id),
            reaping: Arc::clone(&reaping),
            room: Arc::clone(&room),
            loader: Arc::clone(&loader),
            budget: Arc::clone(&budget),
            kernel: Arc::clone(&kernel),
        });
        let directories = Directories::new(
            &vault,
            &failures,
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
        if !vault.is_read_only() {
            let appended = Arc::downgrade(&appended);
            appends.start(move |node| {
                let appended = appended.upgrade();
                appended
                    .inspect(|appended| appended.publish(node))
                    .is_some()
            })?;
        }
        let routines = upkeep::start(&vault, &askers, &reaping, settings.verify_every)?;
        Ok(Arc::new(Self {
            max_memory: settings.max_memory,
            names,
            directories,
            attributes,
            changes,
            xattrs,
            opens,
            reads,
            writes,
            set_id,
            closing,
            beside,
            room,
            table,
            budget,
            counters,
            failures,
            kernel,
            device,
            page_cache,
            commits,
            appends,
            _appended: appended,
            routines,
            touches,
            follower: OnceLock::new(),
            left_over,
            vault,
        }))
    }

    /// Sets the transport. Starts the thread that makes the kernel drop pages.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn attach(&self, transport: Arc<dyn Transport>) -> std::io::Result<()> {
        let stale = self.kernel.attach(&transport);
        // The thread ends with the file system, which owns the sender.
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

    /// Sets the device number of the mount.
    pub fn attach_device(&self, device: (u32, u32)) {
        self.device.attach(device);
    }

    /// The queue of files to touch for watchers.
    pub fn touches(&self) -> &Arc<Touches> {
        &self.touches
    }

    /// From now on, the thread that serves [`touches`](Self::touches) wakes watchers of files.
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
            // There is no follower yet.
            let _ = self.follower.set(Follower::start(followed)?);
        }
        Ok(())
    }

    /// Publishes the data left as `ending` allows, and waits for publications under way.
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

    /// Makes everything durable, and stores the vault's commit in the anchor.
    ///
    /// # Errors
    /// When data could not be published or made durable.
    pub(super) fn close(&self, drained: Drained) -> Result<(), VaultError> {
        let Drained { ending, failed } = drained;
        self.kernel.end();
        self.touches.end("the mount has ended");
        if let Some(follower) = self.follower.get() {
            follower.stop();
        }
        for routine in &self.routines {
            routine.stop();
        }
        if !self.commits.close() {
            return Ok(());
        }
        // No program returns to open files now, and the kernel may not have reported the last nodes
        // that it forgot.
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

    /// Its present activity, for `status`.
    pub(crate) fn activity(&self) -> Activity {
        Activity {
            device: self.device.get(),
            open_files: self.open_files(),
            watchers: self.touches.said(),
            published: self.counters.published.load(Ordering::Relaxed),
            failed_publications: self.counters.failed_publications.load(Ordering::Relaxed),
            memory_used: self.budget.used(),
            memory_limit: self.max_memory,
        }
    }

    /// The failures of the mount, for threads that read from the vault without a request.
    pub(crate) fn failures(&self) -> &Arc<Failures> {
        &self.failures
    }
}
