//! Contents: what is opened, read and written.

use std::collections::BTreeSet;
use std::rc::Rc;

use libc::{EBADF, EFBIG, EINVAL, EISDIR, ENOENT, ENOSPC, ENXIO, EOPNOTSUPP};
use secretfs::vault::Kind;

use super::{Answer, Draft, Fh, Handle, Ino, Opening, Process, Reference, When, window};

impl Reference {
    pub fn may_open(&self, ino: Ino) -> Answer<()> {
        let node = self.nodes.get(&ino).ok_or(ENOENT)?;
        match node.kind {
            Kind::Directory => Err(EISDIR),
            Kind::File => Ok(()),
            _ => Err(EINVAL),
        }
    }

    pub fn open(&mut self, ino: Ino, fh: Fh, mut how: Opening, now: When) {
        let access = how.flags & libc::O_ACCMODE;
        if access == libc::O_RDONLY && how.flags & libc::O_TRUNC != 0 {
            // Nothing will be written through it: as truncate(2).
            self.truncate_path(ino, 0, how.uid, now)
                .expect("shorter is possible");
            how.flags &= !libc::O_TRUNC;
        }
        let mut handle = Handle {
            ino,
            read: access != libc::O_WRONLY,
            write: access != libc::O_RDONLY,
            append: how.flags & libc::O_APPEND != 0,
            opener: how.opener,
            user: how.uid,
            owners: BTreeSet::new(),
            authors: BTreeSet::new(),
            used_by: how.opener.unwrap_or(0),
            own: None,
            pin: None,
            fresh: None,
            held: false,
            read_to: 0,
        };
        let node = self.nodes.get_mut(&ino).unwrap();
        if !handle.write && node.current.number > 0 {
            handle.fresh = Some(node.current.clone());
        }
        if how.flags & libc::O_TRUNC != 0 {
            if node.current.number > 0 {
                let mut own = Draft::clean(Vec::new(), how.uid, now);
                own.touch(None, now);
                handle.own = Some(own);
            } else if let Some(shared) = node.shared.as_mut().filter(|s| !s.bytes.is_empty()) {
                shared.bytes.clear();
                shared.touch(None, now);
            }
            if how.uid != 0 {
                self.drop_set_id(ino, now);
            }
        }
        assert!(
            self.handles.insert(fh, handle).is_none(),
            "a handle is used twice"
        );
    }

    pub fn read(&mut self, fh: Fh, offset: u64, size: u64, process: Process) -> Answer<Vec<u8>> {
        let is_new =
            |(other, h): (&Fh, &Handle)| *other != fh && h.used_by == process && h.fresh.is_some();
        let ino = self.handles[&fh].ino;
        let mut of_node = self.handles.iter().filter(|(_, h)| h.ino == ino);
        let has_new_one = of_node.any(is_new);
        let handle = self.handles.get_mut(&fh).unwrap();
        let node = self.nodes.get_mut(&ino).unwrap();
        if !handle.read {
            return Err(EBADF);
        }
        let draft = match (&handle.own, handle.write || node.current.number == 0) {
            (Some(own), _) => Some(own),
            (None, true) => node.shared.as_ref(),
            (None, false) => None,
        };
        if let Some(draft) = draft {
            return Ok(window(&draft.bytes, offset, size));
        }
        if node.current.number == 0 {
            return Ok(Vec::new());
        }
        let first = handle.fresh.take();
        let is_first = first.is_some();
        let (pin, held) = match (first, &handle.pin) {
            // What was told is what is read.
            (Some(fresh), _) => (node.since(&fresh, process).clone(), true),
            // The beginning again: what its process was told since, or the newest.
            (None, Some(pin)) if !handle.write && offset == 0 && !handle.held => {
                let told = node.told.get(&process).filter(|_| process != 0);
                let told = told.filter(|told| told.number >= pin.number);
                (told.unwrap_or(&node.current).clone(), false)
            }
            (None, Some(pin)) if !handle.write => {
                // It is at the end, or was not replaced but edited.
                let is_edited = pin.number >= node.replaced;
                let follows = offset > 0 && (offset >= pin.bytes.len() as u64 || is_edited);
                let pin = if follows { &node.current } else { pin };
                (pin.clone(), handle.held)
            }
            (None, _) => (node.current.clone(), handle.held),
        };
        // What it was told before is not what it reads next, but through another that it has not read
        // from.
        if process != 0 && !has_new_one {
            node.told.remove(&process);
        }
        let length = pin.bytes.len() as u64;
        handle.held = held && 0 < offset && (is_first || offset < length);
        handle.read_to = (offset + size).min(length);
        handle.used_by = process;
        handle.pin = Some(pin);
        Ok(window(&handle.pin.as_ref().unwrap().bytes, offset, size))
    }

