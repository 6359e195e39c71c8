//! Records in order what this process does to the files below one directory: SQLite's writes as
//! well as those of Rust's library, because the functions of the C library through which both go
//! are defined here. Only a test that wants this includes this file.
//!
//! Not recorded: `*-shm`, which is shared memory and means nothing after a power cut. What goes
//! another way to the disk (`mmap`, `writev`) is missed; a test notices by comparing what was
//! recorded with what is there.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::support::disk::{Event, FileId};

/// Descriptors from here on are not recorded; tests have fewer.
const DESCRIPTORS: usize = 4096;

/// Whether anything is recorded, and of which descriptors: asked before the lock is taken.
static ACTIVE: AtomicBool = AtomicBool::new(false);
static TRACKED: [AtomicBool; DESCRIPTORS] = [const { AtomicBool::new(false) }; DESCRIPTORS];
static RECORDING: Mutex<Option<Recording>> = Mutex::new(None);
/// Held while there is a recording.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Recording {
    /// What is recorded lies below; nothing is while there is none.
    root: Option<PathBuf>,
    names: BTreeMap<String, FileId>,
    files: FileId,
    descriptors: HashMap<c_int, Target>,
    events: Vec<Event>,
}

#[derive(Clone)]
enum Target {
    File(FileId),
    Directory(String),
}

fn recording() -> MutexGuard<'static, Option<Recording>> {
    RECORDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A recording under way. Tests that run beside the one that has it wait for theirs.
pub struct Recorder {
    _only: MutexGuard<'static, ()>,
}

/// Begins to record what happens below `root`, in which these files are, numbered from 0.
pub fn begin(root: &Path, names: impl Iterator<Item = String>) -> Recorder {
    let only = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let names: BTreeMap<_, _> = names.zip(0..).collect();
    *recording() = Some(Recording {
        root: Some(root.to_owned()),
        files: names.len() as FileId,
        names,
        descriptors: HashMap::new(),
        events: Vec::new(),
    });
    ACTIVE.store(true, Ordering::SeqCst);
    Recorder { _only: only }
}

impl Recorder {
    /// What was recorded so far.
    pub fn events(&self) -> Vec<Event> {
        recording().as_ref().expect("recording").events.clone()
    }

    /// From here on nothing is recorded: whatever is open belongs to a process that is dead.
    pub fn pause(&self) {
        let mut recording = recording();
        let recording = recording.as_mut().expect("recording");
        recording.root = None;
        recording.descriptors.clear();
        forget_descriptors();
    }

    /// Goes on below `root`, where the same files are.
    pub fn resume(&self, root: &Path) {
        recording().as_mut().expect("recording").root = Some(root.to_owned());
    }

    /// Ends the recording.
    pub fn end(self) -> Vec<Event> {
        stop().expect("recording").events
    }
}

/// Also when the test fails.
impl Drop for Recorder {
    fn drop(&mut self) {
        stop();
    }
}

fn stop() -> Option<Recording> {
    ACTIVE.store(false, Ordering::SeqCst);
    forget_descriptors();
    recording().take()
}

/// Something that the test wants to find among the events again.
pub fn note(note: Event) {
    if let Some(recording) = recording().as_mut() {
        recording.events.push(note);
    }
}

fn forget_descriptors() {
    for tracked in &TRACKED {
        tracked.store(false, Ordering::SeqCst);
    }
}

impl Recording {
    /// The name below the root, if it is there and to be recorded.
    fn relative(&self, path: &CStr) -> Option<String> {
        let path = Path::new(std::ffi::OsStr::from_bytes(path.to_bytes()));
        let name = path.strip_prefix(self.root.as_ref()?).ok()?.to_str()?;
        (!name.ends_with("-shm")).then(|| name.to_owned())
    }

    fn opened(&mut self, name: String, descriptor: c_int, flags: c_int) {
        let target = match self.names.get(&name) {
            Some(file) => {
                if flags & libc::O_TRUNC != 0 {
                    self.events.push(Event::Truncate(*file, 0));
                }
                Target::File(*file)
            }
            None if flags & libc::O_CREAT != 0 => {
                let file = self.files;
                self.files += 1;
                self.names.insert(name.clone(), file);
                self.events.push(Event::Create(name, file));
                Target::File(file)
            }
            None => Target::Directory(name),
        };
        self.descriptors.insert(descriptor, target);
        TRACKED[descriptor as usize].store(true, Ordering::SeqCst);
    }
}

/// Runs `call`, and `record` if it succeeded, in one step for all threads; `record` gets nothing
/// when the descriptor or path is none of those recorded.
fn step<T>(
    find: impl FnOnce(&Recording) -> Option<T>,
    call: impl FnOnce() -> c_long,
    record: impl FnOnce(&mut Recording, T, c_long),
) -> c_long {
    let mut recording = recording();
    let found = recording.as_ref().and_then(find);
    let result = call();
    if let (Some(recording), Some(found)) = (recording.as_mut(), found)
        && result >= 0
    {
        record(recording, found, result);
    }
    result
}

fn is_tracked(descriptor: c_int) -> bool {
    let tracked = usize::try_from(descriptor)
        .ok()
        .and_then(|at| TRACKED.get(at));
    tracked.is_some_and(|tracked| tracked.load(Ordering::SeqCst))
}

fn target(descriptor: c_int) -> impl FnOnce(&Recording) -> Option<Target> {
    move |recording| recording.descriptors.get(&descriptor).cloned()
}

