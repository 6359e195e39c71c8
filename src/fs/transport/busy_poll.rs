//! Busy polling: a thread looks for the next request for a moment before it sleeps in the kernel.
//!
//! A program that reads a secret makes three or more requests in a row. Waking a thread that sleeps
//! on another processor takes longer than serving a request, above all on a virtual machine, whose
//! host may have given the processor away. So a thread that has answered polls for the next request
//! before it sleeps: for a short time, not if recent polls were in vain, and only one thread at a
//! time, which yields whenever another wants its processor.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::handoff;

/// A request this soon after a reply was already queued.
const AT_ONCE: Duration = Duration::from_micros(3);
/// After this many queued requests in a row a thread does not poll: there is always one.
const CROWDED: u32 = 8;
/// After this many polls in vain a thread does not poll until requests come fast again.
const IN_VAIN: u32 = 3;

/// Busy polling, which all threads share.
#[derive(Debug)]
pub(super) struct BusyPoll {
    device: OwnedFd,
    /// Limit on a poll; zero turns polling off.
    patience: Duration,
    /// Whether a thread polls. More than one would take processors from programs.
    taken: AtomicBool,
    /// Number of requests that arrived while a thread polled.
    requests: AtomicU64,
}

/// A thread's memory from one request to the next.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// When it answered the last request.
    answered: Option<Instant>,
    /// Number of queued requests in a row.
    waiting: u32,
    /// Number of polls in vain in a row.
    in_vain: u32,
}

impl Recent {
    /// Notes a request.
    pub(super) fn note(&mut self, busy_poll: &BusyPoll) {
        // Count only while a thread polls: otherwise each request would fetch the counter from
        // another processor.
        if busy_poll.taken.load(Ordering::Relaxed) {
            busy_poll.requests.fetch_add(1, Ordering::Relaxed);
        }
        handoff::begin();
        let Some(answered) = self.answered.take() else {
            return;
        };
        let gap = answered.elapsed();
        self.waiting = match gap < AT_ONCE {
            true => self.waiting.saturating_add(1),
            false => 0,
        };
        // The poll found the request, or would have without the time to wake up.
        if gap < 2 * busy_poll.patience {
            self.in_vain = 0;
        }
    }
}

impl BusyPoll {
    /// Busy polling of `device`, from which requests come.
    pub(super) fn new(device: OwnedFd, patience: Duration) -> Self {
        Self {
            device,
            patience,
            taken: AtomicBool::new(false),
            requests: AtomicU64::new(0),
        }
    }

    /// Polls after a request: returns when there is another, or when the thread should sleep.
    pub(super) fn look(&self, recent: &mut Recent) {
        if handoff::is_answered_elsewhere() || self.patience.is_zero() {
            return;
        }
        let answered = Instant::now();
        recent.answered = Some(answered);
        if recent.waiting >= CROWDED
            || recent.in_vain >= IN_VAIN
            || self.taken.swap(true, Ordering::Relaxed)
        {
            return;
        }
        let requests = self.requests.load(Ordering::Relaxed);
        while !self.is_request_waiting() {
            // Another thread got the request.
            if self.requests.load(Ordering::Relaxed) != requests {
                break;
            }
            if answered.elapsed() >= self.patience {
                recent.in_vain += 1;
                break;
            }
            std::thread::yield_now();
        }
        self.taken.store(false, Ordering::Relaxed);
    }

    /// Whether read(2) would return at once, even with the end.
    fn is_request_waiting(&self) -> bool {
        let mut device = [PollFd::new(self.device.as_fd(), PollFlags::POLLIN)];
        poll(&mut device, PollTimeout::ZERO) != Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy_poll(patience: Duration) -> (BusyPoll, OwnedFd) {
        let (requests, sender) = nix::unistd::pipe().unwrap();
        (BusyPoll::new(requests, patience), sender)
    }

    #[test]
    fn a_request_that_is_there_or_comes_is_found() {
        let (busy_poll, sender) = busy_poll(Duration::from_secs(60));
        let mut recent = Recent::default();
        let sending = std::thread::spawn(move || {
            nix::unistd::write(&sender, b"x").unwrap();
            sender
        });
        busy_poll.look(&mut recent);
        assert!(busy_poll.is_request_waiting());
        recent.note(&busy_poll);
        busy_poll.look(&mut recent);
        assert_eq!(recent.in_vain, 0);
        // A poll finds the end, too.
        drop(sending.join().unwrap());
        nix::unistd::read(&busy_poll.device, &mut [0]).unwrap();
        busy_poll.look(&mut recent);
        assert_eq!(recent.in_vain, 0);
    }

    #[test]
    fn nothing_is_looked_for_that_does_not_come() {
        let (busy_poll, _sender) = busy_poll(Duration::from_micros(1));
        let mut recent = Recent::default();
        for times in [1, 2, 3, 3, 3] {
            busy_poll.look(&mut recent);
            assert_eq!(recent.in_vain, times);
            std::thread::sleep(Duration::from_millis(1));
            recent.note(&busy_poll);
            assert_eq!((recent.in_vain, recent.waiting), (times, 0));
        }
    }

    #[test]
    fn when_requests_are_always_waiting_nothing_is_looked_for() {
        let (busy_poll, _sender) = busy_poll(Duration::from_micros(50));
        let mut recent = Recent {
            waiting: CROWDED,
            ..Recent::default()
        };
        busy_poll.look(&mut recent);
        assert_eq!(recent.in_vain, 0);
        std::thread::sleep(Duration::from_millis(1));
        recent.note(&busy_poll);
        busy_poll.look(&mut recent);
        assert_eq!(recent.in_vain, 1);
    }

    #[test]
    fn only_one_thread_looks() {
        let (busy_poll, _sender) = busy_poll(Duration::from_secs(60));
        busy_poll.taken.store(true, Ordering::Relaxed);
        busy_poll.look(&mut Recent::default());
        assert!(busy_poll.taken.load(Ordering::Relaxed));
    }

    #[test]
    fn without_patience_nothing_is_looked_for() {
        let (busy_poll, _sender) = busy_poll(Duration::ZERO);
        let mut recent = Recent::default();
        busy_poll.look(&mut recent);
        assert!(recent.answered.is_none() && recent.in_vain == 0);
    }
}
