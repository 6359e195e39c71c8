//! Threads that step back behind all others, and come forward while others wait for them. Kept apart
//! because the calls are not safe ones.
//!
//! Who has stepped back gets little of a busy processor. Whatever such a thread holds meanwhile,
//! everybody waits for who needs it, for as long as that takes: so it comes forward first. That takes
//! CAP_SYS_NICE, or a limit (`LimitNICE`) that [`permit_return`] raises where it may; without either, a
//! thread that holds what others need does not step back at all.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::marker::PhantomData;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// As much as keeps the slowest hundredth of the reads below twice what it is otherwise.
const BY: libc::c_int = 10;

thread_local! {
    /// How nice the thread is when it has come forward; `None` for one that never steps back.
    static FORWARD: Cell<Option<libc::c_int>> = const { Cell::new(None) };
    /// How often it has come forward and not stepped back.
    static HOLDS: Cell<u32> = const { Cell::new(0) };
    static MODEST: Cell<bool> = const { Cell::new(false) };
}

fn niceness() -> libc::c_int {
    // SAFETY: no memory is involved. On Linux, 0 is the calling thread and not its process.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

fn set(nice: libc::c_int) {
    // SAFETY: as above. Where it is refused, the thread runs as it did.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
}

/// The limit that lets a thread become as nice as this again (setrlimit(2)).
fn limit_for(nice: libc::c_int) -> u64 {
    u64::try_from(20 - nice).unwrap_or(0)
}

/// Has the threads of this process come back to where they are now after they have stepped back. To be
/// called while the process still has its privileges; ordinary users need `LimitNICE` for it.
pub fn permit_return() {
    let needed = limit_for(niceness());
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NICE)
        && soft < needed
    {
        // Where it is refused, those threads do not step back.
        let _ = setrlimit(Resource::RLIMIT_NICE, needed, hard.max(needed));
    }
}

/// Has this thread, which holds nothing that others wait for, and those that it starts, get the
/// processors when others do not need them, and little of them otherwise.
pub fn step_back() {
    MODEST.set(true);
    set(niceness().max(BY));
}

/// The same for a thread that does hold something now and then, and [comes forward](forward) for as
/// long. If it could not, it stays where it is, and those step back that work for it.
pub fn step_back_but_for_locks() {
    MODEST.set(true);
    let now = niceness();
    if may_come_forward() {
        FORWARD.set(Some(now));
        set(now.max(BY));
    }
}

/// Whether a thread that has stepped back may come forward again. There is no way to know but to try,
/// and whoever may not would stay back.
fn may_come_forward() -> bool {
    let now = niceness();
    let tried = std::thread::Builder::new().spawn(move || {
        set(now.max(BY));
        set(now);
        niceness() == now
    });
    tried.is_ok_and(|tried| tried.join().unwrap_or(false))
}

/// Whether this thread is one of those that step back, wherever it is now.
pub fn is_modest() -> bool {
    MODEST.get()
}

/// The thread is where it was before it stepped back until this is dropped.
#[derive(Debug)]
pub struct Forward(PhantomData<*const ()>);

/// To be called before taking what others wait for; does nothing on other threads.
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
