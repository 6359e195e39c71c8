//! Making a vault, and the way from a directory to an unlocked one. Read [`Vault::open`] from top
//! to bottom: nothing is trusted before the line that verifies it, nothing is sent to a KMS key
//! that is not pinned, and nothing is written before everything was verified.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::crypto::schedule::VaultId;
use crate::crypto::secret::fill_random;
use crate::keyring::{Event, EventKind, Header, Keyring, UnverifiedKeyring};
use crate::kms::{self, KeyUri, Provider};
use crate::store::{self, Holder, KeyedRecord, Mode, SqliteStore, Store as _};
use crate::sync::{Mutex, Rank, RwLock};

use super::cache::{RecordCache, SealedCache};
use super::chronicle::Chronicle;
use super::counting::FEW;
use super::current::Current;
use super::host::anchor::{Anchor, Anchors, hex};
use super::host::apart::{self, must_be_apart};
use super::host::guard::RollbackGuard;
use super::host::memory::{HostMemory, Seen};
use super::integrity::Guard;
use super::node::{Attributes, Body, DirectoryBody, Kind, Node, ROOT, SYSTEM, Timestamp};
use super::options::{InitOptions, OpenOptions};
use super::state::{State, SystemKeys};
use super::turns::Turns;
use super::tx::Tx;
use super::{Vault, VaultError};

/// A vault was made.
#[derive(Clone, Debug)]
pub struct Created {
    /// Its id, in hexadecimal.
    pub vault_id: String,
    /// The KMS keys that wrap its master key.
    pub kms_keys: Vec<KeyUri>,
    /// Where keys of the local KMS had to be made.
    pub local_keys_created: Option<PathBuf>,
    /// What makes the vault less secret than it could be, in words for people.
    pub warnings: Vec<String>,
}

/// When a vault that is going to be served is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Before anything of it is used. Whoever opens it is not kept waiting for longer than this.
    Before(Duration),
    /// While it is used.
    Background,
}

/// What is left to be done with a vault that was opened.
struct Opening {
    guard: RollbackGuard,
    rollback: Option<EventKind>,
}

/// Makes a vault in `path`, which must not exist or be an empty directory: a whole one or none.
///
/// # Errors
/// When there is something already, a KMS key does not serve, or a medium fails.
pub fn init(path: &Path, options: &InitOptions) -> Result<Created, VaultError> {
    let path = std::path::absolute(path).map_err(|e| {
        VaultError::Setting(format!("cannot tell where {} is: {e}", path.display()))
    })?;
    must_be_free(&path)?;
    let anchors = options.anchor_dir.as_ref().map(Anchors::at);
    if let Some(anchors) = &anchors {
        anchors.must_be_writable()?;
    }
    let kms = kms::connect(&options.kms);
    let mut local_keys_created = None;
    for uri in options
        .kms_keys
        .iter()
        .filter(|uri| uri.provider() == Provider::Local)
    {
        must_be_apart(kms.local()?.dir(), &path)?;
        if kms.local()?.ensure(uri.key())? {
            local_keys_created = Some(kms.local()?.dir().to_owned());
        }
    }

    let mut id = [0; 16];
    fill_random(&mut id)?;
    let vault = VaultId(id);
    let now = Timestamp::now();
    let mut keyring = Keyring::create(&Header::new(vault), &options.kms_keys, &kms, now.seconds)?;
    let uris: Vec<String> = options.kms_keys.iter().map(ToString::to_string).collect();
    let created = EventKind::Created {
        kms_keys: uris.clone(),
    };
    let event = keyring.record_event(&Event {
        at: now.seconds,
        late: false,
        kind: created,
    });

    let mut failure = None;
    let made = SqliteStore::create(&path, &mut |records| {
        let mut found = || -> Result<(), VaultError> {
            records.put_header(keyring.header_bytes())?;
            let (system, root) = first_nodes(&keyring, options, now)?;
            let keys = SystemKeys::of(&system);
            let cache = RecordCache::default();
            let mut tx = Tx::new(&keyring, &keys, &cache, records, State::empty(ROOT));
            tx.put_keyring(std::slice::from_ref(&event))?;
            tx.found(system, root)?;
            let commit = tx.finish()?.0.commit;
            // Before there is a vault: one that was not remembered would not be a whole one.
            let Some(anchors) = &anchors else {
                return Ok(());
            };
            let path = path.canonicalize().unwrap_or_else(|_| path.clone());
            let mut anchor = Anchor::new(vault, &path, uris.clone());
            anchor.keyring_sequence = keyring.body().sequence;
            anchor.keyring_digest = hex(&crate::crypto::schedule::digest(&[&keyring.encode()]));
            anchor.commit_sequence = commit;
            anchors.take_over(&anchor)
        };
        found().map_err(|error| {
            failure = Some(error);
            store::Abort
        })
    });
    if !matches!(made, Ok(Ok(())))
        && let Some(anchors) = &anchors
    {
        anchors.forget(vault);
    }
    if let Some(error) = failure {
        return Err(error);
    }
    // That something is missing does not mean that a vault is: there is to be none yet.
    let made = made.map_err(|error| match error.kind {
        store::StoreErrorKind::NotAVault => {
            store::StoreError::new(store::StoreErrorKind::Io, error)
        }
        _ => error,
    })?;
    if made.is_err() {
        return Err(VaultError::Setting("the vault was not made".into()));
    }

    Ok(Created {
        vault_id: vault.to_string(),
        kms_keys: options.kms_keys.clone(),
        local_keys_created,
        warnings: kms.local().map_or_else(
            |_| Vec::new(),
            |local| apart::warnings(local, &path, uris.iter().map(String::as_str)),
        ),
    })
}

