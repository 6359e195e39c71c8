//! A job to commit, in one step or several.

use std::sync::Arc;

use crate::sync::{Mutex, Rank};
use crate::vault::{Tx, VaultError};

use super::ticket::Ticket;

/// Runs a step of a job, counted from 0.
type Run = Box<dyn FnMut(&mut Tx<'_>, u32) -> Result<(), VaultError> + Send>;
type Tell = Box<dyn FnOnce(Result<(), VaultError>) + Send>;

/// The callback that gets the result of a job. If this is dropped without a result, for example by
/// a panic during the commit, the callback gets an error: nothing more is written.
pub(super) struct Done(Option<Tell>);

impl Done {
    pub(super) fn tell(mut self, outcome: Result<(), VaultError>) {
        if let Some(done) = self.0.take() {
            done(outcome);
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Err(VaultError::Closed));
        }
    }
}

/// A job to commit, with the callback for its result.
pub(super) struct Job {
    pub(super) ticket: Ticket,
    /// Number of steps that are done.
    pub(super) step: u32,
    pub(super) run: Run,
    pub(super) done: Done,
}

/// A refused job: the queue is closed. The caller runs its callback.
#[must_use = "somebody waits for it"]
pub(crate) struct Refusal(pub(super) Done);

impl Refusal {
    pub(crate) fn tell(self) {
        self.0.tell(Err(VaultError::Closed));
    }
}

impl Job {
    pub(super) fn new<T: Send + 'static>(
        ticket: Ticket,
        mut run: impl FnMut(&mut Tx<'_>) -> Result<T, VaultError> + Send + 'static,
        done: impl FnOnce(Result<T, VaultError>) + Send + 'static,
    ) -> Self {
        Self::in_steps(ticket, move |tx, _| run(tx), done)
    }

    pub(super) fn in_steps<T: Send + 'static>(
        ticket: Ticket,
        mut run: impl FnMut(&mut Tx<'_>, u32) -> Result<T, VaultError> + Send + 'static,
        done: impl FnOnce(Result<T, VaultError>) + Send + 'static,
    ) -> Self {
        let value = Arc::new(Mutex::new(Rank::JobResult, None));
        let slot = Arc::clone(&value);
        Self {
            ticket,
            step: 0,
            run: Box::new(move |tx, step| {
                let result = run(tx, step)?;
                *slot.lock() = Some(result);
                Ok(())
            }),
            done: Done(Some(Box::new(move |outcome| {
                let value = value.lock().take();
                // A successful job has left its value.
                done(outcome.and_then(|()| value.ok_or(VaultError::Invalid)));
            }))),
        }
    }
}
