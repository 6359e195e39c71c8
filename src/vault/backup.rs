//! Backups: copies a vault as of one commit, and makes a vault of such a copy.
//!
//! A backup is a directory with a vault of the same id and the same records, sealed as in the
//! original: copying uses no key and sees no plaintext. Data that a host keeps beside a vault
//! (anchors, pins, the lock, the socket) stays behind, and so do keys of the local KMS.
//!
//! `backup` and `restore` both make the copy under another name, verify every record of it from the
//! disk, and then rename it in one step that replaces nothing. They must never write to the
//! original, nor leave a partial copy under the name of a complete one.

mod memory;
mod partial;
mod report;
mod target;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::crypto::schedule::VaultId;
use crate::error::{Class, Error};
use crate::kms::KeyUri;
use crate::store::{self, CopyError, GoOn, Holder, Mode, Scrub, Store};

use super::check::check_records_while;
use super::pause::pause;
use super::{CheckReport, OpenOptions, Vault, VaultError};

use memory::Memory;
use partial::Partial;
use target::Target;

pub use report::{CopyReport, NeededKey};

/// Limit on the wait until the database of a copy holds all of it.
const CLOSING: Duration = Duration::from_secs(120);
/// Pause between two attempts at that.
const TRY_AGAIN: Duration = Duration::from_millis(10);

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
    let target = Target::of(to, path, options)?;
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
        let why = format!(
            "no backup was made: {shown} was at commit {seen}, and was put back to {commit} while \
             it was copied; see who writes there"
        );
        return Err(Error::new(Class::Integrity, why));
    }
    let keyring = copied.keyring();
    let report = CopyReport::of(&target.path, commit, &found, &keyring, &options.kms);
    drop(copied);
    die_at!("copy-verified");
    partial.name(&target)?;
    target.must_last()?;
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
    let target = Target::of(to, path, options)?;
    target.must_not_be_mounted()?;
    must_not_be_in_use(path)?;
    let memory = Memory::of(path, options)?;
    memory.must_not_be_mounted()?;
    let looking = unremembered(options, None, memory.pins(options)?);
    let (source, found) = checked(path, &looking, go_on)?;
    if let Some(problems) = problems(&found) {
        let shown = path.display();
        let why = format!(
            "{shown} is damaged, and nothing was restored: it has {problems}; use another backup"
        );
        return Err(Error::new(Class::Integrity, why));
    }
    // Write nothing before this line, here or in this host's memory.
    memory.must_be_writable()?;
    let partial = Partial::begin(&target)?;
    copy(source.records().store(), &partial, options, go_on)?;
    let pins = source.host().allowed_keys(memory.vault);
    let trusting = unremembered(options, Some(memory.vault), pins);
    let restored = memory.restored(&partial.copy(), &trusting, &target.path, &source)?;
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
        memory.put_back();
        return Err(error);
    }
    target.must_last()?;
    Ok(report)
}

/// Copies all of `from` into a new store in `partial`, and closes that store.
fn copy(
    from: &dyn Store,
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
    let made = store::create(&copy, store_options, &mut |_| Ok(()));
    if made.map_err(failed)?.is_err() {
        return Err(Error::new(Class::Internal, "the copy was not begun"));
    }
    die_at!("copy-made");
    let mode = Mode::Write(Holder::unknown());
    let (to, _place) = store::open(&copy, mode, store_options).map_err(failed)?;
    let go_on_or_die = || {
        die_at!("copy-part");
        go_on()
    };
    store::copy(from, &*to, &go_on_or_die).map_err(|error| match error {
        CopyError::Store(error) => failed(error),
        CopyError::Interrupted => interrupted(),
    })?;
    die_at!("copy-copied");
    // Closing the store would report no failure, so have it tidy up first.
    let deadline = Instant::now() + CLOSING;
    while to.scrub().map_err(failed)? == Scrub::ReaderInTheWay {
        if Instant::now() > deadline {
            let why = format!(
                "cannot finish {}: another program has it open",
                copy.display()
            );
            return Err(Error::new(Class::Failed, why));
        }
        // The store's own checkpoint thread may be at work.
        if pause(TRY_AGAIN, go_on).is_break() {
            return Err(interrupted());
        }
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
