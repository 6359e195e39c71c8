//! Batches: jobs that are committed together, and the result of each.

use std::time::Instant;

use crate::vault::{Job as VaultJob, Tx, VaultError};

use super::Turn;
use super::job::{Done, Job};
use super::transact::Transactions;
use super::waiting::Thread;

/// The outcome of a turn.
#[derive(Default)]
pub(super) struct Committed {
    /// Jobs that are done now.
    pub(super) soon: Finished,
    /// Jobs that will be done once they are on disk.
    pub(super) now: Finished,
    /// A job has further steps.
    pub(super) has_more: bool,
    /// Quick jobs are waiting.
    pub(super) has_quick: bool,
}

/// Jobs that have run, with their results.
pub(super) type Finished = Vec<(Done, Result<(), VaultError>)>;

pub(super) fn finish(finished: Finished) {
    for (done, outcome) in finished {
        done.tell(outcome);
    }
}

/// Commits jobs, and ends the turn. Before the end, it queues jobs with further steps again. The
/// parameter `jobs` comes before `turn`, so that a panic ends the turn first and then drops the
/// jobs, which reports to their callers.
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
        // Before the turn passes on, because the next job may rely on what this one holds; and not
        // under the queue's lock, because it takes locks.
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
    // Wakes the thread to sync, unless it looks soon anyway. A needless wake would take as long as
    // a commit.
    if is_asleep {
        on.queue().work.notify_one();
    }
    committed
}

/// Runs jobs in one transaction; after a failure of the store, each alone, so that a job that does
/// not fit on the disk does not fail the others. Also returns whether any may be committed.
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
