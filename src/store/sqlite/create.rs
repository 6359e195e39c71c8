//! Creates a vault, completely or not at all.
//!
//! The database is built under another name and renamed once everything is on disk. So a crash
//! leaves nothing that looks like a vault, and nothing that stops another attempt.

use std::fs::{self, DirBuilder, DirEntry, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::wal::CheckpointMode;

use crate::store::lock::Lock;
use crate::store::place::{Place, SOCKET};
use crate::store::{Abort, OpenOptions, StoreError, StoreErrorKind as Kind, Write};

use super::connection::Purpose;
use super::tx::Tx;
use super::{checkpoint, connection, failure, schema};

/// The name of the database until it is complete.
const DRAFT: &str = "vault.db.new";
const LEFTOVERS: [&str; 4] = [
    DRAFT,
    "vault.db.new-wal",
    "vault.db.new-shm",
    "vault.db.new-journal",
];

type Init<'a> = &'a mut dyn FnMut(&mut dyn Write) -> Result<(), Abort>;

pub(super) fn create(
    directory: &Path,
    options: OpenOptions,
    init: Init<'_>,
) -> Result<Result<(), Abort>, StoreError> {
    let mut undo = Undo::default();
    let made = match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => {
            return Err(StoreError::of_file(
                "cannot make the directory",
                directory,
                &error,
            ));
        }
    };
    if made {
        undo.directory = Some(directory.to_owned());
    }
    let place = Place::locate(directory, options.unsafe_filesystem)?;
    if made {
        undo.directory = Some(place.directory.clone());
    }
    // Look before touching anything, and again once no other process can be at work here.
    let lock_was_there = refuse_occupied(&place)?;
    undo.lock = Some(Lock::acquire(&place.lock)?);
    if !lock_was_there {
        undo.files.push(place.lock.clone());
    }
    refuse_occupied(&place)?;
    tighten(&place.directory, &mut undo)?;

    let leftovers = LEFTOVERS.map(|name| place.directory.join(name));
    for leftover in &leftovers {
        match fs::remove_file(leftover) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::of_file("cannot remove", leftover, &error));
            }
            _ => {}
        }
    }
    let draft = place.directory.join(DRAFT);
    undo.files.extend(leftovers);
    match build(&draft, init)? {
        Ok(()) => {}
        Err(Abort) => return Ok(Err(Abort)),
    }
    let sync = |path: &Path| {
        File::open(path)
            .and_then(|file| file.sync_all())
            .map_err(|error| StoreError::of_file("cannot sync", path, &error))
    };
    // SQLite has closed the file, so opening it here loses no lock.
    sync(&draft)?;
    fs::rename(&draft, &place.database)
        .map_err(|error| StoreError::of_file("cannot name the vault's database", &draft, &error))?;
    undo.files.push(place.database.clone());
    sync(&place.directory)?;
    if made && let Some(parent) = place.directory.parent() {
        sync(parent)?;
    }
    undo.forget();
    Ok(Ok(()))
}

/// Fails unless the directory is empty, apart from files that a crash left. Returns whether the
/// lock's file is there.
fn refuse_occupied(place: &Place) -> Result<bool, StoreError> {
    let fail = |error| StoreError::of_file("cannot list the directory", &place.directory, &error);
    let mut lock_is_there = false;
    for entry in fs::read_dir(&place.directory).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        if name == "vault.db" {
            let message = format!("there is a vault in {} already", place.directory.display());
            return Err(StoreError::new(Kind::Exists, message));
        }
        if !is_left_over(&entry) {
            let message = format!(
                "{} is not empty ({:?} is there); a vault needs a directory of its own",
                place.directory.display(),
                name
            );
            return Err(StoreError::new(Kind::Occupied, message));
        }
        lock_is_there |= name == "lock";
    }
    Ok(lock_is_there)
}

