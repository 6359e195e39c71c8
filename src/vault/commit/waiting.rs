//! The work that waits to be committed, and the turn: who may take it, and who gets it next.
//!
//! The turn is free only while no thread is in line for it.

use std::time::Instant;

use super::job::Job;
use super::queue::Queue;
use super::users::Users;

/// The waiting work, and the turn.
pub(super) struct Waiting {
    turn: Whereabouts,
    pub(super) jobs: Queue<Job>,
    /// The time of the first commit of jobs that is not on disk.
    pub(super) unsynced: Option<Instant>,
    pub(super) users: Users,
    pub(super) thread: Thread,
    /// The queue accepts no more jobs.
    pub(super) is_closed: bool,
}

/// The place of the turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whereabouts {
    /// No thread has it, and none is in line for it.
    Free,
    /// It is given to a thread that was in line and has not woken up yet.
    Given(InLine),
    Taken,
}

/// A thread that waits for the turn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum InLine {
    /// The committer's thread, for the jobs.
    Committer,
    /// Another thread, by its number in the queue.
    Caller(u64),
}

/// The state of the committer's thread.
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
    /// It has the turn, syncs, or reports results.
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
            // No thread would run the jobs.
            is_closed: true,
        }
    }
}

impl Waiting {
    /// Takes the turn if it is free. No thread is in line then, so this overtakes none.
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

    /// Gives the turn, which has just ended, to the next in line.
    pub(super) fn pass_on(&mut self) {
        let is_in_line = self.thread == Thread::InLine;
        self.turn = match is_in_line && !self.jobs.is_turn_next() {
            true => Whereabouts::Given(InLine::Committer),
            // This also holds if jobs come first, but the thread that runs them waits for the disk.
            false => match self.jobs.take_turn() {
                Some(number) => Whereabouts::Given(InLine::Caller(number)),
                None => Whereabouts::Free,
            },
        };
    }

    /// Whether the turn is given to a thread that has not woken up yet.
    pub(super) fn is_given(&self) -> bool {
        matches!(self.turn, Whereabouts::Given(_))
    }

    /// Whether the committer's thread waits for jobs.
    pub(super) fn is_thread_at_rest(&self) -> bool {
        matches!(self.thread, Thread::Resting | Thread::Asleep)
    }
}
