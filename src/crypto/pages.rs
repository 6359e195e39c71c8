//! Pages for secrets: this module maps them, locks them where the system allows it, excludes them
//! from core files, and counts them.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sync::{Mutex, MutexGuard, Rank};

pub(super) const PAGE: usize = 4096;
/// Limit on all spares together, in bytes: a small part of the 8 MiB that an ordinary user may
/// lock.
const MOST: usize = 1 << 20;
/// Limit on one spare, in bytes: enough for what one request reads or writes.
const LARGEST: usize = 256 * 1024;

static LOCKED: AtomicU64 = AtomicU64::new(0);
static UNLOCKED: AtomicU64 = AtomicU64::new(0);
static SPARES: Mutex<Spares> = Mutex::new(Rank::Spares, Spares::new());

/// The bytes that are locked, and those that the system refused to lock.
pub(super) fn counts() -> (u64, u64) {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    (load(&LOCKED), load(&UNLOCKED))
}

/// A mapping for one large buffer, all zero.
pub(super) struct Mapping {
    pub(super) start: NonNull<u8>,
    pub(super) capacity: usize,
    pub(super) locked: bool,
}

// SAFETY: the mapping is owned by the value alone.
unsafe impl Send for Mapping {}

impl Mapping {
    /// A mapping of at least `wanted` bytes; `None` without memory.
    pub(super) fn of(wanted: usize) -> Option<Self> {
        let spare = spares().take(wanted);
        if spare.is_some() {
            return spare;
        }
        let capacity = wanted.checked_next_multiple_of(PAGE)?;
        let (start, locked) = map_private(capacity)?;
        Some(Self {
            start,
            capacity,
            locked,
        })
    }

    /// Keeps the mapping as a spare, or unmaps it.
    ///
    /// # Safety
    /// The mapping must come from [`of`](Self::of), be all zero again, and no longer be in use.
    pub(super) unsafe fn let_go(self) {
        let surplus = match self.locked {
            true => spares().keep(self),
            // Unmap it: the next mapping may be within the limit on locked memory.
            false => vec![self],
        };
        unmap(surplus);
    }
}

/// Mappings of dropped buffers, wiped and still locked, kept for reuse: mapping, locking and
/// faulting in new pages takes longer than decrypting into them.
struct Spares {
    /// The latest are at the end.
    kept: Vec<Mapping>,
}

impl Spares {
    const fn new() -> Self {
        Self { kept: Vec::new() }
    }

    /// The smallest spare of at least `wanted` bytes, unless more than half of it would be unused.
    fn take(&mut self, wanted: usize) -> Option<Mapping> {
        let fits = |spare: &Mapping| spare.capacity >= wanted && spare.capacity / 2 <= wanted;
        let kept = self.kept.iter().enumerate().rev();
        let (at, _) = kept
            .filter(|(_, spare)| fits(spare))
            .min_by_key(|(_, spare)| spare.capacity)?;
        Some(self.kept.remove(at))
    }

    /// Keeps a spare. The caller unmaps the returned ones, for which there is no room.
    fn keep(&mut self, spare: Mapping) -> Vec<Mapping> {
        if spare.capacity > LARGEST {
            return vec![spare];
        }
        self.kept.push(spare);
        let mut bytes: usize = self.kept.iter().map(|spare| spare.capacity).sum();
        let mut gone = 0;
        while bytes > MOST {
            bytes -= self.kept[gone].capacity;
            gone += 1;
        }
        self.kept.drain(..gone).collect()
    }

    /// Removes all spares, for the caller to unmap.
    fn clear(&mut self) -> Vec<Mapping> {
        std::mem::take(&mut self.kept)
    }
}

fn spares() -> MutexGuard<'static, Spares> {
    SPARES.lock()
}

/// Unmaps all spares; returns whether there were any.
fn unmap_spares() -> bool {
    let all = spares().clear();
    let any = !all.is_empty();
    unmap(all);
    any
}

fn unmap(mappings: Vec<Mapping>) {
    for mapping in mappings {
        // SAFETY: `map_private` made the mapping with this length, and its only owner gave it up.
        unsafe { libc::munmap(mapping.start.as_ptr().cast(), mapping.capacity) };
        let counter = if mapping.locked { &LOCKED } else { &UNLOCKED };
        counter.fetch_sub(mapping.capacity as u64, Ordering::Relaxed);
    }
}

/// Maps zeroed, private, undumpable memory and locks it if the system allows it; returns whether it
/// is locked.
pub(super) fn map_private(length: usize) -> Option<(NonNull<u8>, bool)> {
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing of ours.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return None;
    }
    let locked = lock(address, length);
    NonNull::new(address.cast()).map(|start| (start, locked))
}

/// Whether the limit on this process's address space leaves room for `length` more bytes. The check
/// uses no memory.
pub fn is_room_for(length: usize) -> bool {
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing of ours; it
    // is unmapped with its own length before anything else uses it.
    unsafe {
        let address = libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        );
        address != libc::MAP_FAILED && libc::munmap(address, length) == 0
    }
}

