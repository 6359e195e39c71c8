//! A job that is to be committed, in one step or several.

use std::sync::Arc;

use crate::sync::{Mutex, Rank};
use crate::vault::{Tx, VaultError};

use super::ticket::Ticket;

/// Does a step of a job, counted from 0.
type Run = Box<dyn FnMut(&mut Tx<'_>, u32) -> Result<(), VaultError> + Send>;
type Tell = Box<dyn FnOnce(Result<(), VaultError>) + Send>;

/// Whom to tell what came of a job. Whoever would never hear of it is told that nothing more is written:
/// also when a panic drops what was being committed.
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

/// What is to be committed, and whom it is told.
pub(super) struct Job {
    pub(super) ticket: Ticket,
    /// Steps that are done.
    pub(super) step: u32,
    pub(super) run: Run,
    pub(super) done: Done,
}

/// A job that is not done, since nothing more is written.
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
                // A job that succeeded has left its value.
                done(outcome.and_then(|()| value.ok_or(VaultError::Invalid)));
            }))),
        }
    }
}
