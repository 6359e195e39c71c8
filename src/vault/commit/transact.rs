//! Writing: transactions of jobs, those that change what everything else stands under, and that of a
//! repair.

use std::sync::Arc;

use crate::keyring::{Event, EventRow, Keyring, KeyringError};
use crate::store::{self, Durability, Read, Store as _};
use crate::sync::Mutex;

use super::super::VaultError;
use super::super::cache::Changes;
use super::super::chronicle::Chronicle;
use super::super::current::{Changed, Checked};
use super::super::host::memory::HostMemory;
use super::super::integrity::Guard;
use super::super::node::{Node, SYSTEM};
use super::super::records::Records;
use super::super::renewing::{Renewing, Step};
use super::super::state::State;
use super::super::tx::{Job, Tx};
use super::{CommitQueue, Turn};

/// See the module.
pub(in crate::vault) struct Transactions {
    queue: Arc<CommitQueue>,
    records: Arc<Records>,
    guard: Arc<Guard>,
    host: Arc<HostMemory>,
    /// What the key-management history comes to.
    chronicle: Arc<Mutex<Chronicle>>,
}

impl Transactions {
    pub(in crate::vault) fn new(
        queue: Arc<CommitQueue>,
        records: Arc<Records>,
        guard: Arc<Guard>,
        host: Arc<HostMemory>,
        chronicle: Arc<Mutex<Chronicle>>,
    ) -> Self {
        Self {
            queue,
            records,
            guard,
            host,
            chronicle,
        }
    }

    /// Whose turn it is.
    pub(in crate::vault) fn queue(&self) -> &CommitQueue {
        &self.queue
    }

    /// Whether a rotation is under way.
    pub(super) fn is_rotating(&self) -> bool {
        self.records.keyring().body().change.is_some()
    }

    /// Whether nothing is written any more until the vault is opened anew, after a failure that left open
    /// what is on disk.
    pub(in crate::vault) fn has_stopped_writing(&self) -> bool {
        self.records.store().has_stopped_writing() || self.queue.has_failed()
    }

    /// Makes durable all that was committed.
    ///
    /// # Errors
    /// When the store fails.
    pub(in crate::vault) fn sync(&self) -> Result<(), VaultError> {
        self.records.sync()
    }