/// # Safety
/// As open(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    // SAFETY: the caller's promises are those of the system call. SQLite and Rust's library always
    // pass a mode, used or not.
    let call = || unsafe {
        let flags = flags | libc::O_LARGEFILE;
        libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode)
    };
    if !ACTIVE.load(Ordering::SeqCst) {
        return call() as c_int;
    }
    // SAFETY: as the system call, this one reads a path that ends with zero.
    let path = unsafe { CStr::from_ptr(path) };
    step(
        |recording| recording.relative(path),
        call,
        |recording, name, descriptor| recording.opened(name, descriptor as c_int, flags),
    ) as c_int
}

/// # Safety
/// As close(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(descriptor: c_int) -> c_int {
    // SAFETY: the caller's promises are those of the system call.
    let call = || unsafe { libc::syscall(libc::SYS_close, descriptor) };
    if !is_tracked(descriptor) {
        return call() as c_int;
    }
    TRACKED[descriptor as usize].store(false, Ordering::SeqCst);
    step(target(descriptor), call, |recording, _, _| {
        recording.descriptors.remove(&descriptor);
    }) as c_int
}

/// What `length` bytes at `data` were written, as an event.
///
/// # Safety
/// They must be readable.
unsafe fn written(file: FileId, at: u64, data: *const c_void, length: c_long) -> Event {
    // SAFETY: the caller's promise.
    let data = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), length as usize) };
    Event::Write(file, at, data.into())
}

/// # Safety
/// As pwrite(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(
    descriptor: c_int,
    data: *const c_void,
    length: usize,
    at: i64,
) -> isize {
    // SAFETY: the caller's promises are those of the system call.
    let call = || unsafe { libc::syscall(libc::SYS_pwrite64, descriptor, data, length, at) };
    if !is_tracked(descriptor) {
        return call() as isize;
    }
    step(target(descriptor), call, |recording, target, length| {
        if let Target::File(file) = target {
            // SAFETY: the system call has just read them.
            let event = unsafe { written(file, at as u64, data, length) };
            recording.events.push(event);
        }
    }) as isize
}

/// # Safety
/// As write(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(descriptor: c_int, data: *const c_void, length: usize) -> isize {
    // SAFETY: the caller's promises are those of the system call.
    let call = || unsafe { libc::syscall(libc::SYS_write, descriptor, data, length) };
    if !is_tracked(descriptor) {
        return call() as isize;
    }
    step(target(descriptor), call, |recording, target, length| {
        if let Target::File(file) = target {
            // SAFETY: no memory is involved.
            let end = unsafe { libc::syscall(libc::SYS_lseek, descriptor, 0, libc::SEEK_CUR) };
            // SAFETY: the system call has just read them.
            let event = unsafe { written(file, (end - length) as u64, data, length) };
            recording.events.push(event);
        }
    }) as isize
}

/// # Safety
/// As ftruncate(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate64(descriptor: c_int, length: i64) -> c_int {
    // SAFETY: no memory is involved.
    let call = || unsafe { libc::syscall(libc::SYS_ftruncate, descriptor, length) };
    if !is_tracked(descriptor) {
        return call() as c_int;
    }
    step(target(descriptor), call, |recording, target, _| {
        if let Target::File(file) = target {
            recording.events.push(Event::Truncate(file, length as u64));
        }
    }) as c_int
}

/// # Safety
/// As fsync(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(descriptor: c_int) -> c_int {
    synced(descriptor, libc::SYS_fsync)
}

/// # Safety
/// As fdatasync(2). A file's length is on disk after it as well.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(descriptor: c_int) -> c_int {
    synced(descriptor, libc::SYS_fdatasync)
}

fn synced(descriptor: c_int, how: c_long) -> c_int {
    // SAFETY: no memory is involved.
    let call = || unsafe { libc::syscall(how, descriptor) };
    if !is_tracked(descriptor) {
        return call() as c_int;
    }
    step(target(descriptor), call, |recording, target, _| {
        recording.events.push(match target {
            Target::File(file) => Event::Sync(file),
            Target::Directory(name) => Event::SyncDirectory(name),
        });
    }) as c_int
}

/// # Safety
/// As unlink(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller's promises are those of the system call.
    let call = || unsafe { libc::syscall(libc::SYS_unlinkat, libc::AT_FDCWD, path, 0) };
    if !ACTIVE.load(Ordering::SeqCst) {
        return call() as c_int;
    }
    // SAFETY: as the system call, this one reads a path that ends with zero.
    let path = unsafe { CStr::from_ptr(path) };
    step(
        |recording| recording.relative(path),
        call,
        |recording, name, _| {
            recording.names.remove(&name);
            recording.events.push(Event::Unlink(name));
        },
    ) as c_int
}

/// # Safety
/// As rename(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    let here = libc::AT_FDCWD;
    // SAFETY: the caller's promises are those of the system call.
    let call = || unsafe { libc::syscall(libc::SYS_renameat2, here, from, here, to, 0) };
    if !ACTIVE.load(Ordering::SeqCst) {
        return call() as c_int;
    }
    // SAFETY: as the system call, these read paths that end with zero.
    let (from, to) = unsafe { (CStr::from_ptr(from), CStr::from_ptr(to)) };
    step(
        |recording| Some((recording.relative(from)?, recording.relative(to)?)),
        call,
        |recording, (from, to), _| {
            if let Some(file) = recording.names.remove(&from) {
                recording.names.insert(to.clone(), file);
                recording.events.push(Event::Rename(from, to));
            }
        },
    ) as c_int
}
