//! Backups: copies a vault as of one commit, and makes a vault of such a copy.
//!
//! A backup is a directory with a vault of the same id and the same records, sealed as in the
//! original: copying uses no key and sees no plaintext. Data that a host keeps beside a vault
//! (anchors, pins, the lock, the socket) stays behind, and so do keys of the local KMS.
//!
//! `backup` and `restore` both make the copy under another name, verify every record of it from the
//! disk, and then rename it in one step that replaces nothing. They must never write to the
//! original, nor leave a partial copy under the name of a complete one.

mod partial;
mod report;
mod target;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::crypto::schedule::{VaultId, digest};
use crate::error::{Class, Error};
use crate::keyring::{Event, EventKind, Header};
use crate::kms::KeyUri;
use crate::store::{self, CopyError, GoOn, Holder, Mode, SqliteStore};

use super::check::check_records_while;
use super::host::anchor::{Anchor, Anchors, hex};
use super::host::apart::real_path;
use super::node::Timestamp;
use super::{CheckReport, OpenOptions, Vault, VaultError};

use partial::Partial;
use target::Target;

pub use report::{CopyReport, NeededKey};

/// Limit on the wait until the database of a copy holds all of it.
const CLOSING: Duration = Duration::from_secs(120);

/// Copies the vault in `path`, as of one commit, to `to`, which must not exist. Other processes may
/// write the vault meanwhile.
///
/// # Errors
/// As for [`check`](super::check); when `to` cannot be made; `Integrity` when a record of the copy
/// is not what was sealed; `Interrupted` once `go_on` breaks. Then nothing is at `to`.
pub fn backup(
    path: &Path,
    to: &Path,
    options: &OpenOptions,
    go_on: GoOn<'_>,
) -> Result<CopyReport, Error> {
    let target = Target::of(to)?;
    target.must_be_outside_of(&real_path(path))?;
    target.must_be_safe(options.unsafe_filesystem)?;
    // The check of the copy finds all defects, so the first one must not end this.
    let looking = OpenOptions {
        read_only: true,
        salvage: true,
        ..options.clone()
    };
    let source = Vault::open(path, &looking)?;
    let seen = source.records().seen().commit;
    let partial = Partial::begin(&target)?;
    copy(source.records().store(), &partial, options, go_on)?;
    partial.settle(false)?;
    die_at!("copy-settled");
    // These include keys to which another mount has moved the vault meanwhile.
    let vault = source.keyring().vault();
    let pins = source.host().allowed_keys(vault);
    let trusting = unremembered(options, Some(vault), pins);
    let (copied, found) = checked(&partial.copy(), &trusting, go_on)?;
    let shown = path.display();
    if let Some(problems) = problems(&found) {
        let why = format!(
            "no backup was made: the copy of {shown} has {problems}; `secretfs check {shown}` \
             tells whether the vault itself is damaged"
        );
        return Err(Error::new(Class::Integrity, why));
    }
    let commit = copied.records().seen().commit;
    if commit < seen {
        return Err(VaultError::went_back(seen, commit).into());
    }
    let keyring = copied.keyring();
    let report = CopyReport::of(&target.path, commit, &found, &keyring, &options.kms);
    drop(copied);
    die_at!("copy-verified");
    partial.name(&target)?;
    Ok(report)
}

/// Makes a vault at `to`, which must not exist, of the backup in `path`, which stays as it is, to
/// the byte. The history of the new vault records that an older state was accepted, and this host
/// remembers the new vault in that state.
///
/// # Errors
/// As for [`backup`]. Then nothing is at `to`.
pub fn restore(
    path: &Path,
    to: &Path,
    options: &OpenOptions,
    go_on: GoOn<'_>,
) -> Result<CopyReport, Error> {
    let target = Target::of(to)?;
    target.must_be_outside_of(&real_path(path))?;
    target.must_be_safe(options.unsafe_filesystem)?;
    target.must_not_be_mounted()?;
    must_not_be_in_use(path)?;
    let memory = Memory::of(path, options)?;
    let pins = memory.pins(options)?;
    let looking = unremembered(options, None, pins);
    let (source, found) = checked(path, &looking, go_on)?;
    if let Some(problems) = problems(&found) {
        let shown = path.display();
        let why = format!(
            "{shown} is damaged, and nothing was restored: it has {problems}; use another backup"
        );
        return Err(Error::new(Class::Integrity, why));
    }
    let partial = Partial::begin(&target)?;
    copy(source.records().store(), &partial, options, go_on)?;
    let pins = source.host().allowed_keys(memory.vault);
    let trusting = unremembered(options, Some(memory.vault), pins);
    let restored = memory.restored(&partial, &trusting, &target, &source)?;
    die_at!("restore-recorded");
    partial.settle(true)?;
    die_at!("copy-settled");
    let (copied, found) = checked(&partial.copy(), &trusting, go_on)?;
    if let Some(problems) = problems(&found) {
        let shown = target.parent.display();
        let why = format!(
            "nothing was restored: the copy, unlike the backup, has {problems}; see whether the \
             disk under {shown} is in order"
        );
        return Err(Error::new(Class::Integrity, why));
    }
    let commit = copied.records().seen().commit;
    let keyring = copied.keyring();
    let report = CopyReport::of(&target.path, commit, &found, &keyring, &options.kms);
    drop(copied);
    die_at!("copy-verified");
    // Store the anchor before the rename: after a kill in between there is no vault yet, and
    // another run makes it.
    memory.take_over(&restored)?;
    die_at!("restore-remembered");
    if let Err(error) = partial.name(&target) {
        if target.path.symlink_metadata().is_err() {
            memory.put_back();
        }
        return Err(error);
    }
    Ok(report)
}

