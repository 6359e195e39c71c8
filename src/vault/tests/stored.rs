//! Records in a store of each kind.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::store::memory::{Medium, MemoryStore};
use crate::store::{self, LocalPlace, Mode, Record, Store};

use super::super::content::Version;
use super::super::{OpenOptions, Vault, VaultError};

/// A copy in memory of the vault in `path`.
pub(in crate::vault) fn medium_of(path: &Path) -> Medium {
    let options = store::OpenOptions::default();
    let (files, _place) = store::open(path, Mode::ReadOnly, options).unwrap();
    let medium = Medium::new(None);
    let memory = MemoryStore::writer(&medium, Arc::new(|_| Ok(()))).unwrap();
    store::copy(&*files, &memory, &|| ControlFlow::Continue(())).unwrap();
    drop(memory);
    medium
}

/// The vault in `path`, opened there, and opened from a copy in memory.
pub(in crate::vault) fn opened_in_each(path: &Path, options: &OpenOptions) -> [Vault; 2] {
    let memory = MemoryStore::writer(&medium_of(path), Arc::new(|_| Ok(()))).unwrap();
    let place = LocalPlace::elsewhere(&path.with_extension("memory"));
    let files = Vault::open(path, options).unwrap();
    let memory = Vault::open_in((Arc::new(memory), place), options).unwrap();
    [files, memory]
}

/// Reads a version that a store of each kind holds with these chunks. The kind makes no difference.
pub(super) fn whole(
    version: &Version,
    record: &Record,
    chunks: &[Vec<u8>],
) -> Result<Vec<u8>, VaultError> {
    let (node, number) = (version.node(), version.number());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let options = store::OpenOptions::default();
    let insert = |records: &mut dyn store::Write| {
        records.insert_version(node, number, record, &mut chunks.iter().cloned())
    };
    let mut init = |records: &mut dyn store::Write| insert(records).map_err(|_| store::Abort);
    store::create(&path, options, &mut init).unwrap().unwrap();
    let (files, _place) = store::open(&path, Mode::ReadOnly, options).unwrap();
    let memory = MemoryStore::writer(&Medium::new(None), Arc::new(|_| Ok(()))).unwrap();
    store::write(&memory, store::Durability::Now, |records| insert(records)).unwrap();
    let read = |store: &dyn Store| {
        store::read(store, |records| version.whole(records, None)).map(|whole| whole.to_vec())
    };
    let (found, again) = (read(&*files), read(&memory));
    match (&found, &again) {
        (Ok(found), Ok(again)) => assert!(found == again),
        (Err(_), Err(_)) => {}
        other => panic!("the stores differ: {other:?}"),
    }
    found
}
