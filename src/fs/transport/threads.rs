//! The threads that take requests from the kernel, and what of theirs is still on its way.
//!
//! The kernel hands requests over in the order in which they were made, but with several threads
//! one that was taken later may be begun earlier. That matters for one kind alone: the RELEASE that
//! follows a close is not waited for, and may publish what an OPEN made after it must see.

use std::cell::RefCell;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::gettid;

use super::busy_poll::{BusyPoll, Recent};
use crate::sync::{Mutex, MutexGuard, Rank};

/// fuser names its threads so, with a number behind.
const NAME: &str = "fuser-";
/// The longest wait for the others: a thread that is ready to run is run before that.
const PATIENCE: Duration = Duration::from_secs(2);

// The phase of a thread: the lowest bits of a number that every change raises.
/// Waiting for a request, or just about to begin one.
const AWAY: u64 = 0;
/// At a request that nobody needs to wait for.
const BUSY: u64 = 1;
/// At a RELEASE.
const RELEASING: u64 = 2;
/// Without a request, and not about to take one before it says so.
const LOOKING: u64 = 3;
const PHASES: u64 = 4;

// Apart from others in memory: each changes twice with every request.
#[derive(Debug)]
#[repr(align(128))]
struct RequestThread {
    thread: i32,
    phase: AtomicU64,
}

impl RequestThread {
    fn enter(&self, phase: u64) {
        let raised = (self.phase.load(Ordering::Relaxed) / PHASES + 1) * PHASES;
        self.phase.store(raised + phase, Ordering::SeqCst);
    }

    /// Whether it holds no request that was not begun: it is seen asleep while it waits for one. A
    /// thread that has ended holds none either.
    fn is_asleep(&self) -> bool {
        let task = format!("/proc/self/task/{}", self.thread);
        match fs::read_to_string(format!("{task}/stat")) {
            // Its name stands in brackets before the state, and may hold anything.
            Ok(stat) => {
                stat.rsplit(')')
                    .next()
                    .is_some_and(|rest| rest.starts_with(" S"))
                    && waits_in_read(&task)
            }
            Err(_) => true,
        }
    }
}

/// Whether a thread that sleeps does so in read(2). Who may not ask for the system call, as ordinary
/// users may not of a process that hides its memory, asks for the kernel's function.
fn waits_in_read(task: &str) -> bool {
    match fs::read_to_string(format!("{task}/syscall")) {
        Ok(call) => call.split(' ').next() == Some(&libc::SYS_read.to_string()),
        Err(_) => fs::read_to_string(format!("{task}/wchan"))
            .is_ok_and(|function| function.starts_with("fuse_dev")),
    }
}

/// Whether this system tells of a thread what [`RequestThreads`] need to know.
pub(super) fn can_be_watched() -> bool {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return false;
    };
    tasks.flatten().any(|task| {
        fs::read(task.path().join("syscall")).is_ok()
            // Of those that run, it is "0" everywhere.
            || fs::read(task.path().join("wchan")).is_ok_and(|function| function != b"0")
    })
}

/// A thread's own view of itself.
struct Post {
    threads: Arc<RequestThreads>,
    own: Arc<RequestThread>,
    recent: Recent,
}

impl Post {
    /// The calling thread's, at its first request.
    fn new(threads: &Arc<RequestThreads>) -> Self {
        Self {
            own: threads.named(gettid().as_raw()),
            threads: Arc::clone(threads),
            recent: Recent::default(),
        }
    }

    fn begin(&mut self, phase: u64) {
        self.own.enter(phase);
        self.recent.note(&self.threads.busy_poll);
    }

    fn end(&mut self) {
        self.own.enter(LOOKING);
        self.threads.busy_poll.look(&mut self.recent);
        self.own.enter(AWAY);
    }
}

thread_local! {
    static OWN: RefCell<Option<Post>> = const { RefCell::new(None) };
}

/// All threads that take requests.
#[derive(Debug)]
pub(super) struct RequestThreads {
    count: usize,
    known: Mutex<Vec<Arc<RequestThread>>>,
    busy_poll: BusyPoll,
}

/// A thread is at a request until this is dropped.
pub(super) struct AtWork(());

impl Drop for AtWork {
    fn drop(&mut self) {
        OWN.with_borrow_mut(|own| own.iter_mut().for_each(Post::end));
    }
}

impl RequestThreads {
    /// There are `count` of them.
    pub(super) fn new(count: usize, busy_poll: BusyPoll) -> Self {
        Self {
            count,
            known: Mutex::new(Rank::RequestThreads, Vec::new()),
            busy_poll,
        }
    }

