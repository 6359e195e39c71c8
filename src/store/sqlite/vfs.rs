//! Writes a transaction into the WAL in one piece.
//!
//! SQLite writes every frame of the WAL in two pieces, its header and its page: some twenty writes
//! for a transaction of forty kilobytes. This VFS (<https://www.sqlite.org/vfs.html>) is SQLite's
//! default with one change: it holds back appended frames until the frame that commits, and then
//! writes them in one piece. If that fails, the write of the committing frame fails; it returns
//! before SQLite publishes the frames.
//!
//! So held frames belong to a transaction that is not committed, and only its own connection may
//! read them. After a rollback the caller must call [`forget`], because SQLite does not report a
//! rollback to the VFS.
//!
//! Only the connection that writes uses the VFS, and only for its WAL. All other files go to the
//! default. [`sync_database`] is here because it reaches a file in the same way.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::size_of;
use std::ptr;
use std::sync::OnceLock;

use rusqlite::{Connection, ffi};

/// Bytes of a frame's header (<https://www.sqlite.org/fileformat2.html#walformat>). Its second four
/// bytes are the size of the database after the commit; they are zero in a frame that does not
/// commit.
const HEADER: usize = 24;
/// Limit on held bytes: a transaction that spills more is far from its commit.
const MOST: usize = 256 << 10;
/// Limit on one write, in bytes: the default VFS counts them in 17 bits.
const LONGEST: usize = 120 << 10;

const NAME: &CStr = c"secretfs";

/// The VFS's name, for a connection that writes; `None` if SQLite has no default VFS.
pub(super) fn name() -> Option<&'static CStr> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    REGISTERED.get_or_init(register).then_some(NAME)
}

fn register() -> bool {
    // SAFETY: null asks for the default, and nothing ever unregisters it.
    let default = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
    // SAFETY: `sqlite3_vfs_find` returned null, or a pointer that stays valid.
    let Some(real) = (unsafe { default.as_ref() }) else {
        return false;
    };
    let ours = Box::leak(Box::new(ffi::sqlite3_vfs {
        szOsFile: size_of::<WalFile>() as c_int + real.szOsFile,
        pNext: ptr::null_mut(),
        zName: NAME.as_ptr(),
        xOpen: Some(open),
        ..*real
    }));
    // SAFETY: `ours` is never freed. Its functions are `open` and those of the default, which read
    // no changed field.
    unsafe { ffi::sqlite3_vfs_register(ours, 0) == ffi::SQLITE_OK }
}

/// A file of this connection: `which` is `SQLITE_FCNTL_FILE_POINTER` for the database,
/// `SQLITE_FCNTL_JOURNAL_POINTER` for its WAL. `None` if the file is not open.
fn file_of(
    connection: &Connection,
    which: c_int,
) -> Option<(*mut ffi::sqlite3_file, &ffi::sqlite3_io_methods)> {
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    // SAFETY: the connection is open, and nothing else uses it; both operations store a pointer to
    // a file, or to one that has no methods.
    let code = unsafe {
        let schema = c"main".as_ptr();
        ffi::sqlite3_file_control(connection.handle(), schema, which, (&raw mut file).cast())
    };
    if code != ffi::SQLITE_OK {
        return None;
    }
    // SAFETY: SQLite's file and its methods are valid while the connection is open.
    let methods = unsafe { file.as_ref()?.pMethods.as_ref()? };
    Some((file, methods))
}

/// Drops the frames that this connection holds back after a rollback: another writer may write at
/// their place by now.
pub(super) fn forget(connection: &Connection) {
    if let Some((file, methods)) = file_of(connection, ffi::SQLITE_FCNTL_JOURNAL_POINTER)
        && ptr::eq(methods, &METHODS)
    {
        // SAFETY: `open` has opened the file, as its methods show, and SQLite does not use it now.
        unsafe { held(file) }.forget();
    }
}

