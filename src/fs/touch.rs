//! Wakes watchers of files. The kernel notifies them when a program writes, but the content is
//! published later, at the close. So a touch follows each publication: a thread sets the file's
//! modification time through the mount, and the kernel notifies the watchers again.
//!
//! The touching thread may wait for the kernel and for this file system. Its touch arrives here as
//! an ordinary request, which is recognized by its time, a secret random one. It changes and
//! commits nothing. Nothing may ever wait for a touch.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::store::NodeId;
use crate::sync::{Condvar, Mutex, Rank};
use crate::vault::Timestamp;

use super::Attr;

/// Pause between two rounds of touches. A file that is replaced all the time is touched once in
/// each round, not at each replacement. If a file was renamed over by then, the kernel has
/// forgotten it, and the touch takes next to no time.
const PAUSE: Duration = Duration::from_millis(25);

/// A touch takes a fraction of a millisecond; after this long it hangs.
const LATE: Duration = Duration::from_secs(5);

/// A file to touch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Touched {
    /// A node, by any name that the kernel knows.
    Node(NodeId),
    /// The node with this name in a directory.
    Name(NodeId, Vec<u8>),
}

/// The queue of files to touch, and its state.
#[derive(Debug)]
pub struct Touches {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// A thread serves the queue.
    served: AtomicBool,
    /// The secret time of the touch under way, and its start.
    token: Mutex<Option<(Timestamp, Instant)>>,
    /// Nodes that are gone from the vault, with the attributes that the kernel gets.
    gone: Mutex<HashMap<NodeId, Attr>>,
}

#[derive(Debug)]
struct Queue {
    waiting: Vec<Touched>,
    listed: HashSet<Touched>,
    /// Why no file is touched.
    silent: Option<String>,
    over: bool,
}

impl Default for Touches {
    fn default() -> Self {
        let queue = Queue {
            waiting: Vec::new(),
            listed: HashSet::new(),
            silent: Some("nothing is mounted".to_owned()),
            over: false,
        };
        Self {
            queue: Mutex::new(Rank::Touches, queue),
            wake: Condvar::new(),
            served: AtomicBool::new(false),
            token: Mutex::new(Rank::Touch, None),
            gone: Mutex::new(Rank::GoneNodes, HashMap::new()),
        }
    }
}

impl Touches {
    /// Notes that a thread is about to [`serve`](Self::serve).
    pub fn begin(&self) {
        let mut queue = self.queue.lock();
        if !queue.over {
            queue.silent = None;
            self.served.store(true, Ordering::Release);
        }
    }

    /// Ends the queue, or notes why no thread will serve it.
    pub fn end(&self, why: impl Into<String>) {
        let mut queue = self.queue.lock();
        self.served.store(false, Ordering::Release);
        if !queue.over {
            queue.silent = Some(why.into());
        }
        queue.over = true;
        (queue.waiting, queue.listed) = Default::default();
        drop(queue);
        self.wake.notify_all();
    }

    /// Whether a thread serves the queue.
    pub fn is_served(&self) -> bool {
        self.served.load(Ordering::Acquire)
    }

    /// Calls `touch` for each file to touch, with the time to set, until the [`end`](Self::end).
    pub fn serve(&self, mut touch: impl FnMut(&Touched, Timestamp) -> io::Result<()>) {
        while let Some(batch) = self.next() {
            for touched in batch {
                if !self.is_served() {
                    return;
                }
                let outcome = token().and_then(|token| {
                    *self.token.lock() = Some((token, Instant::now()));
                    touch(&touched, token)
                });
                *self.token.lock() = None;
                self.note(&touched, outcome);
            }
            let queue = self.queue.lock();
            let paused = self
                .wake
                .wait_timeout_while(queue, PAUSE, |queue| !queue.over);
            drop(paused);
        }
    }

    /// Waits for files to touch, and returns all of them; `None` at the end.
    fn next(&self) -> Option<Vec<Touched>> {
        let mut queue = self.queue.lock();
        while !queue.over && queue.waiting.is_empty() {
            queue = self.wake.wait(queue);
        }
        if queue.over {
            return None;
        }
        // A file that is published again after this must be touched again.
        queue.listed.clear();
        Some(std::mem::take(&mut queue.waiting))
    }

