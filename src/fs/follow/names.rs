//! The names in directories that the kernel knows, as of the last look, to tell new names from old
//! ones.

use std::collections::{HashMap, HashSet};

use crate::store::NodeId;
use crate::vault::{Vault, VaultError};

/// Limit on names. If a directory does not fit, only the directory itself is touched.
const MOST: usize = 20_000;
/// Number of names read in one transaction.
const BATCH: usize = 256;

type Directory = HashMap<Vec<u8>, NodeId>;

/// The known names, as the module describes.
#[derive(Default)]
pub(super) struct Names {
    directories: HashMap<NodeId, Directory>,
    /// Directories that did not fit.
    large: HashSet<NodeId>,
    count: usize,
}

/// The previous listing of a directory.
pub(super) enum Listed {
    /// It was listed before; the names that are new since, or name another node.
    Before(Vec<Vec<u8>>),
    /// It was not listed before; all names with their nodes.
    Never(Vec<(Vec<u8>, NodeId)>),
}

impl Names {
    /// Forgets directories.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(NodeId) -> bool) {
        self.directories.retain(|id, _| keep(*id));
        self.large.retain(|id| keep(*id));
        self.count = self.directories.values().map(HashMap::len).sum();
    }

    /// All nodes that have a name.
    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.directories
            .values()
            .flat_map(|names| names.values().copied())
    }

    /// The names of these nodes, with their directories.
    pub(super) fn of(&self, nodes: &HashSet<NodeId>) -> Vec<(NodeId, Vec<u8>)> {
        if nodes.is_empty() {
            return Vec::new();
        }
        let all = self.directories.iter();
        all.flat_map(|(directory, names)| names.iter().map(|(name, id)| (*directory, name, *id)))
            .filter(|(.., id)| nodes.contains(id))
            .map(|(directory, name, _)| (directory, name.clone()))
            .collect()
    }

    /// Whether there was an attempt to list a directory.
    pub(super) fn is_listed(&self, directory: NodeId) -> bool {
        self.directories.contains_key(&directory) || self.large.contains(&directory)
    }

    /// The present names in a directory; `None` if it is gone, or does not fit.
    pub(super) fn read(
        &mut self,
        vault: &Vault,
        directory: NodeId,
    ) -> Result<Option<Directory>, VaultError> {
        let mut names = Directory::new();
        let mut after = None;
        let kept = self.directories.get(&directory).map_or(0, HashMap::len);
        loop {
            let listing = match vault.list(directory, after.as_ref(), BATCH, false) {
                Ok(listing) => listing,
                Err(VaultError::NotFound) => return Ok(None),
                Err(error) => return Err(error),
            };
            let entries = listing.entries.into_iter();
            names.extend(entries.map(|entry| (entry.name, entry.node)));
            if self.count - kept + names.len() > MOST {
                self.directories.remove(&directory);
                self.count -= kept;
                self.large.insert(directory);
                return Ok(None);
            }
            if listing.complete {
                self.large.remove(&directory);
                return Ok(Some(names));
            }
            after = listing.after;
        }
    }

    /// Stores the present names of a directory.
    pub(super) fn replace(&mut self, directory: NodeId, now: Directory) -> Listed {
        let before = self.directories.get(&directory);
        self.count = self.count + now.len() - before.map_or(0, HashMap::len);
        let listed = match before {
            Some(before) => {
                let new = now
                    .iter()
                    .filter(|(name, id)| before.get(*name) != Some(id));
                Listed::Before(new.map(|(name, _)| name.clone()).collect())
            }
            None => Listed::Never(now.iter().map(|(name, id)| (name.clone(), *id)).collect()),
        };
        self.directories.insert(directory, now);
        listed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(names: &[(&str, NodeId)]) -> Directory {
        let names = names.iter();
        names
            .map(|(name, id)| (name.as_bytes().to_vec(), *id))
            .collect()
    }

    #[test]
    fn what_was_named_or_names_something_else_is_new() {
        let mut names = Names::default();
        let first = names.replace(1, directory(&[("a", 2), ("b", 3)]));
        assert!(matches!(first, Listed::Never(all) if all.len() == 2));
        let Listed::Before(mut new) = names.replace(1, directory(&[("b", 4), ("c", 2)])) else {
            panic!("it was listed");
        };
        new.sort();
        assert_eq!(new, [b"b", b"c"]);
        assert_eq!(names.count, 2);
        assert_eq!(names.of(&HashSet::from([4])), [(1, b"b".to_vec())]);
        assert_eq!(names.nodes().collect::<HashSet<_>>(), HashSet::from([2, 4]));
        names.retain(|_| false);
        assert_eq!(names.count, 0);
        assert!(!names.is_listed(1));
    }
}