    fn known(&self) -> MutexGuard<'_, Vec<Arc<RequestThread>>> {
        self.known.lock()
    }

    fn named(&self, thread: i32) -> Arc<RequestThread> {
        let mut known = self.known();
        if let Some(one) = known.iter().find(|known| known.thread == thread) {
            return Arc::clone(one);
        }
        let one = Arc::new(RequestThread {
            thread,
            phase: AtomicU64::new(AWAY),
        });
        known.push(Arc::clone(&one));
        one
    }

    fn at(self: &Arc<Self>, phase: u64) -> AtWork {
        OWN.with_borrow_mut(|own| own.get_or_insert_with(|| Post::new(self)).begin(phase));
        AtWork(())
    }

    /// The calling thread is at a request.
    pub(super) fn begin(self: &Arc<Self>) -> AtWork {
        self.at(BUSY)
    }

    /// The calling thread is at a RELEASE.
    pub(super) fn begin_release(self: &Arc<Self>) -> AtWork {
        self.at(RELEASING)
    }

    /// Returns when every RELEASE that was taken from the kernel before this call is through. Not
    /// to be called from within one.
    pub(super) fn await_releases(&self) {
        if self.count < 2 {
            return;
        }
        if self.known().len() < self.count {
            self.look_for_all();
        }
        let own = gettid().as_raw();
        let others: Vec<_> = self
            .known()
            .iter()
            .filter(|r| r.thread != own)
            .cloned()
            .collect();
        let deadline = Instant::now() + PATIENCE;
        for other in others {
            let first = other.phase.load(Ordering::SeqCst);
            loop {
                let seen = other.phase.load(Ordering::SeqCst);
                let through = match seen % PHASES {
                    RELEASING => false,
                    // What it had when this was called, it has begun, or holds no more.
                    AWAY => seen != first || other.is_asleep(),
                    _ => true,
                };
                if through {
                    break;
                }
                if Instant::now() >= deadline {
                    tracing::warn!(
                        "a thread that reads requests does not run: a close may be late"
                    );
                    break;
                }
                std::thread::yield_now();
            }
        }
    }

    /// Those that have not had a request yet may have their first one now.
    fn look_for_all(&self) {
        let Ok(tasks) = fs::read_dir("/proc/self/task") else {
            return;
        };
        for task in tasks.flatten() {
            let name = fs::read_to_string(task.path().join("comm"));
            let thread = task.file_name().to_str().and_then(|id| id.parse().ok());
            if let (Ok(name), Some(thread)) = (name, thread)
                && name.starts_with(NAME)
            {
                self.named(thread);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// A thread that sleeps in read(2) is not waited for; one that is on its way to a request is,
    /// and one that is at a RELEASE until that is through.
    #[test]
    fn who_holds_a_request_is_waited_for_and_who_sleeps_is_not() {
        let (waiting, wake) = nix::unistd::pipe().unwrap();
        let busy_poll = BusyPoll::new(waiting.try_clone().unwrap(), Duration::ZERO);
        let threads = Arc::new(RequestThreads::new(2, busy_poll));
        let (on_its_way, done) = (
            Arc::new(AtomicBool::new(true)),
            Arc::new(AtomicBool::new(false)),
        );
        let thread = {
            let (threads, on_its_way, done) = (
                Arc::clone(&threads),
                Arc::clone(&on_its_way),
                Arc::clone(&done),
            );
            std::thread::Builder::new()
                .name(format!("{NAME}1"))
                .spawn(move || {
                    let mut byte = [0];
                    assert_eq!(nix::unistd::read(&waiting, &mut byte), Ok(1));
                    // Taken, and not begun.
                    while on_its_way.load(Ordering::SeqCst) {
                        std::hint::spin_loop();
                    }
                    let at_work = threads.begin_release();
                    std::thread::sleep(Duration::from_millis(30));
                    done.store(true, Ordering::SeqCst);
                    drop(at_work);
                    assert_eq!(nix::unistd::read(&waiting, &mut byte), Ok(0));
                })
                .unwrap()
        };
        let _here = threads.begin();
        let other_sleeps = || {
            let known = threads.known();
            let mut others = known.iter().filter(|r| r.thread != gettid().as_raw());
            others.next().map(|other| other.is_asleep())
        };
        while other_sleeps() != Some(true) {
            threads.look_for_all();
        }
        threads.await_releases();
        assert!(!done.load(Ordering::SeqCst));
        nix::unistd::write(&wake, b"x").unwrap();
        let releaser = {
            let on_its_way = Arc::clone(&on_its_way);
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(30));
                on_its_way.store(false, Ordering::SeqCst);
            })
        };
        // The byte is there: the thread has it, or is about to take it.
        while other_sleeps() == Some(true) {
            std::hint::spin_loop();
        }
        threads.await_releases();
        assert!(done.load(Ordering::SeqCst));
        drop(wake);
        thread.join().unwrap();
        releaser.join().unwrap();
    }

    /// It has taken no request, and is not seen asleep either.
    #[test]
    fn who_looks_for_a_request_is_not_waited_for() {
        let (nothing, _wake) = nix::unistd::pipe().unwrap();
        let threads = Arc::new(RequestThreads::new(
            2,
            BusyPoll::new(nothing, Duration::ZERO),
        ));
        let _here = threads.begin();
        let looking = Arc::new(AtomicBool::new(true));
        let thread = {
            let (threads, looking) = (Arc::clone(&threads), Arc::clone(&looking));
            std::thread::spawn(move || {
                let other = threads.named(gettid().as_raw());
                other.enter(LOOKING);
                while looking.load(Ordering::SeqCst) {
                    std::hint::spin_loop();
                }
            })
        };
        while threads.known().len() < 2 {
            std::hint::spin_loop();
        }
        let begun = Instant::now();
        threads.await_releases();
        assert!(begun.elapsed() < PATIENCE);
        looking.store(false, Ordering::SeqCst);
        thread.join().unwrap();
    }
}
