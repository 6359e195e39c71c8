//! Jobs that are committed together: how they are run, and what came of each.

use std::time::Instant;

use crate::vault::{Job as VaultJob, Tx, VaultError};

use super::Turn;
use super::job::{Done, Job};
use super::transact::Transactions;
use super::waiting::Thread;

/// What came of a turn.
#[derive(Default)]
pub(super) struct Committed {
    /// What is done.
    pub(super) soon: Finished,
    /// What is done when it is on disk.
    pub(super) now: Finished,
    /// Something has further steps.
    pub(super) has_more: bool,
    /// Quick jobs wait by now.
    pub(super) has_quick: bool,
}

/// Jobs that have run, and what came of them.
pub(super) type Finished = Vec<(Done, Result<(), VaultError>)>;

pub(super) fn finish(finished: Finished) {
    for (done, outcome) in finished {
        done.tell(outcome);
    }
}

/// Commits jobs, and ends the turn. What is not through with all its steps is queued again before that.
/// The jobs are given first, so that a panic drops them, which tells somebody, when the turn has ended.
pub(super) fn commit(on: &Transactions, mut jobs: Vec<Job>, mut turn: Turn<'_>) -> Committed {
    let (outcomes, is_unsynced) = run(on, &mut turn, &mut jobs);
    let mut committed = Committed::default();
    let (mut unfinished, mut over) = (Vec::new(), Vec::with_capacity(jobs.len()));
    for (mut job, outcome) in jobs.into_iter().zip(outcomes) {
        if let (Ok(()), Some(next)) = (&outcome, job.ticket.next_step()) {
            (job.ticket, job.step) = (next, job.step + 1);
            unfinished.push(job);
            continue;
        }
        let Job {
            ticket, run, done, ..
        } = job;
        // Before anybody else commits, who could rely on what this one holds; and not under the queue's
        // lock, since it takes locks.
        drop(run);
        over.push(ticket);
        match (ticket.is_quick(), &outcome) {
            (false, Ok(())) => committed.now.push((done, outcome)),
            _ => committed.soon.push((done, outcome)),
        }
    }
    committed.has_more = !unfinished.is_empty();
    let is_asleep = turn.end(|waiting| {
        for job in unfinished {
            waiting.jobs.resume(job.ticket, job);
        }
        for ticket in over {
            waiting.jobs.give_up(&ticket);
        }
        committed.has_quick = waiting.jobs.has_quick();
        if is_unsynced {
            waiting.unsynced.get_or_insert_with(Instant::now);
        }
        is_unsynced && waiting.thread == Thread::Asleep
    });
    // There is something to sync: the thread must know, unless it looks soon. To wake it for nothing
    // would cost as much as a commit.
    if is_asleep {
        on.queue().work.notify_one();
    }
    committed
}

/// Runs jobs in one transaction; after a failure of the store each alone, so that one that does not
/// fit on the disk does not take the others with it. Also tells whether any may be committed.
fn run(
    on: &Transactions,
    turn: &mut Turn<'_>,
    jobs: &mut [Job],
) -> (Vec<Result<(), VaultError>>, bool) {
    match transact(on, turn, jobs) {
        Ok(outcomes) => (outcomes, true),
        Err(error) if jobs.len() == 1 => (vec![Err(error)], false),
        Err(_) => {
            let (mut outcomes, mut is_unsynced) = (Vec::with_capacity(jobs.len()), false);
            for job in jobs {
                let (outcome, is_committed) = run(on, turn, std::slice::from_mut(job));
                outcomes.extend(outcome);
                is_unsynced |= is_committed;
            }
            (outcomes, is_unsynced)
        }
    }
}

fn transact(
    on: &Transactions,
    turn: &mut Turn<'_>,
    jobs: &mut [Job],
) -> Result<Vec<Result<(), VaultError>>, VaultError> {
    let mut runs: Vec<_> = jobs
        .iter_mut()
        .map(|job| {
            let step = job.step;
            let run = &mut job.run;
            move |tx: &mut Tx<'_>| run(tx, step)
        })
        .collect();
    let mut runs: Vec<_> = runs.iter_mut().map(|run| run as VaultJob<'_>).collect();
    on.transact_in(turn, &mut runs)
}
