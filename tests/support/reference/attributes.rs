//! Attributes, plain and extended, and what is told of them.

use libc::{EEXIST, ENODATA, ENOENT, ENOSPC, EOPNOTSUPP, EPERM};
use secretfs::fs::{Attr, SetAttributes};
use secretfs::vault::{Kind, MAX_XATTRS};

use super::{Answer, Draft, Fh, Handle, Ino, Process, Reference, Version, When, without_set_id};

impl Reference {
    /// Compares what `stat` shows to a process, through a handle or not.
    pub fn expect_attr(&self, ino: Ino, fh: Option<Fh>, process: Process, attr: &Attr) {
        let node = &self.nodes[&ino];
        let subdirectories = || {
            let kinds = node.entries.values().map(|ino| self.nodes[ino].kind);
            kinds.filter(|kind| *kind == Kind::Directory).count() as u32
        };
        let links = match (node.kind, node.links) {
            (Kind::Directory, 0) => 0,
            (Kind::Directory, _) => 2 + subdirectories(),
            (_, links) => links,
        };
        let device = match node.kind {
            Kind::CharDevice | Kind::BlockDevice => node.device,
            _ => 0,
        };
        let size = match node.kind {
            Kind::File => self.size(ino, fh, process),
            Kind::Directory => node.entries.len() as u64,
            Kind::Symlink => node.target.len() as u64,
            _ => 0,
        };
        let (mut modified, mut changed) = (node.modified, node.changed);
        let handle = fh.map(|fh| &self.handles[&fh]);
        let first = node.current.number == 0;
        let draft = match handle {
            Some(Handle { own: Some(own), .. }) => Some(own),
            Some(handle) => node.shared.as_ref().filter(|_| handle.write || first),
            None if first => node.shared.as_ref(),
            None => self.draft_told_to(ino, process),
        };
        if let Some(draft) = draft.filter(|draft| draft.unpublished) {
            modified = draft.modified();
            changed = changed.later(draft.edited);
        }
        let expected = (
            ino, node.kind, node.mode, links, node.uid, node.gid, device, size,
        );
        let found = (
            attr.ino,
            attr.kind,
            attr.mode,
            attr.links,
            attr.uid,
            attr.gid,
            attr.device,
            attr.size,
        );
        assert_eq!(
            found, expected,
            "node, kind, mode, links, owner, group, device, size"
        );
        let times = [
            (attr.accessed, node.accessed),
            (attr.modified, modified),
            (attr.changed, changed),
        ];
        for ((time, expected), name) in times.into_iter().zip(["atime", "mtime", "ctime"]) {
            assert!(expected.fits(time), "{name} {time:?} is not {expected:?}");
        }
    }

    pub(super) fn handles_of(&self, ino: Ino) -> impl Iterator<Item = &Handle> {
        self.handles
            .values()
            .filter(move |handle| handle.ino == ino)
    }

    /// The draft that a process is told of without a handle: of those that it writes the one that was
    /// changed last. One that has only opened the file for reading since is told of what is published.
    fn draft_told_to(&self, ino: Ino, process: Process) -> Option<&Draft> {
        let used = || self.handles_of(ino).filter(|h| h.used_by == process);
        if process == 0 || used().next().is_some() && used().all(|handle| !handle.write) {
            return None;
        }
        let shared = self.nodes[&ino].shared.as_ref();
        let written = self.handles_of(ino).filter(|h| h.is_written_by(process));
        let drafts = written.filter_map(|handle| handle.own.as_ref().or(shared));
        let draft = drafts.max_by_key(|draft| (draft.unpublished, draft.edited.0))?;
        // If that is what is published, it is the same for all.
        let published = self.nodes[&ino].current.bytes.len();
        (draft.unpublished || draft.bytes.len() != published).then_some(draft)
    }

    /// The one handle of a process if it is in the middle of what was replaced: it is told of that.
    fn drained_by(&self, ino: Ino, process: Process) -> Option<Fh> {
        let of_process = |(_, h): &(&Fh, &Handle)| h.ino == ino && h.used_by == process;
        let mut used = self.handles.iter().filter(of_process);
        let (fh, handle) = used.next().filter(|_| process != 0)?;
        let is_only = used.next().is_none();
        (is_only && handle.reads_on(&self.nodes[&ino])).then_some(*fh)
    }

    /// A process asks for attributes, through a handle or not.
    pub fn stat(&mut self, ino: Ino, fh: Option<Fh>, process: Process) {
        let Some(node) = self.nodes.get(&ino) else {
            return;
        };
        if node.kind != Kind::File || node.current.number == 0 {
            return;
        }
        let current = node.current.clone();
        let Some(fh) = fh else {
            return self.tell(ino, process, current);
        };
        let Some(handle) = self.handles.get_mut(&fh).filter(|handle| !handle.write) else {
            return;
        };
        if handle.fresh.is_some() {
            handle.fresh = Some(current);
            return;
        }
        handle.held = true;
        if let Some(pin) = &handle.pin
            && !handle.reads_on(node)
            && pin.number != current.number
        {
            (handle.pin, handle.read_to) = (Some(current), 0);
        }
    }

    /// A process is told of the current version, unless it is told of what it writes, or is in the
    /// middle of.
    fn tell(&mut self, ino: Ino, process: Process, current: Version) {
        if self.draft_told_to(ino, process).is_some() {
            return;
        }
        if let Some(fh) = self.drained_by(ino, process) {
            self.handles.get_mut(&fh).unwrap().held = true;
            return;
        }
        let is_outdated = |handle: &Handle| {
            let fresh = handle.fresh.as_ref();
            fresh.is_some_and(|fresh| fresh.number != current.number)
        };
        let may_read_again = |handle: &Handle| {
            let has_read = !handle.write && handle.pin.is_some();
            process != 0 && handle.used_by == process && has_read
        };
        if self
            .handles_of(ino)
            .any(|h| is_outdated(h) || may_read_again(h))
        {
            let told = &mut self.nodes.get_mut(&ino).unwrap().told;
            told.insert(process, current);
        }
    }

