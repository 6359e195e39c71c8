//! System calls for which neither the standard library nor nix has a safe wrapper, each behind a
//! function that is safe to call. Holds no policy: who calls what and when is decided elsewhere.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::unistd::ForkResult;

/// What identifies a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MountId {
    /// The id that `/proc/self/mountinfo` shows. May be used again after an unmount.
    pub(crate) id: u64,
    /// The device number of its superblock, as `major, minor`.
    pub(crate) device: (u32, u32),
    /// The id that is never used again, where the kernel has it (Linux 6.8).
    pub(crate) unique: Option<u64>,
}

// Linux 6.8; libc does not have it on every target.
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

/// Which mount `path` is on, without asking the file system that is mounted there: an empty
/// request mask needs no permission and no answer from a (possibly dead) daemon.
pub(crate) fn mount_id(path: &Path) -> io::Result<MountId> {
    let plain = statx(path, 0)?;
    // For this mask the kernel may ask for permission; without an answer the other two must do.
    let unique = statx(path, STATX_MNT_ID_UNIQUE)
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

fn statx(path: &Path, mask: u32) -> io::Result<libc::statx> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT;
    // SAFETY: `path` ends in NUL and `answer` has room for the structure; both outlive the call.
    let result = unsafe {
        libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            mask,
            answer.as_mut_ptr(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed memory is a valid `statx`, and the kernel has filled it in.
    Ok(unsafe { answer.assume_init() })
}

/// Has a write past RLIMIT_FSIZE fail as any other (EFBIG) instead of ending the process.
pub fn ignore_file_size_signal() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: ignoring a signal installs no handler.
    let _ = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
}

/// Forks.
///
/// # Errors
/// When the system refuses, or when this process has more than one thread: the child would
/// inherit locks that nobody ever releases.
pub(crate) fn fork() -> io::Result<ForkResult> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, |tasks| tasks.count());
    if threads != 1 {
        return Err(io::Error::other(
            "internal error: fork after a thread was started",
        ));
    }
    // SAFETY: there is one thread, so the child may do whatever the parent may.
    Ok(unsafe { nix::unistd::fork() }?)
}

/// Takes over a descriptor that the caller of this program passed by number, and sets close-on-exec.
///
/// # Errors
/// When there is no such open descriptor, or when it is one of the standard three.
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
    // SAFETY: it is open (just asked), was passed for us to own, and this program has opened
    // nothing under that number: this is called once, before it opens anything that lasts.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Closes what was inherited beyond the standard three descriptors, save `keep`: a daemon must not
/// hold open the pipe on which somebody waits for the end of `secretfs mount`. Only to be called
/// where nothing that this program has opened itself is used again: before it opens anything, and
/// in the helper, which never returns.
pub(crate) fn close_inherited(keep: Option<RawFd>) {
    let close = |first: RawFd, last: u32| {
        if let Ok(first) = u32::try_from(first)
            && first <= last
        {
            // SAFETY: nothing that owns one of these is used again, see above. A kernel
            // without the call (before 5.9) leaves them open, which harms no data.
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

/// Receives one message of at most `buffer.len()` bytes and, if one came along, a descriptor.
/// Zero bytes mean that the other side is gone.
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
                // SAFETY: the kernel has just installed this descriptor for us, and nobody else
                // knows its number.
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

/// Whether so many bytes could be mapped; with future memory locked, this meets RLIMIT_MEMLOCK.
pub(crate) fn can_map(bytes: u64) -> bool {
    let Ok(bytes) = usize::try_from(bytes) else {
        return true;
    };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice, which nobody refers to and which
    // is removed at once.
    unsafe {
        let address = libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0);
        if address == libc::MAP_FAILED {
            return false;
        }
        libc::munmap(address, bytes);
    }
    true
}

/// The local time as syslog wants it: `Nov  2 03:04:05`.
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
