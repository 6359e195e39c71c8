//! The operations of a file tree, inside a write transaction: names, links, attributes, contents.
//!
//! The kernel checks permissions (`default_permissions`); this module enforces everything that
//! keeps the tree a tree.

use crate::store::{NodeId, ReadRecords as _};

use super::VaultError;
use super::content;
use super::node::{Attributes, DirectoryBody, FileBody, Kind, NodeBody, ROOT, Timestamp};
use super::tx::Tx;

mod request;

pub use request::{AttributeChange, NewNode, NothingOpen, OpenFiles, Publication, RenameMode};

/// Limit on the links of a node, as on ext4.
pub const MAX_LINKS: u32 = 65_000;
/// Limit on the extended attributes of a node, in bytes of names and values.
pub const MAX_XATTRS: usize = 64 * 1024;

const SETGID: u32 = 0o2000;

impl Tx<'_> {
    /// Creates a node with a name.
    ///
    /// # Errors
    /// When the name is taken, or the parent is gone or not a directory.
    pub fn create(
        &mut self,
        parent: NodeId,
        name: &[u8],
        new: &NewNode,
    ) -> Result<NodeId, VaultError> {
        let directory = self.living_directory(parent)?;
        if self.find(parent, name)?.is_some() {
            return Err(VaultError::Exists);
        }
        let inherits = directory.attributes.mode & SETGID != 0;
        let mut attributes = Attributes {
            mode: new.mode,
            uid: new.uid,
            gid: if inherits {
                directory.attributes.gid
            } else {
                new.gid
            },
            links: 1,
            accessed: self.now,
            modified: self.now,
            changed: self.now,
            created: self.now,
            xattrs: Vec::new(),
            body: match new.kind {
                Kind::File => NodeBody::File(FileBody::default()),
                Kind::Directory => {
                    let tag = self.directory_keys(parent)?.tag(name)?;
                    NodeBody::Directory(DirectoryBody::new(parent, tag))
                }
                Kind::Symlink => NodeBody::Symlink(new.target.clone()),
                Kind::CharDevice | Kind::BlockDevice => NodeBody::Special(new.device),
                Kind::Fifo | Kind::Socket => NodeBody::Special(0),
                Kind::System => return Err(VaultError::Invalid),
            },
        };
        if inherits && new.kind == Kind::Directory {
            attributes.mode |= SETGID;
        }
        let id = self.create_node(new.kind, attributes)?;
        self.put_entry(parent, name, id, new.kind)?;
        Ok(id)
    }

    /// Gives a node another name.
    ///
    /// # Errors
    /// When the name is taken, the node is a directory or gone, or has too many links.
    pub fn link(&mut self, node: NodeId, parent: NodeId, name: &[u8]) -> Result<(), VaultError> {
        let kind = {
            let node = self.node(node)?;
            if node.kind == Kind::Directory {
                return Err(VaultError::NotPermitted);
            }
            if node.attributes.links == 0 {
                return Err(VaultError::NotFound);
            }
            if node.attributes.links >= MAX_LINKS {
                return Err(VaultError::TooManyLinks);
            }
            node.kind
        };
        self.living_directory(parent)?;
        if self.find(parent, name)?.is_some() {
            return Err(VaultError::Exists);
        }
        let now = self.now;
        let attributes = &mut self.change(node)?.attributes;
        attributes.links += 1;
        attributes.changed = now;
        self.put_entry(parent, name, node, kind)?;
        Ok(())
    }

    /// Removes a name of a node that is not a directory.
    ///
    /// # Errors
    /// When the name does not exist, or names a directory.
    pub fn unlink(
        &mut self,
        parent: NodeId,
        name: &[u8],
        open: &dyn OpenFiles,
    ) -> Result<NodeId, VaultError> {
        let found = self.find(parent, name)?.ok_or(VaultError::NotFound)?;
        if found.0.kind == Kind::Directory {
            return Err(VaultError::IsADirectory);
        }
        self.take_entry(parent, &found)?;
        self.drop_link(found.0.node, open)?;
        Ok(found.0.node)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// When the directory does not exist, or has entries.
    pub fn rmdir(
        &mut self,
        parent: NodeId,
        name: &[u8],
        open: &dyn OpenFiles,
    ) -> Result<NodeId, VaultError> {
        let found = self.find(parent, name)?.ok_or(VaultError::NotFound)?;
        self.must_be_empty(found.0.node)?;
        self.take_entry(parent, &found)?;
        self.drop_link(found.0.node, open)?;
        Ok(found.0.node)
    }

    /// Moves a name.
    ///
    /// # Errors
    /// As for rename(2).
    pub fn rename(
        &mut self,
        (parent, name): (NodeId, &[u8]),
        (new_parent, new_name): (NodeId, &[u8]),
        mode: RenameMode,
        open: &dyn OpenFiles,
    ) -> Result<(), VaultError> {
        self.living_directory(new_parent)?;
        let from = self.find(parent, name)?.ok_or(VaultError::NotFound)?;
        let to = self.find(new_parent, new_name)?;
        self.must_not_be_inside(new_parent, from.0.node)?;
        match (mode, &to) {
            (RenameMode::NoReplace, Some(_)) => return Err(VaultError::Exists),
            (RenameMode::Exchange, None) => return Err(VaultError::NotFound),
            (_, Some(to)) if to.0.node == from.0.node => return Ok(()),
            (RenameMode::Exchange, Some(to)) => {
                self.must_not_be_inside(parent, to.0.node)?;
                self.take_entry(new_parent, to)?;
                self.take_entry(parent, &from)?;
                self.file_again(to.0.node, parent, name)?;
            }
            (RenameMode::Replace, Some(to)) => {
                match (from.0.kind == Kind::Directory, to.0.kind == Kind::Directory) {
                    (true, false) => return Err(VaultError::NotADirectory),
                    (false, true) => return Err(VaultError::IsADirectory),
                    (true, true) => self.must_be_empty(to.0.node)?,
                    (false, false) => {}
                }
                self.take_entry(new_parent, to)?;
                self.drop_link(to.0.node, open)?;
                self.take_entry(parent, &from)?;
            }
            (_, None) => self.take_entry(parent, &from)?,
        }
        self.file_again(from.0.node, new_parent, new_name)
    }

    /// Files a node under a new name after its old entry was removed.
    fn file_again(&mut self, node: NodeId, parent: NodeId, name: &[u8]) -> Result<(), VaultError> {
        let kind = self.node(node)?.kind;
        let tag = self.put_entry(parent, name, node, kind)?;
        let now = self.now;
        let moved = self.change(node)?;
        moved.attributes.changed = now;
        if let NodeBody::Directory(directory) = &mut moved.attributes.body {
            directory.parent = parent;
            directory.tag = tag;
        }
        Ok(())
    }

    /// Removes one link of a node. With the last link it deletes the node, unless the node is open.
    fn drop_link(&mut self, node: NodeId, open: &dyn OpenFiles) -> Result<(), VaultError> {
        let now = self.now;
        let attributes = &mut self.change(node)?.attributes;
        attributes.links = attributes.links.saturating_sub(1);
        attributes.changed = now;
        if attributes.links > 0 {
            return Ok(());
        }
        if open.is_open_or_dying(node) {
            self.put_orphan(node);
            return Ok(());
        }
        self.delete_node(node)
    }

    /// Changes attributes.
    ///
    /// # Errors
    /// When the node is gone.
    pub fn set_attributes(
        &mut self,
        node: NodeId,
        change: &AttributeChange,
    ) -> Result<(), VaultError> {
        let now = self.now;
        let attributes = &mut self.change(node)?.attributes;
        attributes.mode = change.mode.unwrap_or(attributes.mode) & 0o7777;
        attributes.uid = change.uid.unwrap_or(attributes.uid);
        attributes.gid = change.gid.unwrap_or(attributes.gid);
        attributes.accessed = change.accessed.unwrap_or(attributes.accessed);
        attributes.modified = change.modified.unwrap_or(attributes.modified);
        attributes.changed = now;
        Ok(())
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// When it must be new and exists, or must exist and does not, or there is no room.
    pub fn set_xattr(
        &mut self,
        node: NodeId,
        name: &[u8],
        value: &[u8],
        (create, replace): (bool, bool),
    ) -> Result<(), VaultError> {
        let now = self.now;
        let attributes = &mut self.change(node)?.attributes;
        let place = attributes.xattrs.binary_search_by(|(n, _)| n[..].cmp(name));
        match place {
            Ok(_) if create => return Err(VaultError::Exists),
            Err(_) if replace => return Err(VaultError::NoAttribute),
            Ok(at) => attributes.xattrs[at].1 = value.to_vec(),
            Err(at) => attributes
                .xattrs
                .insert(at, (name.to_vec(), value.to_vec())),
        }
        let total: usize = attributes
            .xattrs
            .iter()
            .map(|(n, v)| n.len() + v.len() + 16)
            .sum();
        if total > MAX_XATTRS {
            return Err(VaultError::AttributesFull);
        }
        attributes.changed = now;
        Ok(())
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// When the attribute does not exist.
    pub fn remove_xattr(&mut self, node: NodeId, name: &[u8]) -> Result<(), VaultError> {
        let now = self.now;
        let attributes = &mut self.change(node)?.attributes;
        let place = attributes.xattrs.binary_search_by(|(n, _)| n[..].cmp(name));
        attributes
            .xattrs
            .remove(place.map_err(|_| VaultError::NoAttribute)?);
        attributes.changed = now;
        Ok(())
    }

    /// The number of a file's current version; 0 before the first is published.
    ///
    /// # Errors
    /// When the node is gone, or is not a regular file.
    pub fn current_version(&mut self, node: NodeId) -> Result<u64, VaultError> {
        Ok(self.node(node)?.file()?.version)
    }

    /// The number of a stored version that the node does not name yet.
    ///
    /// # Errors
    /// When the node is gone or is not a regular file, or the store fails.
    pub fn begun_version(&mut self, node: NodeId) -> Result<Option<u64>, VaultError> {
        let current = self.node(node)?.file()?.version;
        let last = self.records().versions_of(node)?.pop();
        Ok(last.filter(|last| *last > current))
    }

    /// Publishes `content` as the node's next version, and returns its number. Removes earlier
    /// versions, except for those in `keep`, which open handles still read.
    ///
    /// # Errors
    /// When the node is gone, or is not a regular file.
    pub fn publish(
        &mut self,
        node: NodeId,
        content: &[u8],
        publication: Publication,
        modified: Option<Timestamp>,
        keep: &[u64],
    ) -> Result<u64, VaultError> {
        self.publish_parts(node, &[content], publication, modified, keep)
    }

    /// As [`publish`](Self::publish), for a content in several parts.
    ///
    /// # Errors
    /// As for [`publish`](Self::publish).
    pub fn publish_parts(
        &mut self,
        node: NodeId,
        parts: &[&[u8]],
        publication: Publication,
        modified: Option<Timestamp>,
        keep: &[u64],
    ) -> Result<u64, VaultError> {
        let version = self.node(node)?.file()?.version + 1;
        let stored = self.records().versions_of(node)?;
        // A version was begun in pieces, and never finished.
        if stored.contains(&version) {
            self.delete_version(node, version);
        }
        self.put_version(node, version, parts)?;
        let size = content::length_of(parts);
        self.replace_current(node, (version, size), publication, modified)?;
        self.leave_behind(node, &stored, version, keep);
        Ok(version)
    }

    /// Makes `version` with `size` bytes the node's current one.
    pub(super) fn replace_current(
        &mut self,
        node: NodeId,
        (version, size): (u64, u64),
        publication: Publication,
        modified: Option<Timestamp>,
    ) -> Result<(), VaultError> {
        let now = self.now;
        let attributes = &mut self.change(node)?.attributes;
        if let NodeBody::File(file) = &mut attributes.body {
            file.version = version;
            file.size = size;
            if publication == Publication::Replacement {
                file.replaced = version;
            }
        }
        attributes.modified = modified.unwrap_or(now);
        attributes.changed = now;
        Ok(())
    }

    /// Removes the `stored` versions other than `version`, except for those to keep, which are left
    /// for reaping. Returns whether there are any.
    pub(super) fn leave_behind(
        &mut self,
        node: NodeId,
        stored: &[u64],
        version: u64,
        keep: &[u64],
    ) -> bool {
        let mut kept = false;
        for old in stored.iter().filter(|old| **old != version) {
            if keep.contains(old) {
                kept = true;
            } else {
                self.delete_version(node, *old);
            }
        }
        if kept {
            self.put_orphan(node);
        }
        kept
    }

    /// Reaps a registered node: deletes it if it has no name, otherwise removes its old versions.
    /// `keep` names the versions that open handles still read.
    ///
    /// # Errors
    /// When the store fails or the node does not authenticate.
    pub fn reap(
        &mut self,
        node: NodeId,
        keep: &[u64],
        open: &dyn OpenFiles,
    ) -> Result<(), VaultError> {
        let found = match self.node(node) {
            Ok(found) => found,
            Err(VaultError::NotFound) => {
                self.delete_orphan(node);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        // The list of orphans is not authenticated, so only the node's own record decides.
        if found.attributes.links == 0 && node > ROOT {
            if !open.is_open_or_dying(node) {
                self.delete_node(node)?;
            }
            return Ok(());
        }
        let current = found.file().map_or(0, |file| file.version);
        let mut kept = false;
        for version in self.records().versions_of(node)? {
            if version == current {
                continue;
            }
            if keep.contains(&version) {
                kept = true;
            } else {
                self.delete_version(node, version);
            }
        }
        if !kept {
            self.delete_orphan(node);
        }
        Ok(())
    }

    fn living_directory(
        &mut self,
        id: NodeId,
    ) -> Result<std::sync::Arc<super::node::Node>, VaultError> {
        let node = self.node(id)?;
        node.directory()?;
        if node.attributes.links == 0 {
            return Err(VaultError::NotFound);
        }
        Ok(node)
    }

    fn must_be_empty(&mut self, id: NodeId) -> Result<(), VaultError> {
        if self.node(id)?.directory()?.entries > 0 {
            return Err(VaultError::NotEmpty);
        }
        Ok(())
    }

    /// Refuses to put a directory below itself.
    fn must_not_be_inside(&mut self, start: NodeId, moved: NodeId) -> Result<(), VaultError> {
        let mut at = start;
        // The kernel has no deeper paths; only a damaged vault can have a loop.
        for _ in 0..100_000 {
            if at == moved {
                return Err(VaultError::Invalid);
            }
            if at == ROOT {
                return Ok(());
            }
            at = self.node(at)?.directory()?.parent;
        }
        Err(VaultError::Integrity(
            "a directory is its own ancestor".into(),
        ))
    }
}