    /// The length through a handle: of its draft, or of what it reads; without: of what the process
    /// writes, of what it is in the middle of, of what is published, or of the first draft.
    pub fn size(&self, ino: Ino, fh: Option<Fh>, process: Process) -> u64 {
        let node = &self.nodes[&ino];
        let handle = fh.map(|fh| &self.handles[&fh]);
        if let Some(own) = handle.and_then(|handle| handle.own.as_ref()) {
            return own.bytes.len() as u64;
        }
        let writes = handle.is_some_and(|h| h.write) || node.current.number == 0;
        if let Some(draft) = node.shared.as_ref().filter(|_| writes) {
            return draft.bytes.len() as u64;
        }
        let reads = match handle {
            Some(handle) => handle.fresh.as_ref().or(handle.pin.as_ref()),
            None if node.current.number == 0 => None,
            None => {
                if let Some(draft) = self.draft_told_to(ino, process) {
                    return draft.bytes.len() as u64;
                }
                let drained = self.drained_by(ino, process);
                drained.and_then(|fh| self.handles[&fh].pin.as_ref())
            }
        };
        let reads = reads.filter(|_| handle.is_none_or(|handle| !handle.write));
        reads.unwrap_or(&node.current).bytes.len() as u64
    }

    /// By a user, in a process.
    pub fn set_attributes(
        &mut self,
        ino: Ino,
        set: &SetAttributes,
        (uid, process): (u32, u32),
        now: When,
    ) {
        let latest = self.draft_told_to(ino, process);
        let latest = latest
            .filter(|draft| draft.unpublished)
            .map(|draft| draft.edited);
        let node = self.nodes.get_mut(&ino).unwrap();
        if set.uid.is_some() || set.gid.is_some() {
            if node.kind != Kind::Directory {
                // A locking flag goes, too, unless the caller is privileged.
                let locking = if uid == 0 { 0 } else { 0o2000 };
                node.mode = without_set_id(node.mode) & !locking;
            }
            node.uid = set.uid.unwrap_or(node.uid);
            node.gid = set.gid.unwrap_or(node.gid);
        }
        node.mode = set.mode.unwrap_or(node.mode);
        node.accessed = set.accessed.map_or(node.accessed, When::at);
        let published = node.current.number > 0;
        let mut is_told = set.modified.is_none() || set.accessed.is_some();
        is_told |= set.mode.is_some() || set.uid.is_some() || set.gid.is_some();
        if let Some(time) = set.modified {
            let own = self.handles.values_mut().filter(|h| h.ino == ino);
            let own = own.filter_map(|handle| handle.own.as_mut());
            let mut drafts: Vec<_> = own.chain(&mut node.shared).collect();
            let of_caller = latest.is_some();
            // It is told with what the caller is writing. If that is nothing, what others publish later
            // does not move it again.
            drafts.retain(|draft| latest.is_none_or(|edited| draft.edited == edited));
            drafts
                .iter_mut()
                .for_each(|draft| draft.modified = Some(time));
            if !(of_caller && published) {
                node.modified = When::at(time);
                is_told = true;
            }
        }
        if is_told {
            node.changed = now;
        }
    }

    pub(super) fn drop_set_id(&mut self, ino: Ino, now: When) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            let mode = without_set_id(node.mode);
            if mode != node.mode {
                (node.mode, node.changed) = (mode, now);
            }
        }
    }

    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Answer<Vec<u8>> {
        let node = &self.nodes[&ino];
        if !name.starts_with(b"user.") {
            return Err(EOPNOTSUPP);
        }
        if name == b"user.secretfs.version" && node.kind == Kind::File {
            return Ok(node.current.number.to_string().into_bytes());
        }
        node.xattrs.get(name).cloned().ok_or(ENODATA)
    }

    fn may_change_xattr(name: &[u8]) -> Answer<()> {
        if name.starts_with(b"user.secretfs.") {
            return Err(EPERM);
        }
        if !name.starts_with(b"user.") {
            return Err(EOPNOTSUPP);
        }
        Ok(())
    }

    pub fn set_xattr(
        &mut self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        flags: i32,
        now: When,
    ) -> Answer<()> {
        Self::may_change_xattr(name)?;
        let node = self.nodes.get_mut(&ino).ok_or(ENOENT)?;
        match node.xattrs.contains_key(name) {
            true if flags & libc::XATTR_CREATE != 0 => return Err(EEXIST),
            false if flags & libc::XATTR_REPLACE != 0 => return Err(ENODATA),
            _ => {}
        }
        let mut xattrs = node.xattrs.clone();
        xattrs.insert(name.to_vec(), value.to_vec());
        let total: usize = xattrs.iter().map(|(n, v)| n.len() + v.len() + 16).sum();
        if total > MAX_XATTRS {
            return Err(ENOSPC);
        }
        (node.xattrs, node.changed) = (xattrs, now);
        Ok(())
    }

    pub fn remove_xattr(&mut self, ino: Ino, name: &[u8], now: When) -> Answer<()> {
        Self::may_change_xattr(name)?;
        let node = self.nodes.get_mut(&ino).ok_or(ENOENT)?;
        node.xattrs.remove(name).ok_or(ENODATA)?;
        node.changed = now;
        Ok(())
    }
}