/// Keeps memory that was mapped elsewhere out of swap and core files, as far as the system allows.
/// Pages behind a hole in the range are not locked, and the whole range counts as unlocked.
pub fn keep_in(start: *const u8, length: usize) {
    let first = start.addr() & !(PAGE - 1);
    let length = (start.addr() + length).next_multiple_of(PAGE) - first;
    let address = std::ptr::without_provenance_mut::<libc::c_void>(first);
    lock(address, length);
}

/// Locks pages and keeps them out of core files; counts them, and returns whether they are locked.
fn lock(address: *mut libc::c_void, length: usize) -> bool {
    // SAFETY: none of these calls changes the contents of the memory, and nothing depends on their
    // success. The lock is on-fault, so that unused pages cost nothing; older kernels get the plain
    // lock.
    let lock = || unsafe {
        libc::madvise(address, length, libc::MADV_DONTDUMP);
        libc::mlock2(address, length, libc::MLOCK_ONFAULT) == 0 || libc::mlock(address, length) == 0
    };
    // Pages in use come before spares.
    let locked = lock() || (unmap_spares() && lock());
    let counter = if locked { &LOCKED } else { &UNLOCKED };
    counter.fetch_add(length as u64, Ordering::Relaxed);
    locked
}

/// Keeps this thread's stack below here out of swap: names and keys pass over it.
pub fn keep_stack_in() {
    const DEPTH: usize = 128 * 1024;
    let here = 0_u8;
    keep_in((&raw const here).wrapping_sub(DEPTH), DEPTH);
}

/// Maps memory that the kernel removes even from its own direct map; `None` where the kernel has no
/// `memfd_secret`.
pub(super) fn map_memfd_secret(length: usize) -> Option<NonNull<u8>> {
    // SAFETY: the call takes flags only.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    let size = libc::off_t::try_from(length).ok()?;
    // SAFETY: `fd` is ours and is closed exactly once; the mapping outlives it by design.
    let address = unsafe {
        let address = if libc::ftruncate(fd, size) == 0 {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd,
                0,
            )
        } else {
            libc::MAP_FAILED
        };
        libc::close(fd);
        address
    };
    if address == libc::MAP_FAILED {
        return None;
    }
    LOCKED.fetch_add(length as u64, Ordering::Relaxed);
    NonNull::new(address.cast())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::super::SecretBytes;
    use super::*;

    /// Set in the process that this test starts with a low limit on locked memory.
    const LIMITED: &str = "SECRETFS_TEST_LOCKS_LITTLE";
    const LOCKABLE: libc::rlim_t = 4 << 20;
    const CAP_IPC_LOCK: libc::c_ulong = 14;

    #[test]
    fn what_is_kept_for_later_gives_way_to_what_has_to_be_locked() {
        if std::env::var_os(LIMITED).is_none() {
            let mut again = Command::new(std::env::current_exe().unwrap());
            let name = "what_is_kept_for_later_gives_way_to_what_has_to_be_locked";
            again.arg(name).env(LIMITED, "1");
            let limit = libc::rlimit {
                rlim_cur: LOCKABLE,
                rlim_max: LOCKABLE,
            };
            // SAFETY: these system calls change the new process only. The second fails, as it may,
            // unless the test runs as root.
            unsafe {
                again.pre_exec(move || {
                    libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit);
                    libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0);
                    Ok(())
                });
            }
            let ran = again.output().unwrap();
            let said = String::from_utf8_lossy(&ran.stdout);
            assert!(said.contains("1 passed"), "{said}");
            return;
        }
        let buffers = |length, count| -> Vec<_> {
            (0..count)
                .map(|_| SecretBytes::zeroed(length).unwrap())
                .collect()
        };
        drop(buffers(128 << 10, 8));
        assert_eq!(counts(), (1 << 20, 0));
        // The limit has no room for this one beside the spares.
        let large = buffers(3500 << 10, 1);
        assert_eq!(counts(), (3500 << 10, 0));
        // Memory that cannot be locked is counted so, and never kept.
        drop(buffers(1 << 20, 1));
        let beyond = buffers(1 << 20, 1);
        assert_eq!(counts(), (3500 << 10, 1 << 20));
        drop((large, beyond));
        assert_eq!(counts(), (0, 0));
    }

    fn mapping(capacity: usize) -> Mapping {
        Mapping {
            start: NonNull::dangling(),
            capacity,
            locked: true,
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_found_by_its_size() {
        let mut spares = Spares::new();
        let mut kept = 0;
        for _ in 0..100 {
            for capacity in [40 << 10, 64 << 10, 132 << 10, LARGEST + 1] {
                kept += capacity;
                let gone = spares.keep(mapping(capacity));
                kept -= gone.iter().map(|gone| gone.capacity).sum::<usize>();
                assert!(kept <= MOST);
            }
        }
        assert!(kept > MOST - LARGEST);
        for (wanted, found) in [
            (64 << 10, Some(64 << 10)),
            (33 << 10, Some(40 << 10)),
            (128 << 10, Some(132 << 10)),
            (133 << 10, None),
            (19 << 10, None),
        ] {
            let spare = spares.take(wanted).map(|spare| spare.capacity);
            assert_eq!(spare, found, "{wanted}");
        }
        assert!(!spares.clear().is_empty() && spares.clear().is_empty());
    }
}
