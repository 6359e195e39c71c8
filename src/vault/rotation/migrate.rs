//! Re-wrapping every data key, and showing that none is left.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::keyring::Change;
use crate::store::{Durability, NodeId};

use super::super::node::{Node, SYSTEM};
use super::super::tx::Migrated;
use super::super::{Failure, Job, Key, Tx, Vault, VaultError, content};
use super::damage::Damage;

/// Keys looked for in one read.
const BATCH: usize = 256;
/// How long a transaction may keep others from writing.
pub(super) const SLICE: Duration = Duration::from_millis(20);

impl Key {
    fn migrate(
        self,
        tx: &mut Tx<'_>,
        despite: bool,
        until: Instant,
    ) -> Result<Migrated, VaultError> {
        match self {
            Key::Node(node) => tx.migrate_node(node, despite, until),
            Key::Version(node, version) => {
                tx.migrate_version(node, version).map(|()| Migrated::Done)
            }
        }
    }
}

impl Vault {
    /// Re-wraps what the old key wraps. Finds it by asking for it, from the beginning: what was
    /// done before, by whomever, is not found.
    pub(super) fn migrate(
        &self,
        change: &Change,
        go_on: &dyn Fn() -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, VaultError> {
        let (under, total) = self.read(|records| Ok(records.keys_under(change.to)?))?;
        {
            let mut figures = self.rotation.figures();
            (figures.done, figures.total) = (under, total);
            figures.since = Some((Instant::now(), under));
        }
        let mut damage = Damage::default();
        let mut after = None;
        loop {
            let nodes = self.read(|r| Ok(r.nodes_not_under(change.to, after, BATCH)?))?;
            // Sums over everything stand under the system node's key: it is replaced last.
            let waits = |node: &&NodeId| **node == SYSTEM && self.keyring().renews_data_keys();
            let now = nodes.iter().filter(|node| !waits(node));
            let keys: Vec<_> = now.map(|node| Key::Node(*node)).collect();
            if self.rewrap_all(&keys, &mut damage, go_on)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            after = nodes.last().copied();
            if after.is_none() {
                break;
            }
        }
        let mut after = None;
        loop {
            let versions = self.read(|r| Ok(r.versions_not_under(change.to, after, BATCH)?))?;
            let keys: Vec<_> = versions
                .iter()
                .map(|(node, version)| Key::Version(*node, *version))
                .collect();
            if self.rewrap_all(&keys, &mut damage, go_on)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            after = versions.last().copied();
            if after.is_none() {
                break;
            }
        }
        self.sync()?;
        if let Some(error) = damage.passing.take() {
            return Err(error);
        }
        let error = damage.first();
        *self.rotation.damage() = damage;
        let despite = self.rotation.is_despite();
        match error {
            // All others are done: one bad record keeps no more than itself under the old key.
            Some(error) if !despite => return Err(error),
            _ => {}
        }
        if self.keyring().renews_data_keys() {
            return self.renew_system(change.to, despite, go_on);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Re-wraps `keys` in transactions that end in time. What does not authenticate is passed over;
    /// `damage` names it.
    fn rewrap_all(
        &self,
        keys: &[Key],
        damage: &mut Damage,
        go_on: &dyn Fn() -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, VaultError> {
        let mut rest = keys;
        while !rest.is_empty() {
            if go_on().is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let (begun, taken) = (Cell::new(Instant::now()), Cell::new(0));
            let unfinished = RefCell::new(Vec::new());
            let despite = self.rotation.is_despite();
            // Each a job of its own: one that fails leaves nothing half done.
            let mut jobs: Vec<_> = rest
                .iter()
                .enumerate()
                .map(|(at, key)| {
                    let (begun, taken, unfinished) = (&begun, &taken, &unfinished);
                    move |tx: &mut Tx<'_>| {
                        if at == 0 {
                            begun.set(Instant::now());
                            unfinished.borrow_mut().clear();
                        } else if begun.get().elapsed() > SLICE {
                            return Ok(());
                        }
                        taken.set(at + 1);
                        die_at!("migrate-within");
                        match key.migrate(tx, despite, begun.get() + SLICE)? {
                            Migrated::Done => {}
                            migrated => unfinished.borrow_mut().push((*key, migrated)),
                        }
                        Ok(())
                    }
                })
                .collect();
            let mut jobs: Vec<Job<'_>> = jobs.iter_mut().map(|job| job as Job<'_>).collect();
            die_at!("migrate-before");
            let outcomes = self.transact(Durability::Soon, &mut jobs)?;
            die_at!("migrate-after");
            let mut told = false;
            for (key, outcome) in rest.iter().zip(outcomes) {
                match outcome {
                    Ok(()) => {}
                    Err(error) if error.failure() == Failure::Integrity => {
                        // Once in a batch: somebody may have forged them all.
                        if !std::mem::replace(&mut told, true) {
                            tracing::error!("a key cannot be replaced: {error}");
                        }
                        damage.leave(*key, error);
                    }
                    Err(error) => drop(damage.passing.get_or_insert(error)),
                }
            }
            for (key, migrated) in unfinished.into_inner() {
                if self.move_names(key, migrated, damage, go_on)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            let taken = taken.get();
            rest = &rest[taken..];
            self.rotation.figures().done += taken as u64;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Opens every key with the new master key, and recounts the vault. Names what does not open or
    /// does not fit.
    pub(super) fn verify(
        &self,
        change: &Change,
        go_on: &dyn Fn() -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, VaultError> {
        let keyring = self.keyring();
        let mut after = None;
        loop {
            let batch = self.read(|records| Ok(records.scan_nodes(after, BATCH)?))?;
            for (id, record) in &batch {
                if record.generation == change.to {
                    self.verified(Key::Node(*id), Node::open(&keyring, *id, record).map(drop))?;
                }
            }
            after = batch.last().map(|(id, _)| *id);
            if after.is_none() {
                break;
            }
            if go_on().is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        let mut after = None;
        loop {
            let batch = self.read(|records| Ok(records.scan_versions(after, BATCH)?))?;
            for ((node, version), record) in &batch {
                if record.generation == change.to {
                    let unwrapped = content::must_unwrap(&keyring, *node, *version, record);
                    self.verified(Key::Version(*node, *version), unwrapped)?;
                }
            }
            after = batch.last().map(|(key, _)| *key);
            if after.is_none() {
                break;
            }
            if go_on().is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        self.verified("the sums over all records", self.recount())?;
        Ok(ControlFlow::Continue(()))
    }

    /// Notes an integrity failure, and passes on any other.
    fn verified(
        &self,
        what: impl std::fmt::Display,
        result: Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        match result {
            Err(error) if error.failure() == Failure::Integrity => {
                self.rotation.damage().note(what, error);
                Ok(())
            }
            result => result,
        }
    }
}
