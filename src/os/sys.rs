//! Safe functions for system calls that neither the standard library nor nix wraps safely. They
//! hold no policy: callers decide what to call, and when.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::unistd::ForkResult;

/// The identity of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MountId {
    /// The id in `/proc/self/mountinfo`. The kernel may reuse it after an unmount.
    pub(crate) id: u64,
    /// The device number of its superblock, as `major, minor`.
    pub(crate) device: (u32, u32),
    /// The id that is never reused, if the kernel has it (Linux 6.8).
    pub(crate) unique: Option<u64>,
}

// From Linux 6.8; libc does not define it on every target.
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

/// The mount that `path` is on; a symlink there is not followed. The empty request mask needs no
/// permission, and no answer from the file system mounted there, whose daemon may be dead.
///
/// It takes two questions. While another process exchanges names, each may be answered of another
/// mount: such an id equals no mount's, so compare it, but never keep it.
pub(crate) fn mount_id(path: &Path) -> io::Result<MountId> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    mount_id_at(
        libc::AT_FDCWD,
        &path,
        libc::AT_NO_AUTOMOUNT | libc::AT_SYMLINK_NOFOLLOW,
    )
}

/// The mount that an open file is on, found in the same way.
pub(crate) fn mount_id_of(file: &OwnedFd) -> io::Result<MountId> {
    mount_id_at(file.as_raw_fd(), c"", libc::AT_EMPTY_PATH)
}

fn mount_id_at(at: RawFd, path: &CStr, flags: libc::c_int) -> io::Result<MountId> {
    let plain = statx_at(at, path, flags, 0)?;
    // This mask may need permission; if it is refused, the other two fields must do.
    let unique = statx_at(at, path, flags, STATX_MNT_ID_UNIQUE)
        .ok()
        .filter(|s| s.stx_mask & STATX_MNT_ID_UNIQUE != 0)
        .map(|s| s.stx_mnt_id);
    if plain.stx_mask & libc::STATX_MNT_ID == 0 {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this kernel does not tell mount ids (Linux 5.8 or later is needed)",
        ));
    }
    Ok(MountId {
        id: plain.stx_mnt_id,
        device: (plain.stx_dev_major, plain.stx_dev_minor),
        unique,
    })
}

/// The device number of the file at `path`, as `major, minor`, found in the same way.
pub(crate) fn device_at(path: &Path) -> io::Result<(u32, u32)> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let answer = statx_at(libc::AT_FDCWD, &path, libc::AT_NO_AUTOMOUNT, 0)?;
    Ok((answer.stx_dev_major, answer.stx_dev_minor))
}

fn statx_at(at: RawFd, path: &CStr, flags: libc::c_int, mask: u32) -> io::Result<libc::statx> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    let flags = flags | libc::AT_STATX_DONT_SYNC;
    // SAFETY: `path` ends in NUL and `answer` has room for the structure; both outlive the call.
    let result = unsafe { libc::statx(at, path.as_ptr(), flags, mask, answer.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed memory is a valid `statx`, and the kernel has filled it in.
    Ok(unsafe { answer.assume_init() })
}

/// Makes a write past RLIMIT_FSIZE fail with EFBIG instead of ending the process.
pub fn ignore_file_size_signal() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: ignoring a signal installs no handler.
    let _ = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
}

/// Forks.
///
/// # Errors
/// When the system refuses, or when this process has more than one thread: the child would inherit
/// locks that no thread releases. The function waits up to 1 s, since a joined thread may take a
/// moment to end.
pub(crate) fn fork() -> io::Result<ForkResult> {
    let is_alone = || std::fs::read_dir("/proc/self/task").map_or(true, |tasks| tasks.count() == 1);
    let deadline = Instant::now() + Duration::from_secs(1);
    while !is_alone() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    if !is_alone() {
        return Err(io::Error::other(
            "internal error: fork after a thread was started",
        ));
    }
    // SAFETY: there is one thread, so the child may do anything that the parent may.
    Ok(unsafe { nix::unistd::fork() }?)
}

