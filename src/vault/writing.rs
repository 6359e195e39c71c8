//! Writing: transactions of jobs, and the two that change what everything else stands under.

use std::sync::Arc;

use crate::keyring::{Event, EventRow, Keyring, KeyringError};
use crate::os::nice;
use crate::store::{self, Durability, Read};
use crate::sync::{Mutex, MutexGuard, Rank};

use super::VaultError;
use super::cache::Changes;
use super::chronicle::Chronicle;
use super::current::{Changed, Checked};
use super::host::memory::HostMemory;
use super::integrity::Guard;
use super::node::{Node, SYSTEM};
use super::records::Records;
use super::renewing::{Renewing, Step};
use super::state::State;
use super::turns::Turns;
use super::tx::{Job, Tx};

/// Who commits.
pub(super) struct Committer {
    records: Arc<Records>,
    guard: Arc<Guard>,
    host: Arc<HostMemory>,
    /// What the key-management history comes to.
    chronicle: Arc<Mutex<Chronicle>>,
    /// As of the last commit; locked while a transaction runs.
    state: Mutex<State>,
    turns: Turns,
}

/// The state, which nobody else changes meanwhile.
pub(super) struct LockedState<'a> {
    // Let go of first.
    state: MutexGuard<'a, State>,
    _forward: nice::Forward,
}

impl std::ops::Deref for LockedState<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl std::ops::DerefMut for LockedState<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Committer {
    /// Of a vault that was just opened, and has this `state`.
    pub(super) fn new(
        records: Arc<Records>,
        guard: Arc<Guard>,
        host: Arc<HostMemory>,
        chronicle: Arc<Mutex<Chronicle>>,
        state: State,
    ) -> Self {
        Self {
            records,
            guard,
            host,
            chronicle,
            state: Mutex::new(Rank::State, state),
            turns: Turns::default(),
        }
    }

