//! Names: what they lead to, and how they come and go.

use libc::{EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EPERM};
use secretfs::vault::{Kind, RenameMode};

use super::{Answer, CONTROL, Ino, Node, ROOT, Reference, When, new_node};

impl Reference {
    /// A directory that names can be made in.
    fn directory(&self, ino: Ino) -> Answer<&Node> {
        let node = self.nodes.get(&ino).ok_or(ENOENT)?;
        match (node.kind, node.links) {
            (Kind::Directory, 0) => Err(ENOENT),
            (Kind::Directory, _) => Ok(node),
            (_, _) => Err(ENOTDIR),
        }
    }

    fn may_change(&self, (parent, name): (Ino, &[u8])) -> Answer<()> {
        if parent == ROOT && name == CONTROL {
            return Err(EPERM);
        }
        self.directory(parent)?;
        match name.len() {
            256.. => Err(libc::ENAMETOOLONG),
            0 => Err(EINVAL),
            _ => Ok(()),
        }
    }

    pub fn find(&self, parent: Ino, name: &[u8]) -> Answer<Ino> {
        let directory = self.directory(parent)?;
        if name.len() > 255 {
            return Err(libc::ENAMETOOLONG);
        }
        directory.entries.get(name).copied().ok_or(ENOENT)
    }

    fn put(&mut self, parent: Ino, name: &[u8], ino: Ino, now: When) {
        let directory = self.nodes.get_mut(&parent).unwrap();
        directory.entries.insert(name.to_vec(), ino);
        (directory.modified, directory.changed) = (now, now);
        let node = self.nodes.get_mut(&ino).unwrap();
        if node.kind == Kind::Directory {
            node.parent = parent;
        }
    }

    fn take(&mut self, parent: Ino, name: &[u8], now: When) -> Ino {
        let directory = self.nodes.get_mut(&parent).unwrap();
        (directory.modified, directory.changed) = (now, now);
        directory.entries.remove(name).unwrap()
    }

    /// What making `ino` answers; `made` is the node's number, when it was made.
    pub fn make(
        &mut self,
        (parent, name): (Ino, &[u8]),
        kind: Kind,
        mode: u32,
        made: Option<Ino>,
        now: When,
    ) -> Answer<()> {
        self.may_change((parent, name))?;
        if self.find(parent, name).is_ok() {
            return Err(EEXIST);
        }
        let directory = &self.nodes[&parent];
        let inherits = directory.mode & 0o2000 != 0;
        let gid = if inherits { directory.gid } else { 0 };
        let mode = match kind {
            Kind::Directory if inherits => mode | 0o2000,
            _ => mode,
        };
        let Some(ino) = made else { return Ok(()) };
        assert!(
            self.nodes.keys().all(|known| *known < ino),
            "node numbers are never used again"
        );
        let node = new_node(kind, mode, (0, gid), parent, now);
        self.nodes.insert(ino, node);
        self.put(parent, name, ino, now);
        Ok(())
    }

    pub fn link(&mut self, ino: Ino, to: (Ino, &[u8]), now: When) -> Answer<()> {
        let node = self.nodes.get(&ino).ok_or(ENOENT)?;
        if node.kind == Kind::Directory || to == (ROOT, CONTROL) {
            return Err(EPERM);
        }
        if node.links == 0 {
            return Err(ENOENT);
        }
        self.may_change(to)?;
        if self.find(to.0, to.1).is_ok() {
            return Err(EEXIST);
        }
        let node = self.nodes.get_mut(&ino).unwrap();
        node.links += 1;
        node.changed = now;
        self.put(to.0, to.1, ino, now);
        Ok(())
    }

    pub fn remove(&mut self, from: (Ino, &[u8]), directory: bool, now: When) -> Answer<()> {
        self.may_change(from)?;
        let ino = self.find(from.0, from.1)?;
        let node = &self.nodes[&ino];
        match (directory, node.kind) {
            (true, Kind::Directory) if !node.entries.is_empty() => return Err(ENOTEMPTY),
            (true, Kind::Directory) => {}
            (true, _) => return Err(ENOTDIR),
            (false, Kind::Directory) => return Err(EISDIR),
            (false, _) => {}
        }
        self.take(from.0, from.1, now);
        self.drop_link(ino, now);
        Ok(())
    }

    fn drop_link(&mut self, ino: Ino, now: When) {
        let node = self.nodes.get_mut(&ino).unwrap();
        node.links -= 1;
        node.changed = now;
        self.forget_if_unused(ino);
    }

    fn is_open(&self, ino: Ino) -> bool {
        self.handles.values().any(|handle| handle.ino == ino)
            || self.directories.values().any(|open| *open == ino)
    }

    pub(super) fn forget_if_unused(&mut self, ino: Ino) {
        if self.nodes.get(&ino).is_some_and(|node| node.links == 0) && !self.is_open(ino) {
            self.nodes.remove(&ino);
        }
    }

    fn is_inside(&self, mut directory: Ino, ancestor: Ino) -> bool {
        loop {
            if directory == ancestor {
                return true;
            }
            if directory == ROOT {
                return false;
            }
            directory = self.nodes[&directory].parent;
        }
    }

    pub fn rename(
        &mut self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
        now: When,
    ) -> Answer<()> {
        if [from, to].contains(&(ROOT, CONTROL)) {
            return Err(EPERM);
        }
        let moved = self.find(from.0, from.1)?;
        self.may_change(to)?;
        let taken = self.find(to.0, to.1).ok();
        if self.is_inside(to.0, moved) {
            return Err(EINVAL);
        }
        match (mode, taken) {
            (RenameMode::NoReplace, Some(_)) => return Err(EEXIST),
            (RenameMode::Exchange, None) => return Err(ENOENT),
            (_, Some(taken)) if taken == moved => return Ok(()),
            (RenameMode::Exchange, Some(taken)) => {
                if self.is_inside(from.0, taken) {
                    return Err(EINVAL);
                }
                self.take(from.0, from.1, now);
                self.take(to.0, to.1, now);
                self.put(from.0, from.1, taken, now);
                self.nodes.get_mut(&taken).unwrap().changed = now;
            }
            (RenameMode::Replace, Some(taken)) => {
                let is_directory = |ino: &Ino| self.nodes[ino].kind == Kind::Directory;
                match (is_directory(&moved), is_directory(&taken)) {
                    (true, false) => return Err(ENOTDIR),
                    (false, true) => return Err(EISDIR),
                    (true, true) if !self.nodes[&taken].entries.is_empty() => {
                        return Err(ENOTEMPTY);
                    }
                    (_, _) => {}
                }
                self.take(to.0, to.1, now);
                self.take(from.0, from.1, now);
                self.drop_link(taken, now);
            }
            (_, None) => {
                self.take(from.0, from.1, now);
            }
        }
        self.put(to.0, to.1, moved, now);
        self.nodes.get_mut(&moved).unwrap().changed = now;
        Ok(())
    }
}
