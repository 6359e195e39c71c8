//! Writes a transaction into the WAL at once.
//!
//! SQLite writes every frame of the WAL in two pieces, its header and its page: some twenty writes
//! for a transaction that is forty kilobytes in all. This is SQLite's own way to the files
//! (<https://www.sqlite.org/vfs.html>) but for one thing: frames that are appended are held back
//! until the one comes that commits, and then written in one piece. The write of that one fails if
//! that fails, and it returns before SQLite tells anybody that the frames are there.
//!
//! So what is held back belongs to a transaction that is not committed, and nobody but its own
//! connection may want to see it. If it is given up, [`forget`] must be told: SQLite does not tell.
//!
//! Only the connection that writes uses it, and only its WAL goes through it. Everything else is
//! passed on. [`sync_database`] is here because it takes the same way to a file.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::size_of;
use std::ptr;
use std::sync::OnceLock;

use rusqlite::{Connection, ffi};

/// Bytes of a frame's header (<https://www.sqlite.org/fileformat2.html#walformat>); the size of the
/// database after the commit is in the second four, and not zero in a frame that commits.
const HEADER: usize = 24;
/// Most bytes held back: what is more was spilled by a transaction that is far from its commit.
const MOST: usize = 256 << 10;
/// Most bytes that SQLite's own way takes in one write: it counts them in 17 bits.
const LONGEST: usize = 120 << 10;

const NAME: &CStr = c"secretfs";

/// The name for a connection that writes; `None` if there is no way to the files at all.
pub(super) fn name() -> Option<&'static CStr> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    REGISTERED.get_or_init(register).then_some(NAME)
}

fn register() -> bool {
    // SAFETY: null asks for the default, which is never taken away; nobody does.
    let default = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
    // SAFETY: `sqlite3_vfs_find` has returned null or a pointer that is valid for good.
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
    // SAFETY: `ours` lives for good, and its functions are the default's, which look at nothing in
    // it that was changed, and `open`.
    unsafe { ffi::sqlite3_vfs_register(ours, 0) == ffi::SQLITE_OK }
}

/// A file of this connection's: `which` is `SQLITE_FCNTL_FILE_POINTER` for the database,
/// `SQLITE_FCNTL_JOURNAL_POINTER` for its WAL. `None`: it is not open.
fn file_of(
    connection: &Connection,
    which: c_int,
) -> Option<(*mut ffi::sqlite3_file, &ffi::sqlite3_io_methods)> {
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    // SAFETY: the connection is open and in nobody else's hands; both of these store a pointer to a
    // file, or to one that has no methods.
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

/// Drops what is held back of a transaction of this connection's that was given up: by now somebody
/// else may have written where it belonged.
pub(super) fn forget(connection: &Connection) {
    if let Some((file, methods)) = file_of(connection, ffi::SQLITE_FCNTL_JOURNAL_POINTER)
        && ptr::eq(methods, &METHODS)
    {
        // SAFETY: `open` has opened the file, as its methods show, and SQLite is not using it.
        unsafe { held(file) }.forget();
    }
}

/// Returns when what was written into the database, the WAL aside, is on disk.
pub(super) fn sync_database(connection: &Connection) -> rusqlite::Result<()> {
    let found = file_of(connection, ffi::SQLITE_FCNTL_FILE_POINTER);
    let code = match found.and_then(|(file, methods)| Some((file, methods.xSync?))) {
        // SAFETY: the method is the file's own, and SQLite is not using it.
        Some((file, sync)) => unsafe { sync(file, ffi::SQLITE_SYNC_NORMAL) },
        None => ffi::SQLITE_IOERR_FSYNC,
    };
    match code {
        ffi::SQLITE_OK => Ok(()),
        code => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

/// What SQLite sees of a WAL; the file itself lies right behind it, in the memory that SQLite has
/// reserved for both.
#[repr(C)]
struct WalFile {
    base: ffi::sqlite3_file,
    held: *mut Held,
}

/// Frames held back, whole but for the last.
#[derive(Default)]
struct Held {
    frames: Vec<u8>,
    /// Where they belong.
    at: i64,
    /// Where the next piece comes if it is appended; `None` after a header that is corrected.
    next: Option<i64>,
    /// The last one has its header, and this is whether it commits.
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
    // What came later concerns shared memory and mapped files, which a WAL has none of.
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

/// The file behind `file`.
fn real(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    file.wrapping_byte_add(size_of::<WalFile>())
}

/// Calls a method of the file behind.
macro_rules! pass_on {
    ($file:expr, $method:ident $(, $argument:expr)*) => {{
        let real = real($file);
        // SAFETY: `open` has opened the file behind, so that it has methods, until `close`; SQLite
        // calls one method of a file at a time.
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
        // SAFETY: SQLite's own arguments, with more memory behind `file` than is asked for.
        return unsafe { method(default, path, file, flags, flags_out) };
    }
    // SAFETY: as above; behind `WalFile`, whose size keeps the alignment, there is as much memory
    // as the default asks for, zeroed as it wants it.
    let code = unsafe { method(default, path, real(file), flags, flags_out) };
    if code != ffi::SQLITE_OK {
        // SAFETY: the memory is SQLite's for a file; without methods it counts as not opened. The
        // default leaves none behind when it fails.
        unsafe { (*file).pMethods = ptr::null() };
        return code;
    }
    let opened = WalFile {
        base: ffi::sqlite3_file { pMethods: &METHODS },
        held: Box::into_raw(Box::default()),
    };
    // SAFETY: the memory was reserved for this (`szOsFile`), and nothing in it needs dropping.
    unsafe { file.cast::<WalFile>().write(opened) };
    ffi::SQLITE_OK
}

/// What is held back for `file`.
///
/// # Safety
/// Not after `close`, and not twice at a time.
unsafe fn held<'a>(file: *mut ffi::sqlite3_file) -> &'a mut Held {
    // SAFETY: `open` has put a `WalFile` there, and its `held` is a box's until `close`.
    unsafe { &mut *(*file.cast::<WalFile>()).held }
}

/// Writes what is held back. After a failure it is forgotten, and the transaction must not go on.
fn let_go(file: *mut ffi::sqlite3_file, held: &mut Held) -> c_int {
    held.open = None;
    if held.frames.is_empty() {
        return ffi::SQLITE_OK;
    }
    let (mut at, mut code) = (held.at, ffi::SQLITE_OK);
    for piece in held.frames.chunks(LONGEST) {
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
    // SAFETY: SQLite passes as many readable bytes.
    let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), length) };
    // SAFETY: the file is open, and SQLite calls one method at a time.
    let held = unsafe { held(file) };
    let appends = held.next == Some(at);
    let commits = match held.open.take() {
        Some(commits) if appends => commits,
        // A header where the next frame begins. Those that are corrected, because a transaction
        // was spilled, come after the last frame was appended, and lie before it.
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
            // After a frame, or the header of all.
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
    // What is held back belongs to a transaction that was given up.
    // SAFETY: the box that `open` has made; SQLite closes a file once and does not use it again.
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
            // Who reads may go on after a full disk, and would commit without these frames.
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