    fn note(&self, touched: &Touched, outcome: io::Result<()>) {
        if let Touched::Node(node) = touched {
            self.gone.lock().remove(node);
        }
        let silent = match outcome {
            Ok(()) => None,
            // The kernel does not know the file, so nobody watches it.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESTALE | libc::ENOENT)) => {
                return;
            }
            Err(error) => Some(format!("the kernel refuses to touch a file: {error}")),
        };
        let mut queue = self.queue.lock();
        if !queue.over {
            queue.silent = silent;
        }
    }

    /// Adds a file, if it is not in the queue.
    pub(super) fn add(&self, touched: Touched) {
        if !self.is_served() {
            return;
        }
        let mut queue = self.queue.lock();
        if queue.over || !queue.listed.insert(touched.clone()) {
            return;
        }
        queue.waiting.push(touched);
        let first = queue.waiting.len() == 1;
        drop(queue);
        if first {
            self.wake.notify_all();
        }
    }

    /// Adds a removed node.
    pub(super) fn add_gone(&self, attr: Attr) {
        self.gone.lock().insert(attr.ino, attr);
        self.add(Touched::Node(attr.ino));
    }

    pub(super) fn is_token(&self, time: Timestamp) -> bool {
        self.token.lock().is_some_and(|(token, _)| token == time)
    }

    /// The last attributes of a removed node that is in the queue.
    pub(super) fn gone(&self, node: NodeId) -> Option<Attr> {
        self.gone.lock().get(&node).copied()
    }

    /// The state of the touches, for `status`.
    pub(super) fn said(&self) -> String {
        let since = self.token.lock().map(|(_, since)| since.elapsed());
        match (&self.queue.lock().silent, since) {
            (Some(why), _) => format!("not woken: {why}"),
            (None, Some(since)) if since >= LATE => {
                let seconds = since.as_secs();
                format!("not woken: the kernel has not answered for {seconds} s to a touch")
            }
            (None, _) => "woken".to_owned(),
        }
    }
}

/// A secret time, one of 2^62, which no other program can guess.
fn token() -> io::Result<Timestamp> {
    let mut random = [0; 12];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let [a, b, c, d, e, f, g, h, i, j, k, l] = random;
    let seconds = i64::from_le_bytes([a, b, c, d, e, f, g, h]) & 0xffff_ffff;
    Ok(Timestamp {
        seconds,
        nanoseconds: u32::from_le_bytes([i, j, k, l]) % 1_000_000_000,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(errno: i32) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn what_waits_is_touched_once_and_what_is_published_meanwhile_once_more() {
        let touches = Touches::default();
        touches.add(Touched::Node(1));
        assert_eq!(touches.said(), "not woken: nothing is mounted");
        touches.begin();
        assert_eq!(touches.said(), "woken");
        for node in [2, 3, 2, 2] {
            touches.add(Touched::Node(node));
        }
        let mut seen = Vec::new();
        touches.serve(|touched, token| {
            assert!(touches.is_token(token));
            assert!(!touches.is_token(Timestamp::now()));
            seen.push(touched.clone());
            match seen.len() {
                2 => touches.add(Touched::Node(3)),
                3 => touches.end("over"),
                _ => {}
            }
            Ok(())
        });
        assert_eq!(seen, [2, 3, 3].map(Touched::Node));
        assert_eq!(*touches.token.lock(), None);
        assert_eq!(touches.said(), "not woken: over");
        touches.begin();
        touches.add(Touched::Node(4));
        assert!(!touches.is_served() && touches.queue.lock().waiting.is_empty());
    }

    #[test]
    fn a_refusal_is_told_until_a_touch_goes_well() {
        let touches = Touches::default();
        touches.begin();
        touches.note(&Touched::Node(1), failing(libc::EROFS));
        assert!(touches.said().starts_with("not woken: the kernel refuses"));
        // A missing file is not watched.
        touches.note(&Touched::Node(1), failing(libc::ESTALE));
        assert!(touches.said().starts_with("not woken: the kernel refuses"));
        touches.note(&Touched::Node(1), Ok(()));
        assert_eq!(touches.said(), "woken");
    }
}
