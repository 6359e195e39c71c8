//! Access to the commit queue, which a read-only mount lacks, and a condemned vault refuses.

use std::sync::Arc;

use crate::vault::{Committer, Ticket, Vault};

use super::failures::Failures;
use super::handoff::answered_elsewhere;
use super::{Done, Errno};

/// Access to the commit queue.
pub(super) struct Commits {
    vault: Arc<Vault>,
    failures: Arc<Failures>,
    queue: Option<Committer>,
}

impl Commits {
    /// Starts the thread that commits, if the vault is open for writing.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn start(vault: &Arc<Vault>, failures: &Arc<Failures>) -> std::io::Result<Self> {
        let queue = match vault.is_read_only() {
            true => None,
            false => Some(vault.start_committer(answered_elsewhere)?),
        };
        Ok(Self {
            vault: Arc::clone(vault),
            failures: Arc::clone(failures),
            queue,
        })
    }

    /// The queue for contents and attributes.
    ///
    /// # Errors
    /// `EIO` when the vault is condemned, `EROFS` when it is open for reading.
    pub(super) fn queue(&self) -> Result<&Committer, Errno> {
        if self.vault.is_condemned() {
            return Err(Errno(libc::EIO));
        }
        self.queue.as_ref().ok_or(Errno(libc::EROFS))
    }

    /// The queue for names.
    ///
    /// # Errors
    /// As for [`queue`](Self::queue), but `EROFS` comes first.
    pub(super) fn queue_of_names(&self) -> Result<&Committer, Errno> {
        match self.vault.is_read_only() {
            true => Err(Errno(libc::EROFS)),
            false => self.queue(),
        }
    }

    /// Makes everything acknowledged before durable.
    pub(super) fn barrier(&self, ticket: Ticket, done: Done<()>) {
        match &self.queue {
            Some(queue) => {
                let failures = Arc::clone(&self.failures);
                queue.barrier(ticket, move |outcome| done(failures.to_errno(outcome)));
            }
            // A reader has nothing to make durable.
            None => done(Ok(())),
        }
    }

    /// Commits queued jobs, makes everything durable, and ends the thread; false if there is no
    /// queue.
    pub(super) fn close(&self) -> bool {
        if let Some(queue) = &self.queue {
            queue.close();
        }
        self.queue.is_some()
    }
}