fn first_nodes(
    keyring: &Keyring,
    options: &InitOptions,
    now: Timestamp,
) -> Result<(Node, Attributes), VaultError> {
    let owner = (options.uid, options.gid);
    let attributes = |body, mode| Attributes::of_new(mode, owner, now, body);
    let system = Node::create(
        keyring,
        SYSTEM,
        Kind::System,
        attributes(Body::Special(0), 0),
    )?;
    let root = attributes(Body::Directory(DirectoryBody::new(ROOT, [0; 32])), 0o755);
    Ok((system, root))
}

/// Refuses a path that has something already, before any key is made for it.
fn must_be_free(path: &Path) -> Result<(), VaultError> {
    let refused = |kind, why: &str| {
        VaultError::Store(store::StoreError::new(
            kind,
            format_args!(
                "cannot make a vault at {}: {why}; choose a path that does not exist or an empty directory",
                path.display()
            ),
        ))
    };
    let taken = |why: &str| refused(store::StoreErrorKind::Occupied, why);
    match std::fs::read_dir(path) {
        Ok(_) if path.join("vault.db").exists() => Err(refused(
            store::StoreErrorKind::Exists,
            "there is a vault already",
        )),
        Ok(mut entries) => {
            match entries.all(|entry| entry.is_ok_and(|entry| store::is_left_over(&entry))) {
                true => Ok(()),
                false => Err(taken("the directory is not empty")),
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && path.is_symlink() => {
            Err(taken("it is a symbolic link to nothing"))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => match path.parent() {
            Some(parent) if !parent.is_dir() => Err(VaultError::Setting(format!(
                "cannot make a vault at {}: the directory {} does not exist; make it first",
                path.display(),
                parent.display()
            ))),
            _ => Ok(()),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => Err(taken("it is no directory")),
        Err(e) => Err(taken(&e.to_string())),
    }
}

/// What the vault at `path` calls itself, in hexadecimal. Nothing is unlocked for that, so nothing of it
/// is authentic.
///
/// # Errors
/// When there is no vault, or its header is none.
pub fn id_at(path: &Path) -> Result<String, VaultError> {
    let anywhere = store::OpenOptions {
        unsafe_filesystem: true,
    };
    let store = SqliteStore::open(path, Mode::ReadOnly, anywhere)?;
    let header = store::read(&store, |records| Ok::<_, VaultError>(records.header()?))?;
    let header = header.ok_or_else(|| VaultError::tampered("the header", "is missing"))?;
    Ok(Header::decode(&header)?.vault().to_string())
}

/// What opening begins with, from one snapshot, all of it unverified.
struct Stored {
    header: Vec<u8>,
    keyring: Vec<u8>,
    state: Vec<u8>,
    system: KeyedRecord,
}

impl Stored {
    fn read(store: &SqliteStore) -> Result<Self, VaultError> {
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
    /// See [`VaultError::failure`]. After an error nothing on disk has changed.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, VaultError> {
        options.must_fit()?;
        Self::open_as(path, options)
    }

    /// Opens and unlocks it for writing although what is stored does not fit together: to repair it,
    /// or to remove a key all the same.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_to_mend(path: &Path, options: &OpenOptions) -> Result<Self, VaultError> {
        let options = OpenOptions {
            read_only: false,
            salvage: true,
            ..options.clone()
        };
        Self::open_as(path, &options)
    }

    fn open_as(path: &Path, options: &OpenOptions) -> Result<Self, VaultError> {
        let (vault, opening) = Self::unlock(path, options)?;
        match options.salvage {
            true => vault.settle_in(opening)?,
            false => vault.verify_and_settle_in(Some(opening))?,
        }
        Ok(vault)
    }

    /// Opens and unlocks it to be served. With [`Verify::Before`], nothing of it may be served or
    /// written before there is a [verdict](Self::await_verdict): this returns when there is one, or
    /// later, with a thread that sees to it.
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
        let seen = vault.seen();
        if matches!(verify, Verify::Before(_))
            && !options.salvage
            && seen.nodes.saturating_add(seen.versions) <= FEW
        {
            // Before another thread has begun.
            vault.verify_and_settle_in(Some(opening))?;
            return Ok(Arc::new(vault));
        }
        let vault = Arc::new(vault);
        let (opening, patience) = match verify {
            Verify::Before(patience) if !options.salvage => {
                vault.guard.gate();
                (Some(opening), Some(patience))
            }
            // What is wrong with what is left is told, and served all the same.
            Verify::Before(_) | Verify::Background => {
                vault.settle_in(opening)?;
                (None, None)
            }
        };
        let counting = Arc::clone(&vault);
        let count = move || {
            // Whoever waits for the verdict must get one.
            let verify = || counting.verify_and_settle_in(opening);
            let verified = std::panic::catch_unwind(std::panic::AssertUnwindSafe(verify));
            let internal = |_| Err(VaultError::Setting("internal error in the count".into()));
            if let Err(error) = verified.unwrap_or_else(internal) {
                counting.condemn(&error);
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

    /// Opens and unlocks it. Nothing on disk has changed.
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
        let store = SqliteStore::open(&path, mode, store_options)?;
        let stored = Stored::read(&store)?;

        let unverified = UnverifiedKeyring::parse(&stored.header, &stored.keyring)?;
        let guard = RollbackGuard::begin(&path, &unverified, options)?;
        let kms = kms::connect(&options.kms);
        if guard
            .pins
            .iter()
            .any(|pin| pin.provider() == Provider::Local)
        {
            must_be_apart(kms.local()?.dir(), &path)?;
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

        let vault = Self {
            foreign: AtomicU64::new(store.foreign_changes()?),
            store,
            keyring: RwLock::new(Rank::Keyring, Arc::new(keyring)),
            kms,
            pins: guard.pins.clone(),
            named_keys: options.pinned_keys.clone(),
            rotation: super::rotation::Rotation::default(),
            system: RwLock::new(Rank::SystemKeys, Arc::new(system)),
            cache: RecordCache::default(),
            sealed: SealedCache::default(),
            seen: RwLock::new(Rank::Seen, state.clone()),
            state: Mutex::new(Rank::State, state),
            turns: Turns::default(),
            path,
            read_only: options.read_only,
            salvage: options.salvage,
            current: Current::new(),
            guard: Guard::default(),
            host: HostMemory::default(),
            chronicle: Mutex::new(Rank::Chronicle, Chronicle::default()),
        };
        // `check` says what is wrong with the history, too.
        match vault.read_history() {
            Err(_) if options.salvage && options.read_only => {}
            chronicle => *vault.lock_chronicle() = chronicle?,
        }
        Ok((vault, Opening { guard, rollback }))
    }

    /// Counts everything that was stored, and takes it into use if that is still to be done.
    fn verify_and_settle_in(&self, opening: Option<Opening>) -> Result<(), VaultError> {
        let ControlFlow::Continue(state) = self.count(&|| self.guard.go_on())? else {
            return Ok(());
        };
        if let Some(opening) = opening {
            self.settle_in(opening)?;
        }
        self.guard.note_verified(state.commit);
        Ok(())
    }

    /// Takes a vault that is what it should be into use, and remembers it on this host.
    fn settle_in(&self, opening: Opening) -> Result<(), VaultError> {
        let Opening { guard, rollback } = opening;
        let lower = rollback.is_some();
        if lower && let Some(anchors) = &guard.anchors {
            // Or the next mount would be refused again, the event notwithstanding.
            anchors.must_be_writable()?;
        }
        if !self.read_only {
            self.settle(rollback)?;
        }
        let keyring = self.keyring();
        let seen = Seen {
            // As it is by now: a rotation may have been followed, and an accepted rollback changes it.
            keyring: &keyring,
            commit: self.seen().commit,
            read_only: self.read_only,
        };
        self.host.begin(guard, seen, lower, || self.sync())
    }

    /// A writer's first deeds: says who it is, and finishes what the last one left.
    fn settle(&self, rollback: Option<EventKind>) -> Result<(), VaultError> {
        self.store.announce()?;
        if let Some(kind) = rollback {
            let event = Event {
                at: Timestamp::now().seconds,
                late: false,
                kind,
            };
            self.change_keyring(|keyring| Ok(Some(keyring.record_event(&event))), |_| Ok(()))?;
        }
        // What does not fit must not decide what goes.
        match self.salvage {
            true => self.sync(),
            false => {
                self.store.adopt_wal();
                self.reap_orphans()
            }
        }
    }

    /// Reads the key-management history and verifies it, as far as the keyring goes.
    fn read_history(&self) -> Result<Chronicle, VaultError> {
        self.read(|records| Chronicle::read(records, &self.keyring().body().history))
    }
}