    /// Bytes of the drafts for which `counts`.
    fn drafts(&self, counts: impl Fn(&Draft) -> bool) -> u64 {
        let own = self.handles.values().filter_map(|h| h.own.as_ref());
        let shared = self.nodes.values().filter_map(|n| n.shared.as_ref());
        own.chain(shared)
            .filter(|draft| counts(draft))
            .map(|draft| draft.bytes.len() as u64)
            .sum()
    }

    /// Whether a user may have `more` bytes in a draft that is `length` long then: an eighth is kept
    /// for small ones, and everybody but root leaves a quarter of what the others have left.
    fn may_take(&self, user: u32, more: u64, length: u64) -> Answer<()> {
        let kept = match length <= 128 << 10 {
            true => 0,
            false => self.max_memory / 8,
        };
        let taken = self.drafts(|_| true) + more + kept;
        let free = self.max_memory.checked_sub(taken);
        let own = self.drafts(|draft| draft.user == user) + more;
        match free {
            _ if more == 0 => Ok(()),
            Some(free) if user == 0 || own <= 3 * free => Ok(()),
            _ => Err(ENOSPC),
        }
    }

    /// The draft that a handle writes to; the in-place one begins as a copy.
    fn draft(&mut self, fh: Fh, now: When) -> Answer<&mut Draft> {
        let handle = &self.handles[&fh];
        let (ino, user) = (handle.ino, handle.user);
        if handle.own.is_none() && self.nodes[&ino].shared.is_none() {
            let copied = Rc::clone(&self.nodes[&ino].current.bytes);
            let length = copied.len() as u64;
            self.may_take(user, length, length)?;
            let draft = Draft::clean(copied.to_vec(), user, now);
            self.nodes.get_mut(&ino).unwrap().shared = Some(draft);
        }
        match &mut self.handles.get_mut(&fh).unwrap().own {
            Some(own) => Ok(own),
            None => Ok(self.nodes.get_mut(&ino).unwrap().shared.as_mut().unwrap()),
        }
    }

    /// Whether the draft may have `size` bytes.
    fn may_resize(&mut self, fh: Fh, size: u64, now: When) -> Answer<()> {
        let max_size = self.max_size;
        let draft = self.draft(fh, now)?;
        let (length, user) = (draft.bytes.len() as u64, draft.user);
        if size > length && size > max_size {
            return Err(EFBIG);
        }
        self.may_take(user, size.saturating_sub(length), size)
    }

    pub fn write(
        &mut self,
        fh: Fh,
        offset: u64,
        data: &[u8],
        (process, owner, kill_set_id): (Process, u64, bool),
        now: When,
    ) -> Answer<u32> {
        let handle = &self.handles[&fh];
        let (ino, append) = (handle.ino, handle.append);
        if !handle.write {
            return Err(EBADF);
        }
        if kill_set_id {
            self.drop_set_id(ino, now);
        }
        let length = self.draft(fh, now)?.bytes.len();
        let at = if append { length } else { offset as usize };
        let end = at + data.len();
        if !data.is_empty() {
            self.may_resize(fh, (end.max(length)) as u64, now)?;
            let draft = self.draft(fh, now)?;
            draft.bytes.resize(end.max(length), 0);
            draft.bytes[at..end].copy_from_slice(data);
            draft.touch(Some(fh), now);
        }
        let handle = self.handles.get_mut(&fh).unwrap();
        handle.owners.insert(owner);
        handle.authors.insert(process);
        handle.used_by = process;
        // What it was told before is not what it reads next.
        self.nodes.get_mut(&ino).unwrap().told.remove(&process);
        Ok(data.len() as u32)
    }

