//! The threads that take requests from the kernel, and the requests that they have taken but not
//! finished.
//!
//! The kernel passes requests in order, but with several threads one that was taken later may begin
//! earlier. That matters for one kind only: no program waits for the RELEASE after a close, and a
//! later OPEN must see the content that it publishes.

use std::cell::RefCell;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::gettid;

use super::busy_poll::{BusyPoll, Recent};
use crate::sync::{Mutex, MutexGuard, Rank};

/// fuser's names for its threads begin with this, followed by a number.
const NAME: &str = "fuser-";
/// Limit on the wait for other threads: the system runs a ready thread before that.
const PATIENCE: Duration = Duration::from_secs(2);

// The phase of a thread: the lowest bits of a number that grows with every change.
/// The thread waits for a request, or is about to begin one.
const AWAY: u64 = 0;
/// Handling a request that no other needs to wait for.
const BUSY: u64 = 1;
/// Handling a RELEASE.
const RELEASING: u64 = 2;
/// Without a request, and not taking one before the next phase.
const LOOKING: u64 = 3;
const PHASES: u64 = 4;

// On cache lines of its own, because it changes twice with every request.
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

    /// Whether it certainly holds no request that it has not begun: it sleeps while it waits for
    /// one, or has ended.
    fn is_asleep(&self) -> bool {
        let task = format!("/proc/self/task/{}", self.thread);
        match fs::read_to_string(format!("{task}/stat")) {
            // The name precedes the state in brackets, and may contain any character.
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

/// Whether a sleeping thread sleeps in read(2). If the system call is not readable, as for ordinary
/// users whose process hides its memory, this uses the kernel function.
fn waits_in_read(task: &str) -> bool {
    match fs::read_to_string(format!("{task}/syscall")) {
        Ok(call) => call.split(' ').next() == Some(&libc::SYS_read.to_string()),
        Err(_) => fs::read_to_string(format!("{task}/wchan"))
            .is_ok_and(|function| function.starts_with("fuse_dev")),
    }
}

/// Whether this system shows the facts about threads that [`RequestThreads`] needs.
pub(super) fn can_be_watched() -> bool {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return false;
    };
    tasks.flatten().any(|task| {
        fs::read(task.path().join("syscall")).is_ok()
            // For running threads it is "0" on every system.
            || fs::read(task.path().join("wchan")).is_ok_and(|function| function != b"0")
    })
}

/// A thread's view of itself.
struct Post {
    threads: Arc<RequestThreads>,
    own: Arc<RequestThread>,
    recent: Recent,
}

impl Post {
    /// The view of the calling thread, at its first request.
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

/// Marks a thread as handling a request until dropped.
pub(super) struct AtWork(());

impl Drop for AtWork {
    fn drop(&mut self) {
        OWN.with_borrow_mut(|own| own.iter_mut().for_each(Post::end));
    }
}

impl RequestThreads {
    /// For `count` threads.
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

    /// Notes that the calling thread begins a request.
    pub(super) fn begin(self: &Arc<Self>) -> AtWork {
        self.at(BUSY)
    }

    /// Notes that the calling thread begins a RELEASE.
    pub(super) fn begin_release(self: &Arc<Self>) -> AtWork {
        self.at(RELEASING)
    }

    /// Returns when every RELEASE taken from the kernel before this call is finished. A RELEASE
    /// must not call this.
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
                    // It has begun the request that it held at the call, or holds none.
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

    /// Looks for all threads: one without a request so far may have its first one now.
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

    /// The wait skips a thread that sleeps in read(2), but includes one on its way to a request,
    /// and one in a RELEASE until that is finished.
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
                    // The request is taken, and not begun.
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
        // The byte is there, and the thread has it or is about to take it.
        while other_sleeps() == Some(true) {
            std::hint::spin_loop();
        }
        threads.await_releases();
        assert!(done.load(Ordering::SeqCst));
        drop(wake);
        thread.join().unwrap();
        releaser.join().unwrap();
    }

    /// The thread has taken no request, and does not sleep either.
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
