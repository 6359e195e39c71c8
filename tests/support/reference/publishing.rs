//! When what was written is published.

use std::rc::Rc;

use super::{Draft, Fh, Ino, Reference, Version, When};

impl Reference {
    fn publish(&mut self, ino: Ino, draft: &Draft, own: bool, now: When) {
        let nobody_reads = self.handles_of(ino).all(|handle| handle.write);
        let node = self.nodes.get_mut(&ino).unwrap();
        if nobody_reads {
            node.told.clear();
        }
        node.current = Version {
            number: node.current.number + 1,
            bytes: Rc::new(draft.bytes.clone()),
        };
        (node.modified, node.changed) = (draft.modified(), now);
        if own || draft.replaces {
            node.replaced = node.current.number;
        }
        if own {
            // A clean in-place draft begins anew; one with changes wins whole if published later.
            node.shared = node.shared.take().filter(|shared| shared.unpublished);
            if let Some(shared) = &mut node.shared {
                shared.replaces = true;
            }
        }
    }

    pub(super) fn publish_own(&mut self, fh: Fh, now: When) {
        let handle = self.handles.get_mut(&fh).unwrap();
        let ino = handle.ino;
        let own = handle.own.as_mut().unwrap();
        own.unpublished = false;
        own.writers.clear();
        let draft = own.clone();
        self.publish(ino, &draft, true, now);
    }

    pub(super) fn publish_shared(&mut self, ino: Ino, now: When) {
        let shared = self.nodes.get_mut(&ino).unwrap().shared.as_mut().unwrap();
        shared.unpublished = false;
        shared.writers.clear();
        let draft = shared.clone();
        shared.replaces = false;
        self.publish(ino, &draft, false, now);
        self.end_idle_draft(ino);
    }

    fn end_idle_draft(&mut self, ino: Ino) {
        let mut handles = self.handles.values();
        if !handles.any(|h| h.ino == ino && h.writes_in_place()) {
            self.nodes.get_mut(&ino).unwrap().shared = None;
        }
    }

    /// A descriptor was closed by process `pid`.
    pub fn flush(&mut self, fh: Fh, pid: Option<u32>, owner: u64, now: When) {
        let handle = &self.handles[&fh];
        let ino = handle.ino;
        let by_opener = match (handle.opener, pid) {
            (Some(opener), Some(pid)) => opener == pid,
            (_, _) => handle.owners.contains(&owner),
        };
        if !handle.write || !by_opener {
            return;
        }
        match &handle.own {
            Some(own) if own.writers.contains(&fh) => self.publish_own(fh, now),
            Some(_) => {}
            None => {
                let shared = self.nodes[&ino].shared.as_ref();
                if shared.is_some_and(|shared| shared.writers.contains(&fh)) {
                    self.publish_shared(ino, now);
                }
            }
        }
    }

    pub fn fsync(&mut self, fh: Fh, now: When) {
        let handle = &self.handles[&fh];
        let ino = handle.ino;
        match &handle.own {
            Some(own) if own.unpublished => self.publish_own(fh, now),
            Some(_) => {}
            None if handle.write => {
                let shared = self.nodes[&ino].shared.as_ref();
                if shared.is_some_and(|shared| shared.unpublished) {
                    self.publish_shared(ino, now);
                }
            }
            None => {}
        }
    }

    /// The last descriptor was closed.
    pub fn release(&mut self, fh: Fh, now: When) {
        let handle = self.handles.remove(&fh).unwrap();
        let ino = handle.ino;
        if let Some(own) = handle.own.as_ref().filter(|own| own.unpublished) {
            self.publish(ino, own, true, now);
        }
        let mut others = self.handles.values();
        let last = !others.any(|h| h.ino == ino && h.writes_in_place());
        let shared = self.nodes[&ino].shared.as_ref();
        if last && shared.is_some_and(|shared| shared.unpublished) {
            self.publish_shared(ino, now);
        }
        self.end_idle_draft(ino);
        if self.handles_of(ino).next().is_none() {
            self.nodes.get_mut(&ino).unwrap().told.clear();
        }
        self.forget_if_unused(ino);
    }

    pub fn close_directory(&mut self, fh: Fh) {
        let ino = self.directories.remove(&fh).unwrap();
        self.forget_if_unused(ino);
    }
}
