//! Moves every data key to the new master key.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::time::Instant;

use crate::keyring::Rotation;
use crate::os::nice;
use crate::store::Durability;

use super::super::cache::Changes;
use super::super::commit::transact::Transactions;
use super::super::crew::Crew;
use super::super::keys::KeyedId;
use super::super::node::{Node, SYSTEM};
use super::super::records::Records;
use super::super::tx::directory::{Migrated, migrate_node};
use super::super::tx::{Exchange, Job, Tx};
use super::super::{Failure, VaultError};
use super::damage::Damage;
use super::names::move_names;
use super::prepare::{Keyed, prepare};
use super::progress::Standing;
use super::search::{BATCH, Search, slice};

impl KeyedId {
    fn migrate(
        self,
        tx: &mut Tx<'_>,
        despite: bool,
        until: Instant,
    ) -> Result<Migrated, VaultError> {
        match self {
            KeyedId::Node(node) => migrate_node(tx, node, despite, until),
            KeyedId::Version(node, version) => {
                tx.migrate_version(node, version).map(|()| Migrated::Done)
            }
        }
    }
}

/// One run of the migration that the module describes.
pub(super) struct Migration<'a> {
    pub(super) records: &'a Records,
    pub(super) transactions: &'a Transactions,
    pub(super) standing: &'a Standing,
    /// Whether to go on: asked between batches.
    pub(super) go_on: &'a dyn Fn() -> ControlFlow<()>,
}

