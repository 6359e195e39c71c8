//! Re-wrapping every data key, and showing that none is left.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::keyring::Change;
use crate::store::{Durability, NodeId};

use super::super::node::Node;
use super::super::{Tx, Vault, VaultError, content};

/// Keys looked for in one read.
const BATCH: usize = 256;
/// How long a transaction may keep others from writing.
const SLICE: Duration = Duration::from_millis(20);

/// A data key, by the record that carries it.
#[derive(Clone, Copy)]
enum Key {
    Node(NodeId),
    Version(NodeId, u64),
}

impl Key {
    fn rewrap(self, tx: &mut Tx<'_>) -> Result<(), VaultError> {
        match self {
            Key::Node(node) => tx.rewrap_node(node),
            Key::Version(node, version) => tx.rewrap_version(node, version),
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
        let mut failed = None;
        let mut after = None;
        loop {
            let nodes = self.read(|r| Ok(r.nodes_not_under(change.to, after, BATCH)?))?;
            let keys: Vec<_> = nodes.iter().map(|node| Key::Node(*node)).collect();
            if self.rewrap_all(&keys, &mut failed, go_on)?.is_break() {
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
            if self.rewrap_all(&keys, &mut failed, go_on)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            after = versions.last().copied();
            if after.is_none() {
                break;
            }
        }
        self.sync()?;
        match failed {
            // All others are done: one bad record keeps no more than itself under the old key.
            Some(error) => Err(error),
            None => Ok(ControlFlow::Continue(())),
        }
    }

    /// Re-wraps `keys` in transactions that end in time. What does not authenticate is passed over;
    /// `failed` keeps the first of that.
    fn rewrap_all(
        &self,
        keys: &[Key],
        failed: &mut Option<VaultError>,
        go_on: &dyn Fn() -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, VaultError> {
        let mut rest = keys;
        while !rest.is_empty() {
            if go_on().is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let mut taken = 0;
            let mut bad = None;
            let mut job = |tx: &mut Tx<'_>| {
                let begun = Instant::now();
                (taken, bad) = (0, None);
                for key in rest {
                    match key.rewrap(tx) {
                        Ok(()) => {}
                        Err(VaultError::Store(error)) => return Err(error.into()),
                        Err(error) => bad = bad.take().or(Some(error)),
                    }
                    taken += 1;
                    die_at!("migrate-within");
                    if begun.elapsed() > SLICE {
                        break;
                    }
                }
                Ok(())
            };
            die_at!("migrate-before");
            self.transact(Durability::Soon, &mut [&mut job])?
                .into_iter()
                .collect::<Result<(), _>>()?;
            die_at!("migrate-after");
            if let Some(error) = bad {
                // Once in a batch: somebody may have forged them all.
                tracing::error!("a key cannot be wrapped anew: {error}");
                failed.get_or_insert(error);
            }
            rest = &rest[taken..];
            self.rotation.figures().done += taken as u64;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Opens every key with the new master key, and recounts the vault.
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
                    Node::open(&keyring, *id, record)?;
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
                    content::must_unwrap(&keyring, *node, *version, record)?;
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
        self.recount()?;
        Ok(ControlFlow::Continue(()))
    }
}
