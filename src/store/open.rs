//! The one place that knows what is behind the door: it makes and opens the store in a directory.

use std::path::Path;
use std::sync::Arc;

use super::local::LocalPlace;
use super::options::{Mode, OpenOptions};
use super::sqlite::SqliteStore;
use super::{Abort, Store, StoreError, Write};

pub use super::sqlite::is_left_over;

/// Creates a vault in `directory` with the records that `init` writes, or nothing at all.
///
/// The directory must be empty, or not exist; then it is created with mode 0700 in an existing
/// parent.
///
/// # Errors
/// [`Exists`](super::StoreErrorKind::Exists) when there is a vault in the directory,
/// [`Occupied`](super::StoreErrorKind::Occupied) when there is anything else,
/// [`Busy`](super::StoreErrorKind::Busy) when another process is creating a vault there.
/// `Ok(Err(Abort))` when `init` gave up. In all these cases everything stays as it was.
pub fn create(
    directory: &Path,
    options: OpenOptions,
    init: &mut dyn FnMut(&mut dyn Write) -> Result<(), Abort>,
) -> Result<Result<(), Abort>, StoreError> {
    SqliteStore::create(directory, options, init)
}

/// Opens the vault in `directory`: its store, and its place on this host. The vault stays locked
/// until both are dropped.
///
/// # Errors
/// [`NotAVault`](super::StoreErrorKind::NotAVault), [`Busy`](super::StoreErrorKind::Busy) with the
/// name of the holder, [`Corrupt`](super::StoreErrorKind::Corrupt) when the layout is not that of
/// [`create()`], [`UnsafeFilesystem`](super::StoreErrorKind::UnsafeFilesystem), and the kinds for
/// files that cannot be opened.
pub fn open(
    directory: &Path,
    mode: Mode,
    options: OpenOptions,
) -> Result<(Arc<dyn Store>, LocalPlace), StoreError> {
    let store = SqliteStore::open(directory, mode, options)?;
    let place = store.local_place();
    Ok((Arc::new(store), place))
}
