//! Background threads: they lower their priority, and raise it again while others wait for them. A
//! module of its own, because the system calls need `unsafe`.
//!
//! A busy processor gives little time to a thread with lower priority. If it held a lock meanwhile,
//! every thread that needs the lock would wait that long, so it comes forward, to its former
//! priority, before it takes one. That needs CAP_SYS_NICE, or a limit (`LimitNICE`) that
//! [`permit_return`] raises if it may. Without either, a thread that takes such locks never lowers
//! its priority.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::marker::PhantomData;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The niceness of a thread with lower priority. With it, the 99th percentile of reads stays below
/// twice its usual time.
const BY: libc::c_int = 10;

thread_local! {
    /// The niceness of the thread after it comes forward; `None` for a thread that never does.
    static FORWARD: Cell<Option<libc::c_int>> = const { Cell::new(None) };
    /// The number of [`Forward`]s of this thread.
    static HOLDS: Cell<u32> = const { Cell::new(0) };
    static MODEST: Cell<bool> = const { Cell::new(false) };
}

fn niceness() -> libc::c_int {
    // SAFETY: no memory is involved. On Linux, 0 is the calling thread and not its process.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

fn set(nice: libc::c_int) {
    // SAFETY: as above. If it is refused, the thread runs as before.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
}

/// The limit that lets a thread return to this niceness (setrlimit(2)).
fn limit_for(nice: libc::c_int) -> u64 {
    u64::try_from(20 - nice).unwrap_or(0)
}

/// Lets the threads of this process return to its present niceness after they lower their priority.
/// Callers do this while the process still has its privileges; ordinary users need `LimitNICE`.
pub fn permit_return() {
    let needed = limit_for(niceness());
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NICE)
        && soft < needed
    {
        // If it is refused, threads that take locks do not lower their priority.
        let _ = setrlimit(Resource::RLIMIT_NICE, needed, hard.max(needed));
    }
}

/// Lets threads run that wait for this thread's processor. Long work for one user calls this about
/// every 0.1 ms: the kernel may look for such threads only once a tick, which is 4 ms on many
/// systems, and requests of other users would wait that long.
pub fn let_others_run() {
    std::thread::yield_now();
}

/// Lowers the priority of this thread, and of those that it starts later: they use mostly processor
/// time that no other thread needs. The thread must never hold a lock that others wait for.
pub fn lower_priority() {
    MODEST.set(true);
    set(niceness().max(BY));
}

/// Lowers the priority of a thread that takes locks at times, and [comes forward](forward) while it
/// holds them. If the thread may not come forward, its priority stays; only the threads that work
/// for it lower theirs.
pub fn lower_priority_outside_locks() {
    MODEST.set(true);
    let now = niceness();
    if may_come_forward() {
        FORWARD.set(Some(now));
        set(now.max(BY));
    }
}

/// Whether a thread with lower priority may come forward again. Only an attempt shows that, and a
/// thread that may not would keep the lower priority, so a new thread tries.
fn may_come_forward() -> bool {
    let now = niceness();
    let tried = std::thread::Builder::new().spawn(move || {
        set(now.max(BY));
        set(now);
        niceness() == now
    });
    tried.is_ok_and(|tried| tried.join().unwrap_or(false))
}

/// Whether this thread has lowered its priority, even if it has come forward since.
pub fn is_modest() -> bool {
    MODEST.get()
}

/// Keeps the thread at its former priority until dropped.
#[derive(Debug)]
pub struct Forward(PhantomData<*const ()>);

/// Brings this thread forward; callers do so before they take a lock that others wait for. Does
/// nothing on a thread that has not lowered its priority.
pub fn forward() -> Forward {
    if let Some(nice) = FORWARD.get() {
        let holds = HOLDS.get();
        if holds == 0 {
            set(nice);
        }
        HOLDS.set(holds + 1);
    }
    Forward(PhantomData)
}

impl Drop for Forward {
    fn drop(&mut self) {
        if let Some(nice) = FORWARD.get() {
            let holds = HOLDS.get().saturating_sub(1);
            HOLDS.set(holds);
            if holds == 0 {
                set(nice.max(BY));
            }
        }
    }
}