/// Takes ownership of a descriptor that the caller of this program passed by number, and sets
/// close-on-exec.
///
/// # Errors
/// When the descriptor is not open, or is one of the standard three.
pub(crate) fn take_passed(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: fcntl with F_GETFD and F_SETFD on any number touches no memory.
    let result = unsafe {
        match libc::fcntl(fd, libc::F_GETFD) {
            -1 => -1,
            flags => libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC),
        }
    };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, as fcntl just showed, and was passed for us to own. The
    // program itself has not opened it: this is called once, before it opens anything that lasts.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Closes all inherited descriptors except the standard three and `keep`: a daemon must not hold
/// open a pipe whose reader waits for `secretfs mount` to end. Callers must not use again any
/// descriptor that this program has opened. There are two: the start of the program, which has
/// opened nothing yet, and the helper, which never returns.
pub(crate) fn close_inherited(keep: Option<RawFd>) {
    let close = |first: RawFd, last: u32| {
        if let Ok(first) = u32::try_from(first)
            && first <= last
        {
            // SAFETY: no owner of one of these is used again, see above. A kernel without the call
            // (before 5.9) leaves them open, which harms no data.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) };
        }
    };
    match keep {
        Some(fd) if fd > 2 => {
            close(3, u32::try_from(fd - 1).unwrap_or(2));
            close(fd + 1, u32::MAX);
        }
        _ => close(3, u32::MAX),
    }
}

/// Receives one message of at most `buffer.len()` bytes, and the descriptor that it carries, if
/// any. Zero bytes mean that the other side is gone.
pub(crate) fn receive_with_fd(
    socket: &impl AsRawFd,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let mut parts = [io::IoSliceMut::new(buffer)];
    let message = loop {
        let received = recvmsg::<SockaddrStorage>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        );
        match received {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other?,
        }
    };
    let mut passed = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel has just installed this descriptor for us, and nothing else
                // owns it.
                passed = Some(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    Ok((message.bytes, passed))
}

/// Locks all present and future memory, each page once it is touched.
pub(crate) fn lock_all_memory() -> io::Result<()> {
    // SAFETY: only changes the residency of pages.
    match unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Undoes [`lock_all_memory`].
pub(crate) fn unlock_all_memory() {
    // SAFETY: only changes the residency of pages.
    unsafe { libc::munlockall() };
}

/// Whether `bytes` more bytes can be mapped. If future memory is locked, RLIMIT_MEMLOCK counts,
/// too.
pub(crate) fn can_map(bytes: u64) -> bool {
    let Ok(bytes) = usize::try_from(bytes) else {
        return true;
    };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice, to which nothing refers, and
    // which is removed at once.
    unsafe {
        let address = libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0);
        if address == libc::MAP_FAILED {
            return false;
        }
        libc::munmap(address, bytes);
    }
    true
}

/// The local time in the format of syslog: `Nov  2 03:04:05`.
pub(crate) fn syslog_time() -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = libc::time_t::try_from(since.as_secs()).unwrap_or_default();
    let mut parts = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are valid for the call, and zeroed memory is a valid `tm` whether or
    // not the call succeeds.
    let parts = unsafe {
        libc::localtime_r(&raw const seconds, parts.as_mut_ptr());
        parts.assume_init()
    };
    let month = usize::try_from(parts.tm_mon)
        .ok()
        .and_then(|m| MONTHS.get(m))
        .unwrap_or(&"Jan");
    format!(
        "{month} {:>2} {:02}:{:02}:{:02}",
        parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec
    )
}

// From linux/mount.h; libc defines them on few targets only.
const OPEN_TREE_CLONE: libc::c_uint = 1;
const FSPICK_CLOEXEC: libc::c_uint = 1;
const FSPICK_EMPTY_PATH: libc::c_uint = 8;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_CMD_RECONFIGURE: libc::c_uint = 7;
const MOUNT_ATTR_RDONLY: u64 = 1;

/// `struct mount_attr`.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// A copy of the mount at `path`, outside the tree and without its submounts.
pub(crate) fn clone_mount(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint;
    // SAFETY: `path` ends in NUL and outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    new_descriptor(fd)
}