    /// Whoever waits for it waits for nobody who has stepped back.
    pub(super) fn lock_state(&self) -> LockedState<'_> {
        let forward = nice::forward();
        LockedState {
            state: self.state.lock(),
            _forward: forward,
        }
    }

    /// Runs `jobs` in one transaction. Each succeeds or fails alone; the outer error means that
    /// none of them did anything, or that it is not known whether they are on disk.
    ///
    /// # Errors
    /// When the vault is open for reading only, or the store fails.
    pub(super) fn transact(
        &self,
        durability: Durability,
        jobs: &mut [Job<'_>],
    ) -> Result<Vec<Result<(), VaultError>>, VaultError> {
        if self.records.is_read_only() {
            return Err(VaultError::ReadOnly);
        }
        self.guard.must_serve()?;
        let mut state = self.turns.take(|| self.lock_state());
        // Not before: whoever changes the keyring holds the state.
        let records = &*self.records;
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
                    state.clone(),
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
        if let Some(doubt) = doubt {
            self.guard.found(&doubt);
        }
        match finished {
            Ok((committed, changed)) => {
                records.current().commit(committed.commit, marks);
                records.cache().commit(changed);
                records.show(&committed);
                *state = committed;
            }
            Err(Rollback::Untouched) => {}
            Err(Rollback::Failed(error)) => {
                self.look_again(&mut state, marks);
                return Err(error);
            }
        }
        drop(committing);
        drop(state);
        // Others go on to commit while this one waits for the disk.
        if durability == Durability::Now {
            records.sync()?;
        }
        Ok(outcomes)
    }

    /// A transaction of a rotation: whoever waits to write goes first.
    pub(super) fn transact_after_others(
        &self,
        jobs: &mut [Job<'_>],
    ) -> Result<Vec<Result<(), VaultError>>, VaultError> {
        self.turns.give_way();
        self.transact(Durability::Soon, jobs)
    }

    /// An error after the commit leaves open whether it was one: only the store knows. `marks` are of
    /// what was to be committed.
    fn look_again(&self, state: &mut State, marks: Vec<Changed>) {
        self.records.cache().clear();
        let before = state.commit;
        let records = &*self.records;
        match store::read(records.store(), |stored| records.stored_state(stored)) {
            Ok(stored) if stored.commit == before || stored.commit == before + 1 => {
                if stored.commit > before {
                    records.current().commit(stored.commit, marks);
                }
                records.show(&stored);
                *state = stored;
            }
            Ok(stored) => self
                .guard
                .condemn(&VaultError::went_back(before, stored.commit)),
            Err(_) => {}
        }
    }

    /// Stores a keyring that `edit` has changed, and what it has to say, and then uses it.
    /// `guard` is asked inside the transaction whether that is still right.
    pub(super) fn change_keyring(
        &self,
        edit: impl FnOnce(&mut Keyring) -> Result<Option<EventRow>, KeyringError>,
        guard: impl Fn(&mut dyn Read) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        self.guard.must_serve()?;
        self.change_keyring_all_the_same(edit, guard)
    }

    /// The same for a vault of which nothing more is served.
    pub(super) fn change_keyring_all_the_same(
        &self,
        edit: impl FnOnce(&mut Keyring) -> Result<Option<EventRow>, KeyringError>,
        guard: impl Fn(&mut dyn Read) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        let mut state = self.lock_state();
        let records = &*self.records;
        let mut next = Keyring::clone(&records.keyring());
        let event = edit(&mut next)?;
        let system = records.system();
        die_at!("keyring-before");
        let (mut marks, mut committing) = (Vec::new(), None);
        let finished = store::write(records.store(), Durability::Now, |stored| {
            guard(&mut *stored)?;
            let mut checked = Checked::new(records.current(), stored);
            let mut tx = Tx::new(&next, &system, records.cache(), &mut checked, state.clone());
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
                records.current().commit(committed.commit, marks);
                records.show(&committed);
                *state = committed;
                None
            }
            Err(error) => {
                self.look_again(&mut state, marks);
                Some(error)
            }
        };
        // Stored first, used then. Nothing can be written under it before the state is let go.
        if state.keyring == next.body().sequence {
            records.keys().use_keyring(next);
        }
        drop(committing);
        drop(state);
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
    pub(super) fn change_system<T>(
        &self,
        deed: impl Fn(Renewing<'_>, Node) -> Result<Step<T>, VaultError>,
    ) -> Result<T, VaultError> {
        self.turns.give_way();
        let mut state = self.lock_state();
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
                state: state.clone(),
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
                self.look_again(&mut state, marks);
                return Err(error);
            }
        };
        records.current().commit(changed.commit, marks);
        records.show(&changed);
        *state = changed;
        drop(committing);
        Ok(done)
    }

    /// An error after the commit leaves open whether it was one.
    fn take_system_again(&self) {
        // Whoever calls holds the state, which a read that is in doubt would wait for.
        let records = &*self.records;
        if let Ok(keys) = store::read(records.store(), |stored| records.system_in(stored)) {
            records.keys().use_system(keys);
        }
    }

    /// Runs `body` in a transaction of its own in which nothing is compared with what was current, and
    /// records what it says it has done; `false` when it had nothing to do, and nothing was stored.
    pub(super) fn mend(
        &self,
        mut body: impl FnMut(&mut Tx<'_>) -> Result<Option<Event>, VaultError>,
    ) -> Result<bool, VaultError> {
        let mut state = self.lock_state();
        let records = &*self.records;
        let (keyring, system) = (records.keyring(), records.system());
        let mut changed = None;
        let finished = store::write(records.store(), Durability::Now, |stored| {
            let mut next = Keyring::clone(&keyring);
            let mut tx = Tx::new(&keyring, &system, records.cache(), stored, state.clone());
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
                self.look_again(&mut state, Vec::new());
                return Err(error);
            }
        };
        records.show(&committed);
        *state = committed;
        records.cache().clear();
        let Some((next, event)) = changed else {
            return Ok(true);
        };
        records.keys().use_keyring(next);
        drop(state);
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