    /// ftruncate(2).
    pub fn truncate_handle(&mut self, fh: Fh, size: u64, uid: u32, now: When) -> Answer<()> {
        let handle = &self.handles[&fh];
        let (ino, writes) = (handle.ino, handle.write);
        if uid != 0 {
            self.drop_set_id(ino, now);
        }
        if !writes {
            return Err(EINVAL);
        }
        let handle = &self.handles[&fh];
        let node = self.nodes.get_mut(&handle.ino).unwrap();
        if size == 0 && handle.own.is_none() && node.shared.is_none() {
            // Needs neither the old content nor room for it.
            node.shared = Some(Draft::clean(Vec::new(), handle.user, now));
        }
        self.may_resize(fh, size, now)?;
        let draft = self.draft(fh, now)?;
        draft.bytes.resize(size as usize, 0);
        draft.touch(Some(fh), now);
        draft.replaces |= size == 0;
        Ok(())
    }

    /// truncate(2), which publishes at once.
    pub fn truncate_path(&mut self, ino: Ino, size: u64, uid: u32, now: When) -> Answer<()> {
        const NOBODY: Fh = 0;
        let how = Opening {
            flags: libc::O_WRONLY,
            opener: None,
            uid,
        };
        self.open(ino, NOBODY, how, now);
        let cut = self.truncate_handle(NOBODY, size, uid, now);
        if cut.is_ok() {
            self.publish_shared(ino, now);
        }
        self.release(NOBODY, now);
        cut
    }

    pub fn allocate(
        &mut self,
        fh: Fh,
        (offset, length): (u64, u64),
        mode: i32,
        now: When,
    ) -> Answer<()> {
        if !self.handles[&fh].write {
            return Err(EBADF);
        }
        let zeroes = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
        if mode & !(zeroes | libc::FALLOC_FL_KEEP_SIZE) != 0 {
            return Err(EOPNOTSUPP);
        }
        let size = self.draft(fh, now)?.bytes.len() as u64;
        let end = offset + length;
        let extends = mode & libc::FALLOC_FL_KEEP_SIZE == 0 && end > size;
        if extends {
            self.may_resize(fh, end, now)?;
            self.draft(fh, now)?.bytes.resize(end as usize, 0);
        }
        let draft = self.draft(fh, now)?;
        if mode & zeroes != 0 {
            let length = draft.bytes.len() as u64;
            draft.bytes[offset.min(length) as usize..end.min(length) as usize].fill(0);
        }
        if extends || mode & zeroes != 0 {
            draft.touch(Some(fh), now);
        }
        Ok(())
    }

    pub fn copy_range(
        &mut self,
        from: (Fh, u64),
        to: (Fh, u64),
        length: u64,
        now: When,
    ) -> Answer<u32> {
        // By nobody who can be seen.
        let data = self.read(from.0, from.1, length, 0)?;
        self.write(to.0, to.1, &data, (0, 0, false), now)
    }

    /// By a process that cannot be seen.
    pub fn seek(&mut self, fh: Fh, offset: u64, hole: bool) -> Answer<u64> {
        let handle = self.handles.get_mut(&fh).unwrap();
        let (ino, node) = (handle.ino, &self.nodes[&handle.ino]);
        if let Some(fresh) = handle.fresh.as_mut().filter(|_| !handle.write) {
            *fresh = node.since(fresh, 0).clone();
        }
        let size = self.size(ino, Some(fh), 0);
        match hole {
            _ if offset >= size => Err(ENXIO),
            true => Ok(size),
            false => Ok(offset),
        }
    }
}