impl Migration<'_> {
    /// Re-wraps all records under the old key. It queries for them from the beginning, and so skips
    /// records that any process has already done.
    pub(super) fn run(&self, change: &Rotation) -> Result<ControlFlow<()>, VaultError> {
        let (under, total) = self
            .records
            .read(|records| Ok(records.keys_under(change.to)?))?;
        {
            let mut figures = self.standing.figures();
            (figures.done, figures.total) = (under, total);
            figures.since = Some((Instant::now(), under));
        }
        let mut damage = Damage::of_a_run(self.standing.is_despite());
        if self.exchange_all(change, &mut damage)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        self.records.sync()?;
        if let Some(error) = damage.passing.take() {
            return Err(error);
        }
        let (error, despite) = (damage.first(), damage.despite);
        *self.standing.damage() = damage;
        match error {
            // All other records are done: a bad record keeps only itself under the old key, and the
            // vault's own node, which comes last.
            Some(error) if !despite => return Err(error),
            _ => {}
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Reads the records under the old key, moves them to the new one on all processors, and stores
    /// them.
    fn exchange_all(
        &self,
        change: &Rotation,
        damage: &mut Damage,
    ) -> Result<ControlFlow<()>, VaultError> {
        let records = self.records;
        let (keyring, system) = (records.keyring(), records.system());
        let prepare = |batch| prepare(records, &keyring, &system, batch);
        Crew::with(&prepare, |crew, prepare| {
            let mut search = Search::for_all_but(change.to);
            let mut slow = Vec::new();
            loop {
                while crew.room() > 0
                    && let Some((fast, others)) = self.next_batch(&mut search)?
                {
                    if !fast.is_empty() {
                        crew.give(fast);
                    }
                    slow.extend(others);
                    if slow.len() >= BATCH {
                        let keys = std::mem::take(&mut slow);
                        if self.rewrap_all(&keys, damage)?.is_break() {
                            return Ok(ControlFlow::Break(()));
                        }
                    }
                }
                let Some(prepared) = crew.take(prepare) else {
                    return self.rewrap_all(&slow, damage);
                };
                // The stored record decides, not the one that was read while it was intact.
                let doubtful = prepared.rest.iter().filter_map(|key| key.node());
                {
                    let _forward = nice::forward();
                    records.cache().commit(Changes::forgotten(doubtful));
                }
                if self.exchange(&prepared.exchanges, damage)?.is_break()
                    || self.rewrap_all(&prepared.rest, damage)?.is_break()
                {
                    return Ok(ControlFlow::Break(()));
                }
                if !prepared.left.is_empty() {
                    crew.give(prepared.left);
                }
            }
        })
    }

    /// The next keys that are not under the new master key: those whose new records can be made
    /// outside a transaction, and the others. `None` at the end.
    #[allow(clippy::type_complexity)]
    fn next_batch(
        &self,
        search: &mut Search,
    ) -> Result<Option<(Vec<Keyed>, Vec<KeyedId>)>, VaultError> {
        let found = match self.records.read(|records| search.with_records(records)) {
            // A record that cannot be read must not block the others.
            Err(error) if error.failure() == Failure::Integrity => {
                let keys = self
                    .records
                    .read(|records| search.without_records(records))?;
                keys.into_iter().map(|key| (key, None)).collect()
            }
            found => found?,
        };
        let Some((last, _)) = found.last() else {
            return Ok(None);
        };
        search.after(*last);
        let (mut fast, mut slow) = (Vec::new(), Vec::new());
        for (key, record) in found {
            match (key, record) {
                // The sums of the vault are under the system node's key, which is replaced last.
                (KeyedId::Node(SYSTEM), _) => {}
                (_, None) => slow.push(key),
                // The directory's names are under its key.
                (KeyedId::Node(_), Some(record)) if Node::says_directory(&record) => slow.push(key),
                (_, Some(record)) => fast.push((key, record)),
            }
        }
        Ok(Some((fast, slow)))
    }

    /// Stores prepared records, in short transactions.
    fn exchange(
        &self,
        exchanges: &[Exchange],
        damage: &mut Damage,
    ) -> Result<ControlFlow<()>, VaultError> {
        let mut rest = exchanges;
        while !rest.is_empty() {
            if (self.go_on)().is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let mut taken = 0;
            let mut job = |tx: &mut Tx<'_>| {
                let begun = Instant::now();
                taken = 0;
                for exchange in rest {
                    if taken > 0 && begun.elapsed() > slice() {
                        break;
                    }
                    die_at!("migrate-within");
                    tx.exchange(exchange)?;
                    taken += 1;
                }
                Ok(())
            };
            die_at!("migrate-before");
            let outcomes = self
                .transactions
                .transact(Durability::Soon, &mut [&mut job])?;
            die_at!("migrate-after");
            self.standing.figures().done += taken as u64;
            rest = &rest[taken..];
            if outcomes.into_iter().any(|outcome| outcome.is_err()) {
                let keys: Vec<_> = rest.iter().map(|exchange| exchange.key).collect();
                return self.rewrap_all(&keys, damage);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Re-wraps `keys` in short transactions. Skips records that do not authenticate; `damage`
    /// names them.
    fn rewrap_all(
        &self,
        keys: &[KeyedId],
        damage: &mut Damage,
    ) -> Result<ControlFlow<()>, VaultError> {
        let mut rest = keys;
        while !rest.is_empty() {
            if (self.go_on)().is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let (begun, taken) = (Cell::new(Instant::now()), Cell::new(0));
            let unfinished = RefCell::new(Vec::new());
            let despite = damage.despite;
            // Each record is a job of its own, so a failed one leaves nothing half done.
            let mut jobs: Vec<_> = rest
                .iter()
                .enumerate()
                .map(|(at, key)| {
                    let (begun, taken, unfinished) = (&begun, &taken, &unfinished);
                    move |tx: &mut Tx<'_>| {
                        if at == 0 {
                            begun.set(Instant::now());
                            unfinished.borrow_mut().clear();
                        } else if begun.get().elapsed() > slice() {
                            return Ok(());
                        }
                        taken.set(at + 1);
                        die_at!("migrate-within");
                        match key.migrate(tx, despite, begun.get() + slice())? {
                            Migrated::Done => {}
                            migrated => unfinished.borrow_mut().push((*key, migrated)),
                        }
                        Ok(())
                    }
                })
                .collect();
            let mut jobs: Vec<Job<'_>> = jobs.iter_mut().map(|job| job as Job<'_>).collect();
            die_at!("migrate-before");
            let outcomes = self.transactions.transact(Durability::Soon, &mut jobs)?;
            die_at!("migrate-after");
            let mut is_logged = false;
            for (key, outcome) in rest.iter().zip(outcomes) {
                match outcome {
                    Ok(()) => {}
                    Err(error) if error.failure() == Failure::Integrity => {
                        // Log once in a batch: an attacker may have forged them all.
                        if !std::mem::replace(&mut is_logged, true) {
                            tracing::error!("a key cannot be replaced: {error}");
                        }
                        damage.leave(*key, error);
                    }
                    Err(error) => drop(damage.passing.get_or_insert(error)),
                }
            }
            for (key, migrated) in unfinished.into_inner() {
                if move_names(self.transactions, key, migrated, damage, self.go_on)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            let taken = taken.get();
            rest = &rest[taken..];
            self.standing.figures().done += taken as u64;
        }
        Ok(ControlFlow::Continue(()))
    }
}