fn new_descriptor(fd: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(fd) {
        // SAFETY: callers pass only results that the kernel has just returned, which nothing else
        // owns.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn check(result: libc::c_long) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a mount outside the tree writable, and keeps mounts elsewhere from propagating to it.
pub(crate) fn make_writable_and_private(mount: &OwnedFd) -> io::Result<()> {
    let attributes = MountAttributes {
        set: 0,
        clear: MOUNT_ATTR_RDONLY,
        propagation: libc::MS_PRIVATE,
        user_namespace: 0,
    };
    // SAFETY: the path is an empty C string, and the structure has the size that is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    })
}

/// Makes a file system writable, although all its mounts may be read-only.
pub(crate) fn make_superblock_writable(mount: &OwnedFd) -> io::Result<()> {
    let flags = FSPICK_CLOEXEC | FSPICK_EMPTY_PATH;
    // SAFETY: the path is an empty C string.
    let picked = unsafe { libc::syscall(libc::SYS_fspick, mount.as_raw_fd(), c"".as_ptr(), flags) };
    let picked = new_descriptor(picked)?;
    let null = std::ptr::null::<libc::c_void>();
    let configure = |command: libc::c_uint, key: *const libc::c_char| {
        let fd = picked.as_raw_fd();
        // SAFETY: `key` is null or a C string, and neither command has a value.
        check(unsafe { libc::syscall(libc::SYS_fsconfig, fd, command, key, null, 0) })
    };
    configure(FSCONFIG_SET_FLAG, c"rw".as_ptr())?;
    configure(FSCONFIG_CMD_RECONFIGURE, std::ptr::null())
}

/// The device number of an open file's file system, as `major, minor`, without a request to that
/// file system.
pub(crate) fn device_of(file: &OwnedFd) -> io::Result<(u32, u32)> {
    let answer = statx_at(file.as_raw_fd(), c"", libc::AT_EMPTY_PATH, 0)?;
    Ok((answer.stx_dev_major, answer.stx_dev_minor))
}

/// Gives this thread its own descriptor table and working directory, and closes every descriptor in
/// that table. From then on, a file that the other threads close is closed even while this thread
/// waits, and so are the pipes to the process that started this one. The thread must not use any
/// owner of a descriptor again, nor log or print anything.
pub(crate) fn part_from_descriptors() -> io::Result<()> {
    use nix::sched::{CloneFlags, unshare};
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_FILES)?;
    // SAFETY: the table belongs to this thread alone, and the caller promises to use none of them.
    check(unsafe { libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, 0u32) })
}

/// An `O_PATH` descriptor of a node of the FUSE file system that the working directory is on, if
/// the kernel still caches the node.
pub(crate) fn open_remembered(node: u64) -> io::Result<OwnedFd> {
    /// `struct file_handle` as fs/fuse/inode.c fills it in.
    #[repr(C)]
    struct Handle {
        bytes: libc::c_uint,
        kind: libc::c_int,
        node_high: u32,
        node_low: u32,
        generation: u32,
    }
    let mut handle = Handle {
        bytes: 12,
        // FILEID_INO64_GEN.
        kind: 0x81,
        node_high: (node >> 32) as u32,
        node_low: node as u32,
        // All nodes of secretfs have generation 0.
        generation: 0,
    };
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the structure begins as `file_handle` does, and is as long as it says.
    let fd = unsafe {
        libc::open_by_handle_at(
            libc::AT_FDCWD,
            (&raw mut handle).cast::<libc::file_handle>(),
            flags,
        )
    };
    new_descriptor(fd.into())
}

/// Sets the modification time, and nothing else, of `file`, or of `name` in that directory.
pub(crate) fn set_modified(
    file: &OwnedFd,
    name: Option<&CStr>,
    (seconds, nanoseconds): (i64, u32),
) -> io::Result<()> {
    let times = [
        libc::timespec {
            tv_sec: 0,
            tv_nsec: libc::UTIME_OMIT,
        },
        libc::timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds.into(),
        },
    ];
    let (name, flags) = match name {
        Some(name) => (name, libc::AT_SYMLINK_NOFOLLOW),
        None => (c"", libc::AT_EMPTY_PATH),
    };
    // SAFETY: the name is a C string and there are two times; both outlive the call.
    let result = unsafe { libc::utimensat(file.as_raw_fd(), name.as_ptr(), times.as_ptr(), flags) };
    check(result.into())
}
