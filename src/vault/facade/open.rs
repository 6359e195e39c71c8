//! The way from a directory to an unlocked vault. Read [`Vault::open`] from top to bottom: nothing
//! is trusted before the line that verifies it, nothing is sent to a KMS key that is not pinned,
//! and nothing is written before everything is verified.

#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::crypto::schedule::VaultId;
use crate::keyring::{Event, EventKind, Header, Keyring, UnverifiedKeyring};
use crate::kms::{self, Kms, Provider};
use crate::store::{self, Holder, LocalPlace, Mode, ReadRecords as _, Record, Store};
use crate::sync::{Mutex, Rank};

use super::super::VaultError;
use super::super::cache::RecordCache;
use super::super::chronicle::Chronicle;
use super::super::commit::CommitQueue;
use super::super::commit::transact::Transactions;
use super::super::counting::{Counter, FEW};
use super::super::follow::{self, Follower};
use super::super::host::apart::must_be_apart;
use super::super::host::guard::{Remembered, RollbackGuard};
use super::super::host::memory::{HostMemory, Seen};
use super::super::integrity::Guard;
use super::super::leftovers::Leftovers;
use super::super::node::{Kind, Node, SYSTEM, Timestamp};
use super::super::options::OpenOptions;
use super::super::reading::Reader;
use super::super::records::{self, Records};
use super::super::rotation::{self, Rotation};
use super::super::state::{State, SystemKeys};
use super::super::unlocked::Unlocked;
use super::Vault;

/// When to count a vault that is going to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Before it is used. The caller that opens it waits at most this long.
    Before(Duration),
    /// While it is in use.
    Background,
}

/// The steps left after a vault was opened.
struct Opening {
    guard: RollbackGuard,
    rollback: Option<EventKind>,
}

/// The id that the vault at `path` claims, in hexadecimal. It is not authentic, since nothing is
/// unlocked for it.
///
/// # Errors
/// When there is no vault, or no valid header.
pub fn id_at(path: &Path) -> Result<String, VaultError> {
    Ok(claimed_id(path, Mode::ReadOnly)?.to_string())
}

/// The id that the vault at `path` claims, read in a `mode` for reading.
///
/// # Errors
/// As for [`id_at`].
pub(in crate::vault) fn claimed_id(path: &Path, mode: Mode) -> Result<VaultId, VaultError> {
    let anywhere = store::OpenOptions {
        unsafe_filesystem: true,
    };
    let (store, _) = store::open(path, mode, anywhere)?;
    claimed_by(&*store)
}

/// The id that the vault in `store` claims.
fn claimed_by(store: &dyn Store) -> Result<VaultId, VaultError> {
    let header = store::read(store, |records| Ok::<_, VaultError>(records.header()?))?;
    let header = header.ok_or_else(|| VaultError::tampered("the header", "is missing"))?;
    Ok(Header::decode(&header)?.vault())
}

/// The records with which opening begins, from one snapshot, all unverified.
struct Stored {
    header: Vec<u8>,
    keyring: Vec<u8>,
    state: Vec<u8>,
    system: Record,
}

impl Stored {
    fn read(store: &dyn Store) -> Result<Self, VaultError> {
        let missing = |what| VaultError::tampered(what, "is missing");
        store::read(store, |records| {
            Ok(Self {
                header: records.header()?.ok_or_else(|| missing("the header"))?,
                keyring: records
                    .keyring()?
                    .ok_or_else(|| missing("the keyring record"))?,
                state: records
                    .state()?
                    .ok_or_else(|| missing("the state record"))?,
                system: records
                    .node(SYSTEM)?
                    .ok_or_else(|| missing("the system node"))?,
            })
        })
    }
}

