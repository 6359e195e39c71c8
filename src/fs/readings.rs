//! What those who read were told of a file, and how far they have read.

use crate::os::process;

use super::loaded::{Pin, Shown};

/// Most answers that are remembered of a node.
const MOST: usize = 64;

/// What the process that reads through a handle may have been told, and how far it has read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reading {
    /// Until something is read: the version that was current when it was opened, or when its end was
    /// asked for.
    pub(super) fresh: Option<Shown>,
    /// The length of what it has settled on was told: a read at the beginning stays there.
    pub(super) held: bool,
    /// Where the last read ended.
    pub(super) read_to: u64,
    /// The thread that opened the handle, or read or wrote through it last.
    pub(super) thread: u32,
}

impl Reading {
    /// A read of a version of `length` bytes.
    pub(super) fn note(&mut self, offset: u64, size: u32, length: u64, thread: u32) {
        // Who begins elsewhere has looked where the end is, and comes to the beginning later.
        self.held = match self.fresh.take() {
            Some(_) => offset > 0,
            None => self.held && offset > 0 && offset < length,
        };
        self.read_to = offset.saturating_add(size.into()).min(length);
        self.thread = thread;
    }
}

/// Which version threads were told of last. They are kept as the kernel names them: which process
/// they belong to is asked when it matters.
#[derive(Debug, Default)]
pub(super) struct Told(pub(super) Vec<(u32, Pin)>);

impl Told {
    pub(super) fn note(&mut self, thread: u32, pin: Pin) {
        self.0.retain(|(known, _)| *known != thread);
        if self.0.len() == MOST {
            self.0.remove(0);
        }
        self.0.push((thread, pin));
    }

    /// What a thread was told counts no longer: it has changed the file itself since.
    pub(super) fn forget(&mut self, thread: u32) {
        self.0.retain(|(known, _)| *known != thread);
    }

    /// What the process of `thread` was told last; what the thread itself was told, if it does all by
    /// itself. Those that cannot be seen count as one.
    pub(super) fn to_process_of(&self, thread: u32, alone: bool) -> Option<&Pin> {
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

/// Whether `thread` belongs to a process that can be seen.
pub(super) fn same_process(thread: u32, group: Option<u32>) -> bool {
    group.is_some() && process::thread_group(thread) == group
}
