//! All that can be read of a vault, without a mount.

use std::collections::BTreeMap;

use secretfs::vault::{Content, NodeBody, ROOT, Vault, VaultError};

/// Paths, and what is there: kind and owner, extended attributes, content or target.
pub type Contents = BTreeMap<Vec<u8>, Vec<u8>>;

/// What was read, and what could not be.
#[derive(Default)]
pub struct Reading {
    pub contents: Contents,
    pub errors: Vec<VaultError>,
}

impl Reading {
    pub fn of(vault: &Vault) -> Self {
        let mut reading = Self::default();
        reading.directory(vault, ROOT, b"", 0);
        reading
    }

    fn directory(&mut self, vault: &Vault, id: u64, path: &[u8], depth: u32) {
        assert!(depth < 10, "a directory is inside of itself");
        let mut after = None;
        loop {
            // Several pages, also of few names.
            let listing = match vault.list(id, after.as_ref(), 5, false) {
                Ok(listing) => listing,
                Err(error) => return self.errors.push(error),
            };
            for entry in &listing.entries {
                let path = [path, b"/", &entry.name].concat();
                if let Err(error) = self.entry(vault, (id, &entry.name), &path, depth) {
                    self.errors.push(error);
                }
            }
            after = listing.entries.last().map(|entry| entry.tag);
            if listing.complete {
                return;
            }
        }
    }

    fn entry(
        &mut self,
        vault: &Vault,
        (parent, name): (u64, &[u8]),
        path: &[u8],
        depth: u32,
    ) -> Result<(), VaultError> {
        let node = vault.lookup(parent, name)?;
        let attributes = &node.attributes;
        let owner = (attributes.mode, attributes.uid, attributes.links);
        let mut told = format!("{:?} {owner:?} {:?} ", node.kind, attributes.xattrs).into_bytes();
        match &attributes.body {
            NodeBody::File(_) => match vault.content(node.id, u64::MAX)?.1 {
                Content::Whole { bytes, .. } => told.extend_from_slice(&bytes),
                Content::Unpublished => {}
                Content::Pieces(_) => unreachable!("all was asked for"),
            },
            NodeBody::Directory(_) => self.directory(vault, node.id, path, depth + 1),
            NodeBody::Symlink(target) => told.extend(target),
            NodeBody::Special(number) => told.extend(number.to_le_bytes()),
        }
        self.contents.insert(path.to_vec(), told);
        Ok(())
    }
}
