//! The versions of a file that reading processes have seen, and the position of each reader.

use crate::os::process;

use super::loaded::{Pin, Shown};

/// Limit on the answers noted for a node.
const MOST: usize = 64;

/// The version that a handle's process may have seen, and the position of its reads.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reading {
    /// Until the first read: the version that was current at the open, or when a program asked for
    /// the end.
    pub(super) fresh: Option<Shown>,
    /// The process has seen the length of the pinned version: a read at the start keeps that
    /// version.
    pub(super) held: bool,
    /// The end of the last read.
    pub(super) read_to: u64,
    /// The thread that opened the handle, or last read or wrote through it.
    pub(super) thread: u32,
}

impl Reading {
    /// Notes a read of a version of `length` bytes.
    pub(super) fn note(&mut self, offset: u64, size: u32, length: u64, thread: u32) {
        // A reader that does not begin at the start has looked for the end, and reads the start
        // later.
        self.held = match self.fresh.take() {
            Some(_) => offset > 0,
            None => self.held && offset > 0 && offset < length,
        };
        self.read_to = offset.saturating_add(size.into()).min(length);
        self.thread = thread;
    }
}

/// The version that each thread saw last. Threads are stored by the kernel's number; their process
/// is looked up only when it matters.
#[derive(Debug, Default)]
pub(super) struct LastSeen(pub(super) Vec<(u32, Pin)>);

impl LastSeen {
    pub(super) fn note(&mut self, thread: u32, pin: Pin) {
        self.0.retain(|(known, _)| *known != thread);
        if self.0.len() == MOST {
            self.0.remove(0);
        }
        self.0.push((thread, pin));
    }

    /// Forgets the version that a thread has seen, because it has changed the file itself.
    pub(super) fn forget(&mut self, thread: u32) {
        self.0.retain(|(known, _)| *known != thread);
    }

    /// The version that the process of `thread` saw last; with `alone`, the one that the thread
    /// itself saw. Threads that are not visible count as one.
    pub(super) fn by_process_of(&self, thread: u32, alone: bool) -> Option<&Pin> {
        let own = self.0.iter().find(|(known, _)| *known == thread);
        if self.0.is_empty() || alone {
            return own.map(|(_, pin)| pin);
        }
        let group = process::thread_group(thread);
        let mut latest = self.0.iter().rev();
        let is_of = |known: u32| known == thread || same_process(known, group);
        latest.find(|(known, _)| is_of(*known)).map(|(_, pin)| pin)
    }
}

/// Whether `thread` belongs to the process `group`.
pub(super) fn same_process(thread: u32, group: Option<u32>) -> bool {
    group.is_some() && process::thread_group(thread) == group
}
