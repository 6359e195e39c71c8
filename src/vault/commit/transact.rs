//! Write transactions: those of jobs, those that change the keyring or the system node, and that of
//! a repair.

use std::sync::Arc;

use crate::keyring::{Event, EventRow, Keyring, KeyringError};
use crate::store::{self, Durability, Read, ReadRecords as _};
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

/// The write transactions of a vault.
pub(in crate::vault) struct Transactions {
    queue: Arc<CommitQueue>,
    records: Arc<Records>,
    guard: Arc<Guard>,
    host: Arc<HostMemory>,
    /// A summary of the key-management history.
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

    /// The commit queue.
    pub(in crate::vault) fn queue(&self) -> &CommitQueue {
        &self.queue
    }

    /// Whether a rotation is under way.
    pub(super) fn is_rotating(&self) -> bool {
        self.records.keyring().body().change.is_some()
    }

    /// Whether the vault refuses to write until it is reopened, because a failure left unknown what
    /// is on disk.
    pub(in crate::vault) fn has_stopped_writing(&self) -> bool {
        self.records.store().has_stopped_writing() || self.queue.has_failed()
    }

    /// Makes all commits durable.
    ///
    /// # Errors
    /// When the store fails.
    pub(in crate::vault) fn sync(&self) -> Result<(), VaultError> {
        self.records.sync()
    }

    /// Runs `jobs` in one transaction. Each succeeds or fails alone. The outer error means that
    /// none had an effect, or that it is unknown whether they are on disk.
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
        // Other threads commit while this one waits for the disk.
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

    /// Like [`transact`](Self::transact), for the holder of the turn. The commit is not on disk
    /// yet.
    pub(in crate::vault) fn transact_in(
        &self,
        turn: &mut Turn<'_>,
        jobs: &mut [Job<'_>],
    ) -> Result<Vec<Result<(), VaultError>>, VaultError> {
        self.must_write()?;
        turn.must_be_good_for_writing()?;
        let records = &*self.records;
        // Not before the turn: only its holder changes the keyring.
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
            // No other thread writes meanwhile, so a stale record is certain.
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
            self.guard.note_doubt(&doubt);
        }
        finished
    }

    /// Reads the state again after an error in a commit: only the store knows whether it happened.
    /// `marks` are those of the commit.
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

    /// Stores the keyring that `edit` makes, with its event, and then uses it. Inside the
    /// transaction, `guard` checks that the change is still right.
    pub(in crate::vault) fn change_keyring(
        &self,
        edit: impl FnOnce(&mut Keyring) -> Result<Option<EventRow>, KeyringError>,
        guard: impl Fn(&mut dyn Read) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        self.guard.must_serve()?;
        self.change_keyring_all_the_same(edit, guard)
    }

    /// The same for a condemned vault.
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
        // Store first, then use. No thread can write under it before the turn ends.
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
            self.guard.note_doubt(&doubt);
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

    /// Reads the keys again after an error in a commit, which may have taken effect.
    fn take_system_again(&self) {
        // The caller holds the turn, and a checked read that met a stale record would wait for it.
        let records = &*self.records;
        if let Ok(keys) = store::read(records.store(), |stored| records.system_in(stored)) {
            records.keys().use_system(keys);
        }
    }

    /// Runs `body` in its own transaction, which compares no record with the current ones, and
    /// records the event that it returns; `false` when `body` had nothing to do and nothing was
    /// stored.
    pub(in crate::vault) fn repair(
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

/// Runs the jobs of a transaction, and seals it if there is anything to commit.
fn run_all(
    mut tx: Tx<'_>,
    jobs: &mut [Job<'_>],
    outcomes: &mut Vec<Result<(), VaultError>>,
) -> Result<(State, Changes), Rollback> {
    *outcomes = jobs
        .iter_mut()
        .map(|job| tx.run(*job))
        .collect::<Result<_, VaultError>>()?;
    // Without changes no commit is needed; the error only rolls back.
    if !tx.is_touched() {
        return Err(Rollback::Untouched);
    }
    Ok(tx.finish()?)
}

/// The reason that a transaction was rolled back.
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
