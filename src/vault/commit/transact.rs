//! Writing: transactions of jobs, and the two that change what everything else stands under.

use std::sync::Arc;

use crate::keyring::{EventRow, Keyring, KeyringError};
use crate::store::{self, Durability, Read, Store as _};

use super::super::cache::Changes;
use super::super::current::{Changed, Checked};
use super::super::state::State;
use super::super::{Job, Tx, Vault, VaultError};
use super::Turn;

impl Vault {
    /// Whether nothing is written any more until it is opened anew, after a failure that left open what is
    /// on disk.
    pub fn has_stopped_writing(&self) -> bool {
        self.store.has_stopped_writing() || self.commit_queue.has_failed()
    }

    /// Runs `jobs` in one transaction. Each succeeds or fails alone; the outer error means that
    /// none of them did anything, or that it is not known whether they are on disk.
    ///
    /// # Errors
    /// When the vault is open for reading only, or the store fails.
    pub fn transact(
        &self,
        durability: Durability,
        jobs: &mut [Job<'_>],
    ) -> Result<Vec<Result<(), VaultError>>, VaultError> {
        if self.read_only {
            return Err(VaultError::ReadOnly);
        }
        self.must_serve()?;
        let mut turn = self.commit_queue.turn_to_write()?;
        let outcomes = self.transact_in(&mut turn, jobs)?;
        drop(turn);
        // Others go on to commit while this one waits for the disk.
        if durability == Durability::Now {
            self.store.sync()?;
        }
        Ok(outcomes)
    }

    /// As [`transact`](Self::transact), for whoever has the turn. It is not on disk yet.
    pub(in crate::vault) fn transact_in(
        &self,
        turn: &mut Turn<'_>,
        jobs: &mut [Job<'_>],
    ) -> Result<Vec<Result<(), VaultError>>, VaultError> {
        if self.read_only {
            return Err(VaultError::ReadOnly);
        }
        self.must_serve()?;
        // Not before: whoever changes the keyring has the turn.
        let (keyring, system) = (self.keyring(), self.system());
        let (mut outcomes, mut doubt, mut marks) = (Vec::new(), None, Vec::new());
        let mut committing = None;
        let finished = store::write(&self.store, Durability::Soon, |records| {
            let mut checked = Checked::new(&self.current, records);
            let finished = run_all(
                Tx::new(&keyring, &system, &self.cache, &mut checked, turn.clone()),
                jobs,
                &mut outcomes,
            );
            // Nobody else writes meanwhile, so there is no doubt.
            doubt = checked.doubt.take();
            marks = checked.into_changed();
            committing.get_or_insert_with(|| self.current.committing());
            finished
        });
        if let Some(doubt) = doubt {
            self.guard.found(&doubt);
        }
        match finished {
            Ok((committed, changed)) => {
                self.current.commit(committed.commit, marks);
                self.cache.commit(changed);
                turn.commit(committed);
            }
            Err(Rollback::Untouched) => {}
            Err(Rollback::Failed(error)) => {
                self.look_again(turn, marks);
                return Err(error);
            }
        }
        drop(committing);
        Ok(outcomes)
    }

    /// An error after the commit leaves open whether it was one: only the store knows. `marks` are of
    /// what was to be committed.
    pub(in crate::vault) fn look_again(&self, turn: &mut Turn<'_>, marks: Vec<Changed>) {
        self.cache.clear();
        let before = turn.commit;
        match store::read(&self.store, |records| self.stored_state(records)) {
            Ok(stored) if stored.commit == before || stored.commit == before + 1 => {
                if stored.commit > before {
                    self.current.commit(stored.commit, marks);
                }
                turn.commit(stored);
            }
            Ok(stored) => self.condemn(&VaultError::went_back(before, stored.commit)),
            Err(_) => {}
        }
    }

    /// Stores a keyring that `edit` has changed, and what it has to say, and then uses it.
    /// `guard` is asked inside the transaction whether that is still right.
    pub(in crate::vault) fn change_keyring(
        &self,
        edit: impl FnOnce(&mut Keyring) -> Result<Option<EventRow>, KeyringError>,
        guard: impl Fn(&mut dyn Read) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        self.must_serve()?;
        self.change_keyring_all_the_same(edit, guard)
    }

    /// The same for a vault of which nothing more is served.
    pub(in crate::vault) fn change_keyring_all_the_same(
        &self,
        edit: impl FnOnce(&mut Keyring) -> Result<Option<EventRow>, KeyringError>,
        guard: impl Fn(&mut dyn Read) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        let mut turn = self.commit_queue.turn_to_write()?;
        let mut next = Keyring::clone(&self.keyring());
        let event = edit(&mut next)?;
        let system = self.system();
        die_at!("keyring-before");
        let (mut marks, mut committing) = (Vec::new(), None);
        let finished = store::write(&self.store, Durability::Now, |records| {
            guard(&mut *records)?;
            let mut checked = Checked::new(&self.current, records);
            let mut tx = Tx::new(&next, &system, &self.cache, &mut checked, turn.clone());
            tx.put_keyring(event.as_slice())?;
            let finished = tx.finish()?;
            marks = checked.into_changed();
            committing.get_or_insert_with(|| self.current.committing());
            die_at!("keyring-uncommitted");
            Ok(finished)
        });
        die_at!("keyring-stored");
        let error = match finished {
            Ok((committed, _)) => {
                self.current.commit(committed.commit, marks);
                turn.commit(committed);
                None
            }
            Err(error) => {
                self.look_again(&mut turn, marks);
                Some(error)
            }
        };
        // Stored first, used then. Nothing can be written under it before the turn ends.
        if turn.keyring == next.body().sequence {
            *self.keyring.write() = Arc::new(next);
        }
        drop(committing);
        drop(turn);
        die_at!("keyring-used");
        if let Some(error) = error {
            return Err(error);
        }
        self.lock_chronicle().take(event.as_ref());
        self.host.note_keyring(|| self.keyring());
        die_at!("keyring-anchored");
        Ok(())
    }
}

/// Runs the jobs of a transaction, and ends it if there is anything to commit.
fn run_all(
    mut tx: Tx<'_>,
    jobs: &mut [Job<'_>],
    outcomes: &mut Vec<Result<(), VaultError>>,
) -> Result<(State, Changes), Rollback> {
    *outcomes = jobs
        .iter_mut()
        .map(|job| tx.run(*job))
        .collect::<Result<_, VaultError>>()?;
    // Nothing to commit is not worth a commit; the error only rolls back.
    if !tx.is_touched() {
        return Err(Rollback::Untouched);
    }
    Ok(tx.finish()?)
}

/// Why a transaction was rolled back.
pub(in crate::vault) enum Rollback {
    Untouched,
    Failed(VaultError),
}

impl From<store::StoreError> for Rollback {
    fn from(error: store::StoreError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<VaultError> for Rollback {
    fn from(error: VaultError) -> Self {
        Self::Failed(error)
    }
}
