//! What waits to be committed, and where the turn is: who may take it, and whom it is passed on to.
//!
//! The turn is free only while nobody is in line for it.

use std::time::Instant;

use super::job::Job;
use super::queue::Queue;
use super::users::Users;

/// What waits, and whose turn it is.
pub(super) struct Waiting {
    turn: Whereabouts,
    pub(super) jobs: Queue<Job>,
    /// Since when something of the jobs is committed but not on disk.
    pub(super) unsynced: Option<Instant>,
    pub(super) users: Users,
    pub(super) thread: Thread,
    /// No more jobs are taken in.
    pub(super) is_closed: bool,
}

/// Where the turn is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whereabouts {
    /// Nobody has it, and nobody is in line for it.
    Free,
    /// On its way to one who was in line, and has not woken up yet.
    Given(InLine),
    Taken,
}

/// Who waits for the turn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum InLine {
    /// The committer's thread, for the jobs.
    Committer,
    /// A thread of its own, by its number in the queue.
    Caller(u64),
}

/// What the committer's thread is at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Thread {
    /// There is none.
    Absent,
    /// It waits for jobs, and comes by itself when it is time to sync.
    Resting,
    /// It waits for jobs, and must be woken when there is something to sync.
    Asleep,
    /// It waits for the turn.
    InLine,
    /// It has the turn, syncs, or tells what came of jobs.
    Busy,
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            turn: Whereabouts::Free,
            jobs: Queue::default(),
            unsynced: None,
            users: Users::default(),
            thread: Thread::Absent,
            // Nobody would do them.
            is_closed: true,
        }
    }
}

impl Waiting {
    /// Takes the turn out of order, which is nobody's loss while nobody is in line.
    pub(super) fn take_if_free(&mut self) -> bool {
        let is_free = self.turn == Whereabouts::Free;
        if is_free {
            self.turn = Whereabouts::Taken;
        }
        is_free
    }

    pub(super) fn take_if_given_to(&mut self, who: InLine) -> bool {
        let is_given = self.turn == Whereabouts::Given(who);
        if is_given {
            self.turn = Whereabouts::Taken;
        }
        is_given
    }

    /// Gives the turn, which nobody has any more, to the one whose it is next.
    pub(super) fn pass_on(&mut self) {
        let is_in_line = self.thread == Thread::InLine;
        self.turn = match is_in_line && !self.jobs.is_turn_next() {
            true => Whereabouts::Given(InLine::Committer),
            // Also when jobs come first, but the thread that runs them waits for the disk.
            false => match self.jobs.take_turn() {
                Some(number) => Whereabouts::Given(InLine::Caller(number)),
                None => Whereabouts::Free,
            },
        };
    }

    /// Whether somebody is to wake up for the turn.
    pub(super) fn is_given(&self) -> bool {
        matches!(self.turn, Whereabouts::Given(_))
    }

    /// Whether the committer's thread waits for jobs.
    pub(super) fn is_thread_at_rest(&self) -> bool {
        matches!(self.thread, Thread::Resting | Thread::Asleep)
    }
}