/// Whether a crash during the creation of a vault left this file, or the daemon of a vault that is
/// gone.
pub fn is_left_over(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    // Only an empty lock is ours: no holder announces itself before there is a vault.
    entry.metadata().is_ok_and(|found| {
        let empty_lock = name == "lock" && found.len() == 0;
        match found.is_file() {
            true => empty_lock || LEFTOVERS.iter().any(|leftover| name == *leftover),
            false => name == SOCKET && found.file_type().is_socket(),
        }
    })
}

/// Removes the permissions of group and others on the directory.
fn tighten(directory: &Path, undo: &mut Undo) -> Result<(), StoreError> {
    let fail = |error| StoreError::of_file("cannot set the permissions of", directory, &error);
    let mode = fs::metadata(directory).map_err(fail)?.permissions().mode() & 0o7777;
    if mode & !0o700 != 0 {
        fs::set_permissions(directory, Permissions::from_mode(mode & 0o700)).map_err(fail)?;
        undo.mode = Some((directory.to_owned(), mode));
    }
    Ok(())
}

/// Builds the database at `draft` and closes it, with everything in one file.
fn build(draft: &Path, init: Init<'_>) -> Result<Result<(), Abort>, StoreError> {
    // SQLite would use the umask for the file's permissions, and copies those to the files beside
    // it.
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(draft)
        .map_err(|error| StoreError::of_file("cannot make", draft, &error))?;
    let connection = connection::connect(draft, Purpose::Write)
        .map_err(|error| StoreError::new(Kind::Io, format!("cannot make a database: {error}")))?;
    if let Err(error) = lay_out(&connection) {
        return Err(failure::of(&connection, "cannot make the tables", error));
    }
    let mut tx = Tx::new(connection, true);
    let outcome = init(&mut tx);
    let Tx {
        connection,
        trouble,
        ..
    } = tx;
    match (outcome, trouble) {
        (Ok(()), None) => {}
        (Ok(()), Some(trouble)) => return Err(trouble),
        (Err(Abort), _) => return Ok(Err(Abort)),
    }
    connection
        .execute_batch("COMMIT")
        .map_err(|error| failure::of(&connection, "cannot write the new vault", error))?;
    checkpoint::checkpoint(&connection, CheckpointMode::TRUNCATE)?;
    // Closing removes the WAL, which has the draft's name; an open vault gets its WAL from
    // `vault.db`.
    connection
        .set_db_config(
            rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE,
            false,
        )
        .map_err(|error| failure::of(&connection, "cannot close the new vault", error))?;
    connection.close().map_err(|(connection, error)| {
        failure::of(&connection, "cannot close the new vault", error)
    })?;
    Ok(Ok(()))
}

/// Creates the tables and leaves the transaction open.
fn lay_out(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(&format!(
        "PRAGMA page_size = {}; PRAGMA auto_vacuum = NONE; PRAGMA encoding = 'UTF-8'; \
         PRAGMA journal_mode = WAL",
        schema::PAGE_SIZE
    ))?;
    connection::set_pragmas(connection)?;
    connection.execute_batch("PRAGMA synchronous = FULL; BEGIN IMMEDIATE")?;
    schema::create(connection)
}

/// Removes everything that was made, unless `forget` is called.
#[derive(Default)]
struct Undo {
    directory: Option<PathBuf>,
    files: Vec<PathBuf>,
    mode: Option<(PathBuf, u32)>,
    /// Held until everything is undone, and released by dropping it.
    lock: Option<Lock>,
}

impl Undo {
    fn forget(mut self) {
        self.directory = None;
        self.files.clear();
        self.mode = None;
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        // A failure here has no remedy, and the first error is the one that counts.
        for file in self.files.iter().rev() {
            let _ = fs::remove_file(file);
        }
        if let Some((directory, mode)) = &self.mode {
            let _ = fs::set_permissions(directory, Permissions::from_mode(*mode));
        }
        if let Some(directory) = &self.directory {
            let _ = fs::remove_dir(directory);
        }
    }
}