    /// Runs `jobs` in one transaction. Each succeeds or fails alone; the outer error means that
    /// none of them did anything, or that it is not known whether they are on disk.
    ///
    /// # Errors
    /// When the vault is open for reading only, or the store fails.
    pub(in crate::vault) fn transact(
        &self,
        durability: Durability,
        jobs: &mut [Job<'_>],
    ) -> Result<Vec<Result<(), VaultError>>, VaultError> {
        self.must_write()?;
        let mut turn = self.queue.turn_to_write()?;
        let outcomes = self.transact_in(&mut turn, jobs)?;
        drop(turn);
        // Others go on to commit while this one waits for the disk.
        if durability == Durability::Now {
            self.sync()?;
        }
        Ok(outcomes)
    }

    fn must_write(&self) -> Result<(), VaultError> {
        match self.records.is_read_only() {
            true => Err(VaultError::ReadOnly),
            false => self.guard.must_serve(),
        }
    }

    /// As [`transact`](Self::transact), for whoever has the turn. It is not on disk yet.
    pub(in crate::vault) fn transact_in(
        &self,
        turn: &mut Turn<'_>,
        jobs: &mut [Job<'_>],
    ) -> Result<Vec<Result<(), VaultError>>, VaultError> {
        self.must_write()?;
        turn.must_be_good_for_writing()?;
        let records = &*self.records;
        // Not before: whoever changes the keyring has the turn.
        let (keyring, system) = (records.keyring(), records.system());
        let (mut outcomes, mut doubt, mut marks) = (Vec::new(), None, Vec::new());
        let mut committing = None;
        let finished = store::write(records.store(), Durability::Soon, |stored| {
            let mut checked = Checked::new(records.current(), stored);
            let finished = run_all(
                Tx::new(
                    &keyring,
                    &system,
                    records.cache(),
                    &mut checked,
                    turn.clone(),
                ),
                jobs,
                &mut outcomes,
            );
            // Nobody else writes meanwhile, so there is no doubt.
            doubt = checked.doubt.take();
            marks = checked.into_changed();
            committing.get_or_insert_with(|| records.current().committing());
            finished
        });
        let finished = match finished {
            Ok((committed, changed)) => {
                // Nothing comes before this: a panic there would leave an older state in use.
                let commit = committed.commit;
                turn.commit(committed);
                records.current().commit(commit, marks);
                records.cache().commit(changed);
                Ok(outcomes)
            }
            Err(Rollback::Untouched) => Ok(outcomes),
            Err(Rollback::Failed(error)) => {
                self.look_again(turn, marks);
                Err(error)
            }
        };
        drop(committing);
        if let Some(doubt) = doubt {
            self.guard.found(&doubt);
        }
        finished
    }

    /// An error after the commit leaves open whether it was one: only the store knows. `marks` are of
    /// what was to be committed.
    fn look_again(&self, turn: &mut Turn<'_>, marks: Vec<Changed>) {
        self.records.cache().clear();
        let before = turn.commit;
        let records = &*self.records;
        match store::read(records.store(), |stored| records.stored_state(stored)) {
            Ok(stored) if stored.commit == before || stored.commit == before + 1 => {
                let commit = stored.commit;
                turn.commit(stored);
                if commit > before {
                    records.current().commit(commit, marks);
                }
            }
            Ok(stored) => self
                .guard
                .condemn(&VaultError::went_back(before, stored.commit)),
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
        self.guard.must_serve()?;
        self.change_keyring_all_the_same(edit, guard)
    }

    /// The same for a vault of which nothing more is served.
    pub(in crate::vault) fn change_keyring_all_the_same(
        &self,
        edit: impl FnOnce(&mut Keyring) -> Result<Option<EventRow>, KeyringError>,
        guard: impl Fn(&mut dyn Read) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        let mut turn = self.queue.turn_to_write()?;
        let records = &*self.records;
        let mut next = Keyring::clone(&records.keyring());
        let event = edit(&mut next)?;
        let system = records.system();
        die_at!("keyring-before");
        let (mut marks, mut committing) = (Vec::new(), None);
        let finished = store::write(records.store(), Durability::Now, |stored| {
            guard(&mut *stored)?;
            let mut checked = Checked::new(records.current(), stored);
            let mut tx = Tx::new(&next, &system, records.cache(), &mut checked, turn.clone());
            tx.put_keyring(event.as_slice())?;
            let finished = tx.finish()?;
            marks = checked.into_changed();
            committing.get_or_insert_with(|| records.current().committing());
            die_at!("keyring-uncommitted");
            Ok(finished)
        });
        die_at!("keyring-stored");
        let error = match finished {
            Ok((committed, _)) => {
                let commit = committed.commit;
                turn.commit(committed);
                records.current().commit(commit, marks);
                None
            }
            Err(error) => {
                self.look_again(&mut turn, marks);
                Some(error)
            }
        };
        // Stored first, used then. Nothing can be written under it before the turn ends.
        if turn.keyring == next.body().sequence {
            records.keys().use_keyring(next);
        }
        drop(committing);
        drop(turn);
        die_at!("keyring-used");
        if let Some(error) = error {
            return Err(error);
        }
        self.chronicle.lock().take(event.as_ref());
        self.host.note_keyring(|| records.keyring());
        die_at!("keyring-anchored");
        Ok(())
    }

    /// A transaction on the system node and the state.
    pub(in crate::vault) fn change_system<T>(
        &self,
        deed: impl Fn(Renewing<'_>, Node) -> Result<Step<T>, VaultError>,
    ) -> Result<T, VaultError> {
        let mut turn = self.queue.turn_to_write()?;
        let records = &*self.records;
        let (keyring, keys) = (records.keyring(), records.system());
        die_at!("system-before");
        let (mut marks, mut doubt, mut committing) = (Vec::new(), None, None);
        let step = store::write(records.store(), Durability::Soon, |stored| {
            let mut checked = Checked::new(records.current(), stored);
            let missing = || VaultError::tampered("the system node", "is missing");
            let record = checked
                .node(SYSTEM)
                .inspect_err(|_| doubt = checked.doubt.take())?;
            let record = record.ok_or_else(missing)?;
            let node = Node::open(&keyring, SYSTEM, &record)?;
            let renewing = Renewing {
                keyring: &keyring,
                records: &mut checked,
                keys: &keys,
                state: turn.clone(),
            };
            let step = deed(renewing, node)?;
            die_at!("system-within");
            marks = checked.into_changed();
            committing.get_or_insert_with(|| records.current().committing());
            Ok::<_, VaultError>(step)
        });
        if let Some(doubt) = doubt {
            self.guard.found(&doubt);
        }
        die_at!("system-stored");
        let (changed, done) = match step {
            Ok(Step::None(found)) => return Ok(found),
            Ok(Step::Stored(changed, done)) => (changed, done),
            Ok(Step::Changed(changed, keys, done)) => {
                records.keys().use_system(Arc::new(keys));
                records.cache().commit(Changes::forgotten([SYSTEM]));
                (changed, done)
            }
            Err(error) => {
                self.take_system_again();
                self.look_again(&mut turn, marks);
                return Err(error);
            }
        };
        records.current().commit(changed.commit, marks);
        turn.commit(changed);
        drop(committing);
        Ok(done)
    }

    /// An error after the commit leaves open whether it was one.
    fn take_system_again(&self) {
        // Whoever calls has the turn, which a read that is in doubt would wait for.
        let records = &*self.records;
        if let Ok(keys) = store::read(records.store(), |stored| records.system_in(stored)) {
            records.keys().use_system(keys);
        }
    }

    /// Runs `body` in a transaction of its own in which nothing is compared with what was current, and
    /// records what it says it has done; `false` when it had nothing to do, and nothing was stored.
    pub(in crate::vault) fn mend(
        &self,
        mut body: impl FnMut(&mut Tx<'_>) -> Result<Option<Event>, VaultError>,
    ) -> Result<bool, VaultError> {
        let mut turn = self.queue.turn_to_write()?;
        let records = &*self.records;
        let (keyring, system) = (records.keyring(), records.system());
        let mut changed = None;
        let finished = store::write(records.store(), Durability::Now, |stored| {
            let mut next = Keyring::clone(&keyring);
            let mut tx = Tx::new(&keyring, &system, records.cache(), stored, turn.clone());
            let Some(event) = body(&mut tx)? else {
                return Err(Rollback::Untouched);
            };
            let event = next.record_event(&event);
            tx.keyring = &next;
            tx.put_keyring(std::slice::from_ref(&event))?;
            let (committed, _) = tx.finish()?;
            changed = Some((next, event));
            Ok(committed)
        });
        let committed = match finished {
            Ok(committed) => committed,
            Err(Rollback::Untouched) => return Ok(false),
            Err(Rollback::Failed(error)) => {
                self.look_again(&mut turn, Vec::new());
                return Err(error);
            }
        };
        turn.commit(committed);
        records.cache().clear();
        let Some((next, event)) = changed else {
            return Ok(true);
        };
        records.keys().use_keyring(next);
        drop(turn);
        self.chronicle.lock().take(Some(&event));
        self.host.note_keyring(|| records.keyring());
        Ok(true)
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
enum Rollback {
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