impl Vault {
    /// Opens and unlocks the vault in `path`.
    ///
    /// # Errors
    /// As [`VaultError::failure`] classifies them. After an error nothing on disk has changed.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, VaultError> {
        options.must_fit()?;
        Self::open_as(path, options)
    }

    /// Opens and unlocks a vault for writing although its records do not match: to repair it, or to
    /// retire a key despite them.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_to_repair(path: &Path, options: &OpenOptions) -> Result<Self, VaultError> {
        let options = OpenOptions {
            read_only: false,
            salvage: true,
            ..options.clone()
        };
        Self::open_as(path, &options)
    }

    /// Opens and unlocks the vault in an open store.
    #[cfg(test)]
    pub(in crate::vault) fn open_in(
        opened: (Arc<dyn Store>, LocalPlace),
        options: &OpenOptions,
    ) -> Result<Self, VaultError> {
        let (vault, opening) = Self::unlock_in(opened, options)?;
        vault.verify_and_adopt(Some(opening))?;
        Ok(vault)
    }

    fn open_as(path: &Path, options: &OpenOptions) -> Result<Self, VaultError> {
        let (vault, opening) = Self::unlock(path, options)?;
        match options.salvage {
            true => vault.adopt(opening)?,
            false => vault.verify_and_adopt(Some(opening))?,
        }
        Ok(vault)
    }

    /// Opens and unlocks a vault to serve it. With [`Verify::Before`], nothing may be served or
    /// written before the [verdict](Self::await_verdict). This function returns with the verdict,
    /// or after the time in `Verify::Before`; in that case a thread continues the count.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_to_serve(
        path: &Path,
        options: &OpenOptions,
        verify: Verify,
    ) -> Result<Arc<Self>, VaultError> {
        options.must_fit()?;
        let (vault, opening) = Self::unlock(path, options)?;
        let seen = vault.records.seen();
        if matches!(verify, Verify::Before(_))
            && !options.salvage
            && seen.nodes.saturating_add(seen.versions) <= FEW
        {
            // No other thread has begun yet.
            vault.verify_and_adopt(Some(opening))?;
            return Ok(Arc::new(vault));
        }
        let vault = Arc::new(vault);
        let (opening, patience) = match verify {
            Verify::Before(patience) if !options.salvage => {
                vault.guard.gate();
                (Some(opening), Some(patience))
            }
            // A salvage reports defects, and serves the rest.
            Verify::Before(_) | Verify::Background => {
                vault.adopt(opening)?;
                (None, None)
            }
        };
        let counting = Arc::clone(&vault);
        let count = move || {
            // Callers that wait for the verdict must get one, even after a panic.
            let verify = || counting.verify_and_adopt(opening);
            let verified = std::panic::catch_unwind(std::panic::AssertUnwindSafe(verify));
            let internal = |_| Err(VaultError::Setting("internal error in the count".into()));
            if let Err(error) = verified.unwrap_or_else(internal) {
                counting.guard.condemn(&error);
            }
        };
        let thread = std::thread::Builder::new()
            .name("count".into())
            .spawn(count);
        let thread =
            thread.map_err(|e| VaultError::Setting(format!("cannot start a thread: {e}")))?;
        vault.guard.is_counted_by(thread);
        match patience.and_then(|patience| vault.await_verdict(Some(patience))) {
            Some(Err(error)) => {
                vault.stop_counting();
                Err(error)
            }
            _ => Ok(vault),
        }
    }

    /// Opens and unlocks the vault. Changes nothing on disk.
    fn unlock(path: &Path, options: &OpenOptions) -> Result<(Self, Opening), VaultError> {
        let path = path.canonicalize().map_err(|e| {
            VaultError::Store(store::StoreError::new(
                store::StoreErrorKind::NotAVault,
                format_args!(
                    "there is no vault at {}: {e}; make one with `secretfs init`",
                    path.display()
                ),
            ))
        })?;
        let mode = match (options.read_only, options.still) {
            (true, true) => Mode::ReadStill,
            (true, false) => Mode::ReadOnly,
            (false, _) => Mode::Write(Holder::current(options.mountpoint.as_deref())),
        };
        let store_options = store::OpenOptions {
            unsafe_filesystem: options.unsafe_filesystem,
        };
        Self::unlock_in(store::open(&path, mode, store_options)?, options)
    }

    /// Unlocks the vault in an open store, which has its place on this host.
    fn unlock_in(
        (store, place): (Arc<dyn Store>, LocalPlace),
        options: &OpenOptions,
    ) -> Result<(Self, Opening), VaultError> {
        let path = place.directory();
        let remembered = Remembered::load(path, claimed_by(&*store)?, options)?;
        fail::fail_point!("memory-loaded");
        let stored = Stored::read(&*store)?;

        let unverified = UnverifiedKeyring::parse(&stored.header, &stored.keyring)?;
        let guard = RollbackGuard::begin(remembered, &unverified, options)?;
        let kms = kms::connect(&options.kms);
        if guard
            .pins
            .iter()
            .any(|pin| pin.provider() == Provider::Local)
        {
            must_be_apart(kms.local()?.dir(), path)?;
        }
        let keyring = unverified.unlock(&guard.pins, &kms)?;

        let system = Node::open(&keyring, SYSTEM, &stored.system)?;
        if system.kind != Kind::System {
            return Err(VaultError::tampered(
                "the system node",
                "is of another kind",
            ));
        }
        let system = SystemKeys::of(&system);
        let state = system.open(keyring.vault(), &stored.state)?;
        if state.keyring != keyring.body().sequence {
            return Err(VaultError::Rollback(format!(
                "the keyring record has sequence {}, but the vault's state belongs to {}: one of \
                 them was put back",
                keyring.body().sequence,
                state.keyring
            )));
        }
        let rollback = guard.compare(&keyring, &state, options)?;

        let unlocked = Unlocked::new(keyring, system);
        let host = HostMemory::new(guard.pins.clone(), options.pinned_keys.clone());
        let vault = Self::assemble((store, place), unlocked, state, (host, kms), options)?;
        // `check` reports defects of the history, too.
        match vault.read_history() {
            Err(_) if options.salvage && options.read_only => {}
            chronicle => *vault.chronicle.lock() = chronicle?,
        }
        Ok((vault, Opening { guard, rollback }))
    }

    /// Assembles the parts of an unlocked, verified vault; each gets the earlier parts that it
    /// needs.
    fn assemble(
        (store, place): (Arc<dyn Store>, LocalPlace),
        unlocked: Unlocked,
        state: State,
        (host, kms): (HostMemory, Kms),
        options: &OpenOptions,
    ) -> Result<Self, VaultError> {
        let keys = Arc::new(unlocked);
        let (host, kms) = (Arc::new(host), Arc::new(kms));
        let cache = Arc::new(RecordCache::default());
        let guard = Arc::new(Guard::new(options.salvage));
        let chronicle = Arc::new(Mutex::new(Rank::Chronicle, Chronicle::default()));
        let follower = options.read_only.then(|| {
            Arc::new(Follower::new(follow::Sources {
                store: Arc::clone(&store),
                keys: Arc::clone(&keys),
                cache: Arc::clone(&cache),
                chronicle: Arc::clone(&chronicle),
                guard: Arc::clone(&guard),
                host: Arc::clone(&host),
                kms: Arc::clone(&kms),
            }))
        });
        let queue = Arc::new(CommitQueue::new(state));
        let sources = records::Sources {
            store,
            place,
            keys,
            cache,
            guard: Arc::clone(&guard),
            queue: Arc::clone(&queue),
            follower: follower.clone(),
        };
        let records = Arc::new(Records::new(sources, options.salvage)?);
        let transactions = Arc::new(Transactions::new(
            queue,
            Arc::clone(&records),
            Arc::clone(&guard),
            Arc::clone(&host),
            Arc::clone(&chronicle),
        ));
        Ok(Self {
            reader: Reader::new(&records, &guard),
            counter: Counter {
                records: Arc::clone(&records),
                transactions: Arc::clone(&transactions),
                guard: Arc::clone(&guard),
            },
            leftovers: Leftovers {
                records: Arc::clone(&records),
                transactions: Arc::clone(&transactions),
                guard: Arc::clone(&guard),
            },
            rotation: Rotation::new(rotation::Parts {
                records: Arc::clone(&records),
                transactions: Arc::clone(&transactions),
                guard: Arc::clone(&guard),
                host: Arc::clone(&host),
                chronicle: Arc::clone(&chronicle),
                kms: Arc::clone(&kms),
            }),
            records,
            transactions,
            follower,
            guard,
            host,
            chronicle,
            kms,
        })
    }

    /// Counts all records, and takes the vault into use unless that is done already.
    fn verify_and_adopt(&self, opening: Option<Opening>) -> Result<(), VaultError> {
        let ControlFlow::Continue(state) = self.counter.count(&|| self.guard.go_on())? else {
            return Ok(());
        };
        if let Some(opening) = opening {
            self.adopt(opening)?;
        }
        self.guard.note_verified(state.commit);
        Ok(())
    }

    /// Takes a verified vault into use, and stores its anchor on this host.
    fn adopt(&self, opening: Opening) -> Result<(), VaultError> {
        let Opening { guard, rollback } = opening;
        let lower = rollback.is_some();
        if lower && let Some(anchors) = &guard.anchors {
            // Without an anchor the next mount would be refused again, in spite of the event.
            anchors.must_be_writable()?;
        }
        if !self.is_read_only() {
            self.adopt_as_writer(rollback)?;
        }
        let keyring = self.keyring();
        let seen = Seen {
            // The present commit: following a rotation or accepting a rollback may have changed it.
            keyring: &keyring,
            commit: self.records.seen().commit,
            read_only: self.is_read_only(),
        };
        self.host.begin(guard, seen, lower, || self.sync())
    }

    /// The first steps of a writer: announces itself, and finishes what the last one left.
    fn adopt_as_writer(&self, rollback: Option<EventKind>) -> Result<(), VaultError> {
        self.records.place().announce()?;
        if let Some(kind) = rollback {
            let event = Event {
                at: Timestamp::now().seconds,
                late: false,
                kind,
            };
            let record = |keyring: &mut Keyring| Ok(Some(keyring.record_event(&event)));
            self.transactions.change_keyring(record, |_| Ok(()))?;
        }
        // Records that do not match must not decide which others are removed.
        match self.is_salvage() {
            true => self.sync(),
            false => {
                self.records.place().take_over();
                self.reap_orphans()
            }
        }
    }

    /// Reads the key-management history and verifies it up to the end that the keyring names.
    fn read_history(&self) -> Result<Chronicle, VaultError> {
        let head = &self.keyring().body().history.clone();
        self.records.read(|records| Chronicle::read(records, head))
    }
}
