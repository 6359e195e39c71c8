//! Pages for secrets: mapped, locked where the system allows it, left out of core files, and counted.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sync::{Mutex, MutexGuard, Rank};

pub(super) const PAGE: usize = 4096;
/// Bytes of all that are kept: little of the 8 MiB that an ordinary user may lock.
const MOST: usize = 1 << 20;
/// Bytes of the largest one kept: what a request reads or writes fits.
const LARGEST: usize = 256 * 1024;

static LOCKED: AtomicU64 = AtomicU64::new(0);
static UNLOCKED: AtomicU64 = AtomicU64::new(0);
static SPARES: Mutex<Spares> = Mutex::new(Rank::Spares, Spares::new());

/// Bytes that are locked, and bytes that the system refused to lock.
pub(super) fn counts() -> (u64, u64) {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    (load(&LOCKED), load(&UNLOCKED))
}

/// A mapping of its own for a large buffer: zero bytes.
pub(super) struct Mapping {
    pub(super) start: NonNull<u8>,
    pub(super) capacity: usize,
    pub(super) locked: bool,
}

// SAFETY: the mapping is owned by the value alone.
unsafe impl Send for Mapping {}

impl Mapping {
    /// One of at least `wanted` bytes.
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

    /// Keeps it for the next one, or unmaps it.
    ///
    /// # Safety
    /// It must have come from [`of`](Self::of), be all zero again, and nobody may use it any more.
    pub(super) unsafe fn let_go(self) {
        let surplus = match self.locked {
            true => spares().keep(self),
            // Another one may find room to be locked.
            false => vec![self],
        };
        unmap(surplus);
    }
}

/// Large buffers that were let go, wiped and still locked, for the next that needs one: to map, lock
/// and fault in the pages of a new one takes longer than to decrypt what comes into it.
struct Spares {
    /// Those let go last are at the end.
    kept: Vec<Mapping>,
}

impl Spares {
    const fn new() -> Self {
        Self { kept: Vec::new() }
    }

    /// The smallest of at least `wanted` bytes, unless most of it would lie idle.
    fn take(&mut self, wanted: usize) -> Option<Mapping> {
        let fits = |spare: &Mapping| spare.capacity >= wanted && spare.capacity / 2 <= wanted;
        let kept = self.kept.iter().enumerate().rev();
        let (at, _) = kept
            .filter(|(_, spare)| fits(spare))
            .min_by_key(|(_, spare)| spare.capacity)?;
        Some(self.kept.remove(at))
    }

    /// Keeps one; returns what there is no room for, to be unmapped.
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

    /// All of them, to be unmapped.
    fn clear(&mut self) -> Vec<Mapping> {
        std::mem::take(&mut self.kept)
    }
}

fn spares() -> MutexGuard<'static, Spares> {
    SPARES.lock()
}

/// Gives back what is kept for later; tells whether there was anything.
fn unmap_spares() -> bool {
    let all = spares().clear();
    let any = !all.is_empty();
    unmap(all);
    any
}

fn unmap(mappings: Vec<Mapping>) {
    for mapping in mappings {
        // SAFETY: the mapping was made by `map_private` with this length, and whoever let go of it
        // was its only owner.
        unsafe { libc::munmap(mapping.start.as_ptr().cast(), mapping.capacity) };
        let counter = if mapping.locked { &LOCKED } else { &UNLOCKED };
        counter.fetch_sub(mapping.capacity as u64, Ordering::Relaxed);
    }
}

/// Maps zeroed, private, undumpable memory and locks it if that is allowed.
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

/// Whether this process may have so much more memory, as far as its address space is limited. Costs
/// none.
pub fn is_room_for(length: usize) -> bool {
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing of ours; it
    // is unmapped with its own length before anybody knows of it.
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

/// Keeps memory that somebody else has mapped out of swap and core files, as far as that is allowed.
/// Beyond a hole in it nothing is kept in, and all of it counts as unlocked.
pub fn keep_in(start: *const u8, length: usize) {
    let first = start.addr() & !(PAGE - 1);
    let length = (start.addr() + length).next_multiple_of(PAGE) - first;
    let address = std::ptr::without_provenance_mut::<libc::c_void>(first);
    lock(address, length);
}

/// Locks pages and keeps them out of core files; tells whether they are locked, and counts them.
fn lock(address: *mut libc::c_void, length: usize) -> bool {
    // SAFETY: none of these calls changes what is in the memory, and nothing of ours depends on
    // their success. On-fault, so that what is not used costs nothing; older kernels without it get
    // the plain lock.
    let lock = || unsafe {
        libc::madvise(address, length, libc::MADV_DONTDUMP);
        libc::mlock2(address, length, libc::MLOCK_ONFAULT) == 0 || libc::mlock(address, length) == 0
    };
    // What is in use goes before what is kept for later.
    let locked = lock() || (unmap_spares() && lock());
    let counter = if locked { &LOCKED } else { &UNLOCKED };
    counter.fetch_add(length as u64, Ordering::Relaxed);
    locked
}

/// Keeps the stack that this thread is going to use out of swap: names and keys pass over it.
pub fn keep_stack_in() {
    const DEPTH: usize = 128 * 1024;
    let here = 0_u8;
    keep_in((&raw const here).wrapping_sub(DEPTH), DEPTH);
}

/// Maps memory that not even the kernel has in its direct map; `None` where there is no such thing.
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

    /// Set in a process of this test's that may lock little.
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
            // SAFETY: these are system calls that change nothing but the new process. Who is not
            // root has nothing to give up.
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
        // More than there is room for beside them.
        let large = buffers(3500 << 10, 1);
        assert_eq!(counts(), (3500 << 10, 0));
        // What cannot be locked is told, and not kept.
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