/// Copies all of `from` into a new store in `partial`, and closes that store.
fn copy(
    from: &SqliteStore,
    partial: &Partial,
    options: &OpenOptions,
    go_on: GoOn<'_>,
) -> Result<(), Error> {
    let failed = |error| Error::from(VaultError::Store(error));
    let store_options = store::OpenOptions {
        unsafe_filesystem: options.unsafe_filesystem,
    };
    let copy = partial.copy();
    die_at!("copy-begun");
    let made = SqliteStore::create_with(&copy, store_options, &mut |_| Ok(()));
    if made.map_err(failed)?.is_err() {
        return Err(Error::new(Class::Internal, "the copy was not begun"));
    }
    die_at!("copy-made");
    let mode = Mode::Write(Holder::unknown());
    let to = SqliteStore::open(&copy, mode, store_options).map_err(failed)?;
    let go_on_or_die = || {
        die_at!("copy-part");
        go_on()
    };
    store::copy(from, &to, &go_on_or_die).map_err(|error| match error {
        CopyError::Store(error) => failed(error),
        CopyError::Interrupted => interrupted(),
    })?;
    die_at!("copy-copied");
    // Closing the store would report no failure, so empty the WAL first.
    let deadline = Instant::now() + CLOSING;
    while !to.truncate_wal().map_err(failed)? {
        if go_on().is_break() {
            return Err(interrupted());
        }
        if Instant::now() > deadline {
            let why = format!(
                "cannot finish {}: another program has it open",
                copy.display()
            );
            return Err(Error::new(Class::Failed, why));
        }
        // The store's own checkpoint thread may be at work.
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Opens the vault in `path`, whose files nobody changes, and checks all of it.
fn checked(
    path: &Path,
    options: &OpenOptions,
    go_on: GoOn<'_>,
) -> Result<(Vault, CheckReport), Error> {
    let options = OpenOptions {
        read_only: true,
        salvage: true,
        still: true,
        ..options.clone()
    };
    let vault = Vault::open(path, &options)?;
    let report = check_records_while(vault.records(), go_on)?;
    match go_on().is_break() {
        true => Err(interrupted()),
        false => Ok((vault, report)),
    }
}

/// The number of problems in a report, with the first problem; `None` without any.
fn problems(report: &CheckReport) -> Option<String> {
    let first = report.problems.first()?;
    let (count, what) = (report.problem_count, &first.what);
    let s = if count == 1 { "" } else { "s" };
    Some(format!("{count} problem{s} ({what})"))
}

fn interrupted() -> Error {
    Error::new(
        Class::Interrupted,
        "interrupted; what was begun was removed",
    )
}

/// Options for opening a copy, which this host's memory of the vault does not concern.
fn unremembered(options: &OpenOptions, vault: Option<VaultId>, pins: Vec<KeyUri>) -> OpenOptions {
    let vault = vault.map(|vault| vault.to_string());
    OpenOptions {
        read_only: false,
        accept_rollback: false,
        pinned_keys: pins,
        pinned_vault_id: vault.or_else(|| options.pinned_vault_id.clone()),
        require_anchor: false,
        salvage: false,
        still: false,
        anchor_dir: None,
        mountpoint: None,
        ..options.clone()
    }
}

/// Refuses a vault that a process has open for writing.
fn must_not_be_in_use(path: &Path) -> Result<(), Error> {
    match store::holder(path).map_err(VaultError::Store)? {
        None => Ok(()),
        Some(holder) => Err(Error::new(
            Class::Busy,
            format!(
                "{} is no backup but a vault in use: it is open for writing by {holder}; make a \
                 backup of it with `secretfs backup`",
                path.display()
            ),
        )),
    }
}

/// This host's memory of a vault that is being restored.
struct Memory {
    vault: VaultId,
    anchors: Option<Anchors>,
    /// The anchor as it was before.
    anchor: Option<Anchor>,
}

impl Memory {
    fn of(path: &Path, options: &OpenOptions) -> Result<Self, Error> {
        let vault = claimed_id(path, options)?;
        let anchors = options.anchor_dir.as_ref().map(Anchors::at);
        let mut anchor = None;
        if let Some(anchors) = &anchors {
            // Without a new anchor the next mount would be refused.
            anchors.must_be_writable()?;
            anchor = anchors.load(vault)?;
        }
        if anchor.is_none() && options.require_anchor {
            let why = format!(
                "this host has no anchor of vault {vault}, and require-anchor is set; restore it \
                 once without, where you can trust the backup"
            );
            return Err(VaultError::Rollback(why).into());
        }
        Ok(Self {
            vault,
            anchors,
            anchor,
        })
    }

    /// The KMS keys that may be asked. If empty, those of the backup, which is then trusted on
    /// first use.
    fn pins(&self, options: &OpenOptions) -> Result<Vec<KeyUri>, Error> {
        if !options.pinned_keys.is_empty() {
            return Ok(options.pinned_keys.clone());
        }
        let known = self.anchor.iter().flat_map(|anchor| &anchor.kms_keys);
        let parsed = known.map(|uri| uri.parse().map_err(|e| Error::new(Class::Integrity, e)));
        parsed.collect()
    }

    /// Records in the history of the copy that an older state was accepted. Returns the anchor for
    /// the copy.
    fn restored(
        &self,
        partial: &Partial,
        options: &OpenOptions,
        target: &Target,
        source: &Vault,
    ) -> Result<Anchor, Error> {
        let vault = Vault::open(&partial.copy(), options)?;
        let anchor = self.anchor.as_ref();
        let event = Event {
            at: Timestamp::now().seconds,
            late: false,
            kind: EventKind::RollbackAccepted {
                seen_keyring: anchor.map_or(0, |anchor| anchor.keyring_sequence),
                accepted_keyring: source.keyring().body().sequence,
                seen_commit: anchor.map_or(0, |anchor| anchor.commit_sequence),
                accepted_commit: source.records().seen().commit,
            },
        };
        vault
            .transactions()
            .change_keyring(|keyring| Ok(Some(keyring.record_event(&event))), |_| Ok(()))?;
        vault.sync()?;
        let pins = source.host().allowed_keys(self.vault);
        let mut uris: Vec<String> = pins.iter().map(ToString::to_string).collect();
        for known in anchor.iter().flat_map(|anchor| &anchor.kms_keys) {
            if !uris.contains(known) {
                uris.push(known.clone());
            }
        }
        let keyring = vault.keyring();
        let mut restored = Anchor::new(self.vault, &target.path, uris);
        restored.keyring_sequence = keyring.body().sequence;
        restored.keyring_digest = hex(&digest(&[&keyring.encode()]));
        restored.commit_sequence = vault.records().seen().commit;
        Ok(restored)
    }

    /// Stores the anchor of the restored vault, even if this host has seen a later state.
    fn take_over(&self, restored: &Anchor) -> Result<(), Error> {
        match &self.anchors {
            Some(anchors) => Ok(anchors.take_over(restored)?),
            None => Ok(()),
        }
    }

    /// Stores the previous anchor again, since nothing was restored after all.
    fn put_back(&self) {
        match (&self.anchors, &self.anchor) {
            (Some(anchors), Some(anchor)) => {
                if let Err(error) = anchors.store(anchor, true) {
                    tracing::warn!("{error}");
                }
            }
            (Some(anchors), None) => anchors.forget(self.vault),
            (None, _) => {}
        }
    }
}

/// The id that the vault in `path` claims. It is not authentic, since nothing is unlocked for it.
fn claimed_id(path: &Path, options: &OpenOptions) -> Result<VaultId, Error> {
    let store_options = store::OpenOptions {
        unsafe_filesystem: options.unsafe_filesystem,
    };
    let header = SqliteStore::open(path, Mode::ReadStill, store_options)
        .map_err(VaultError::Store)
        .and_then(|store| {
            store::read(&store, |records| {
                records
                    .header()?
                    .ok_or_else(|| VaultError::tampered("the header", "is missing"))
            })
        })?;
    let header = Header::decode(&header).map_err(VaultError::Keyring)?;
    Ok(header.vault())
}