/// Syncs the database, but not the WAL.
pub(super) fn sync_database(connection: &Connection) -> rusqlite::Result<()> {
    let found = file_of(connection, ffi::SQLITE_FCNTL_FILE_POINTER);
    let code = match found.and_then(|(file, methods)| Some((file, methods.xSync?))) {
        // SAFETY: the method belongs to the file, and SQLite does not use the file now.
        Some((file, sync)) => unsafe { sync(file, ffi::SQLITE_SYNC_NORMAL) },
        None => ffi::SQLITE_IOERR_FSYNC,
    };
    match code {
        ffi::SQLITE_OK => Ok(()),
        code => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

/// SQLite's view of a WAL. The default VFS's file follows directly behind it, in the memory that
/// SQLite has reserved for both.
#[repr(C)]
struct WalFile {
    base: ffi::sqlite3_file,
    held: *mut Held,
}

/// Held frames. All are complete, except perhaps the last.
#[derive(Default)]
struct Held {
    frames: Vec<u8>,
    /// Their place in the file.
    at: i64,
    /// The place of the next appended piece; `None` after a header was corrected.
    next: Option<i64>,
    /// Set while the last frame has only its header; true if that frame commits.
    open: Option<bool>,
}

impl Held {
    fn forget(&mut self) {
        if !self.frames.is_empty() {
            *self = Self::default();
        }
    }
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    // Later versions add shared memory and mapped files, which a WAL does not use.
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

/// The default VFS's file behind `file`.
fn real(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    file.wrapping_byte_add(size_of::<WalFile>())
}

/// Calls a method of the default VFS's file.
macro_rules! pass_on {
    ($file:expr, $method:ident $(, $argument:expr)*) => {{
        let real = real($file);
        // SAFETY: `open` has opened the file behind, so it has methods until `close`; SQLite calls
        // one method of a file at a time.
        unsafe {
            match (*real).pMethods.as_ref().and_then(|methods| methods.$method) {
                Some(method) => method(real $(, $argument)*),
                None => ffi::SQLITE_IOERR,
            }
        }
    }};
}

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    path: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    flags_out: *mut c_int,
) -> c_int {
    // SAFETY: as in `register`.
    let default = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
    // SAFETY: as in `register`.
    let Some(method) = (unsafe { default.as_ref() }).and_then(|real| real.xOpen) else {
        return ffi::SQLITE_CANTOPEN;
    };
    if flags & ffi::SQLITE_OPEN_WAL == 0 {
        // SAFETY: these are SQLite's own arguments, with more memory behind `file` than the default
        // needs.
        return unsafe { method(default, path, file, flags, flags_out) };
    }
    // SAFETY: as above; behind `WalFile`, whose size keeps the alignment, there is as much zeroed
    // memory as the default needs.
    let code = unsafe { method(default, path, real(file), flags, flags_out) };
    if code != ffi::SQLITE_OK {
        // SAFETY: SQLite reserved the memory for a file; one without methods counts as not open.
        // The default sets none when it fails.
        unsafe { (*file).pMethods = ptr::null() };
        return code;
    }
    let opened = WalFile {
        base: ffi::sqlite3_file { pMethods: &METHODS },
        held: Box::into_raw(Box::default()),
    };
    // SAFETY: SQLite reserved the memory for this (`szOsFile`), and nothing in it needs dropping.
    unsafe { file.cast::<WalFile>().write(opened) };
    ffi::SQLITE_OK
}

/// The held frames of `file`.
///
/// # Safety
/// Callers must not call this after `close`, nor hold two results at a time.
unsafe fn held<'a>(file: *mut ffi::sqlite3_file) -> &'a mut Held {
    // SAFETY: `open` has put a `WalFile` there, and its `held` points to a live box until `close`.
    unsafe { &mut *(*file.cast::<WalFile>()).held }
}

/// Writes the held frames. After a failure they are dropped, and the transaction must not go on.
fn let_go(file: *mut ffi::sqlite3_file, held: &mut Held) -> c_int {
    held.open = None;
    if held.frames.is_empty() {
        return ffi::SQLITE_OK;
    }
    let (mut at, mut code) = (held.at, ffi::SQLITE_OK);
    for piece in held.frames.chunks(LONGEST) {
        if at > held.at {
            // Let threads run that wait for this processor.
            std::thread::yield_now();
        }
        code = write_through(file, piece, at);
        if code != ffi::SQLITE_OK {
            break;
        }
        at += piece.len() as i64;
    }
    held.frames.clear();
    if code != ffi::SQLITE_OK {
        held.next = None;
    }
    code
}

fn write_through(file: *mut ffi::sqlite3_file, bytes: &[u8], at: i64) -> c_int {
    let Ok(length) = c_int::try_from(bytes.len()) else {
        return ffi::SQLITE_IOERR_WRITE;
    };
    pass_on!(file, xWrite, bytes.as_ptr().cast(), length, at)
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    bytes: *const c_void,
    length: c_int,
    at: i64,
) -> c_int {
    let Ok(length) = usize::try_from(length) else {
        return ffi::SQLITE_IOERR_WRITE;
    };
    // SAFETY: SQLite passes `length` readable bytes.
    let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), length) };
    // SAFETY: the file is open, and SQLite calls one method at a time.
    let held = unsafe { held(file) };
    let appends = held.next == Some(at);
    let commits = match held.open.take() {
        Some(commits) if appends => commits,
        // A header at the place of the next frame. Headers that SQLite corrects after a spill are
        // written later, at places before the last frame.
        None if appends && length == HEADER => {
            if held.frames.is_empty() {
                held.at = at;
            }
            held.frames.extend_from_slice(bytes);
            held.next = Some(at + length as i64);
            held.open = Some(bytes[4..8] != [0; 4]);
            return ffi::SQLITE_OK;
        }
        _ => {
            let code = let_go(file, held);
            // A piece longer than a frame's header ends a frame, or is the file's header.
            held.next = (length > HEADER).then_some(at + length as i64);
            return match code {
                ffi::SQLITE_OK => write_through(file, bytes, at),
                code => code,
            };
        }
    };
    held.frames.extend_from_slice(bytes);
    held.next = Some(at + length as i64);
    match commits || held.frames.len() >= MOST {
        true => let_go(file, held),
        false => ffi::SQLITE_OK,
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // Held frames belong to a transaction that was rolled back. SAFETY: this is the box that `open`
    // made; SQLite closes a file once and does not use it again.
    drop(unsafe { Box::from_raw((*file.cast::<WalFile>()).held) });
    pass_on!(file, xClose)
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    bytes: *mut c_void,
    length: c_int,
    at: i64,
) -> c_int {
    // SAFETY: the file is open, and SQLite calls one method at a time.
    let held = unsafe { held(file) };
    if at.saturating_add(length.into()) > held.at {
        match let_go(file, held) {
            ffi::SQLITE_OK => {}
            // A read may go on after SQLITE_FULL, and the transaction would commit without these
            // frames.
            ffi::SQLITE_FULL => return ffi::SQLITE_IOERR_WRITE,
            code => return code,
        }
    }
    pass_on!(file, xRead, bytes, length, at)
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    pass_on!(file, xTruncate, size)
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    pass_on!(file, xSync, flags)
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut i64) -> c_int {
    pass_on!(file, xFileSize, size)
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    pass_on!(file, xLock, level)
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    pass_on!(file, xUnlock, level)
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    pass_on!(file, xCheckReservedLock, out)
}

unsafe extern "C" fn file_control(
    file: *mut ffi::sqlite3_file,
    what: c_int,
    argument: *mut c_void,
) -> c_int {
    pass_on!(file, xFileControl, what, argument)
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    pass_on!(file, xSectorSize)
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    pass_on!(file, xDeviceCharacteristics)
}
