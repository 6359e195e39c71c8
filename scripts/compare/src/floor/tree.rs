//! What the floor holds.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::UNIX_EPOCH;

use fuser::{FileAttr, FileType, INodeNo};

/// A directory, or a file with its content.
pub enum Node {
    Directory(BTreeMap<OsString, u64>),
    File(Vec<u8>),
}

/// All nodes.
#[derive(Default)]
pub struct Tree {
    /// Inode 1 is the first.
    pub nodes: Vec<Node>,
}

impl Tree {
    pub fn add(&mut self, node: Node) -> u64 {
        self.nodes.push(node);
        self.nodes.len() as u64
    }

    pub fn get(&mut self, ino: u64) -> Option<&mut Node> {
        self.nodes
            .get_mut(usize::try_from(ino.checked_sub(1)?).ok()?)
    }

    pub fn children(&mut self, ino: u64) -> Option<&mut BTreeMap<OsString, u64>> {
        match self.get(ino)? {
            Node::Directory(children) => Some(children),
            Node::File(_) => None,
        }
    }

    pub fn child(&mut self, parent: u64, name: &OsStr) -> Option<u64> {
        self.children(parent)?.get(name).copied()
    }

    pub fn load(&mut self, directory: &Path) -> std::io::Result<u64> {
        let mut children = BTreeMap::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let ino = if entry.file_type()?.is_dir() {
                self.load(&entry.path())?
            } else {
                self.add(Node::File(std::fs::read(entry.path())?))
            };
            children.insert(entry.file_name(), ino);
        }
        Ok(self.add(Node::Directory(children)))
    }

    pub fn attr(&mut self, ino: u64) -> Option<FileAttr> {
        let (kind, size, perm, nlink) = match self.get(ino)? {
            Node::Directory(_) => (FileType::Directory, 4096, 0o755, 2),
            Node::File(content) => (FileType::RegularFile, content.len() as u64, 0o644, 1),
        };
        Some(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}
