//! Where the vault of a schedule is, and how it is opened.

use std::sync::Arc;

use crate::kms::{KeyUri, KmsSettings};
use crate::store::memory::{Medium, MemoryStore, Moment};
use crate::store::{self, Durability, LocalPlace, NodeId, Range, RecordId, Scan, StoreError};

use super::super::super::node::ROOT;
use super::super::super::{InitOptions, Kind, NewNode, OpenOptions, Tx, Vault, VaultError, init};
use super::super::stored::medium_of;

/// The number of writers.
pub(super) const WRITERS: usize = 2;

/// A vault with a directory for each writer, and how to open it.
pub(super) struct Template {
    pub(super) medium: Medium,
    pub(super) directories: [NodeId; WRITERS],
    options: OpenOptions,
    home: tempfile::TempDir,
}

impl Template {
    pub(super) fn new() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let kms = KmsSettings {
            local_dir: Some(home.path().join("kms")),
            ..KmsSettings::default()
        };
        let options = OpenOptions {
            kms: kms.clone(),
            ..OpenOptions::default()
        };
        let path = home.path().join("vault");
        let new = InitOptions {
            kms_keys: vec![KeyUri::default_local()],
            uid: 0,
            gid: 0,
            kms,
            anchor_dir: None,
        };
        init(&path, &new).expect("a vault");
        let vault = Vault::open(&path, &options).expect("opened");
        let directories = std::array::from_fn(|writer| make_directory(&vault, writer));
        drop(vault);
        let medium = medium_of(&path);
        Self {
            medium,
            directories,
            options,
            home,
        }
    }

    /// Opens the vault on `ground`.
    pub(super) fn open(
        &self,
        ground: &Ground,
        hook: impl Fn(Moment) -> Result<(), StoreError> + Send + Sync + 'static,
    ) -> Result<Vault, VaultError> {
        let medium = match ground {
            Ground::Memory(medium) => medium,
            Ground::Files => return Vault::open(&self.home.path().join("vault"), &self.options),
        };
        let store = MemoryStore::writer(medium, Arc::new(hook))?;
        let place = LocalPlace::elsewhere(&self.home.path().join("memory"));
        Vault::open_in((Arc::new(store), place), &self.options)
    }
}

/// Where the vault of a schedule is.
pub(super) enum Ground {
    Memory(Medium),
    /// In the files of the template. There is no power cut.
    Files,
}

impl Ground {
    /// Cuts the power, as [`Medium::cut_power`] does.
    pub(super) fn cut_power(&self, survivors: impl FnOnce(usize) -> usize) {
        match self {
            Self::Memory(medium) => medium.cut_power(survivors),
            Self::Files => {}
        }
    }
}

fn make_directory(vault: &Vault, writer: usize) -> NodeId {
    let new = NewNode {
        kind: Kind::Directory,
        mode: 0o700,
        uid: 0,
        gid: 0,
        device: 0,
        target: Vec::new(),
    };
    let mut made = 0;
    let mut job = |tx: &mut Tx<'_>| {
        made = tx.create(ROOT, format!("of {writer}").as_bytes(), &new)?;
        Ok(())
    };
    let done = vault.transact(Durability::Now, &mut [&mut job]);
    done.expect("stored").remove(0).expect("made");
    made
}

/// Fails if a record is under another generation.
pub(super) fn must_be_under(vault: &Vault, generation: u64) -> Result<(), String> {
    let left = store::read(vault.records().store(), |records| {
        let mut left: Vec<RecordId> = Vec::new();
        for range in [Range::Nodes(None), Range::Versions(None)] {
            let others = Scan {
                but: Some(generation),
                ..Scan::of(range, usize::MAX)
            };
            left.extend(records.scan(&others)?.into_iter().map(|(id, _)| id));
        }
        Ok::<_, VaultError>(left)
    });
    match left {
        Ok(left) if left.is_empty() => Ok(()),
        Ok(left) => Err(format!("{left:?} are left under the old master key")),
        Err(error) => Err(format!("the records cannot be read: {error}")),
    }
}
