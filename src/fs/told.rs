//! Who is told of which length and times, so that what `fstat` tells and what is read or written are
//! of one content.
//!
//! A file that is being written has two lengths: that of the draft, for the processes that write it,
//! and that of what is published, for everybody else. The kernel has room for one. It keeps that
//! of the draft where that matters: where the draft can be mapped, or its end was just asked for. The
//! others are told theirs in an answer that the kernel passes on without believing it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::store::NodeId;
use crate::vault::{Body, FileBody, Kind, Node, Timestamp};

use super::draft::Draft;
use super::handles::{HandleState, LastPiece, NodeState, Pin};
use super::pages::Source;
use super::{Attr, Caller, Done, Errno, FileHandle, FileSystem, descriptors, process};

/// Most answers that are remembered of a node.
const MOST: usize = 64;
/// How long after its writer has asked for the end of a draft the kernel is told of no other: it may
/// still be on its way to take that for the end.
const SOUGHT: Duration = Duration::from_secs(1);

/// What the process that reads through a handle may have been told, and how far it has read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reading {
    /// Until something is read: the version that was current when it was opened, or when its end was
    /// asked for.
    pub(super) fresh: Option<Shown>,
    /// The length of what it has settled on was told: a read at the beginning stays there.
    pub(super) held: bool,
    /// Where the last read ended.
    pub(super) read_to: u64,
    /// The thread that opened the handle, or read or wrote through it last.
    pub(super) thread: u32,
}

impl Reading {
    /// A read of a version of `length` bytes.
    pub(super) fn note(&mut self, offset: u64, size: u32, length: u64, thread: u32) {
        // Who begins elsewhere has looked where the end is, and comes to the beginning later.
        self.held = match self.fresh.take() {
            Some(_) => offset > 0 && offset < length,
            None => self.held && offset > 0 && offset < length,
        };
        self.read_to = offset.saturating_add(size.into()).min(length);
        self.thread = thread;
    }
}

/// A version and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) version: u64,
    pub(super) length: u64,
}

impl Shown {
    pub(super) fn of(file: &FileBody) -> Self {
        Self {
            version: file.version,
            length: file.size,
        }
    }

    pub(super) fn of_pin(pin: &Pin) -> Self {
        Self {
            version: pin.version,
            length: pin.length,
        }
    }

    pub(super) fn pin(self) -> Pin {
        Pin {
            version: self.version,
            length: self.length,
            loaded: None,
            last: LastPiece::default(),
        }
    }
}

/// Which version threads were told of last. They are kept as the kernel names them: which process
/// they belong to is asked when it matters.
#[derive(Debug, Default)]
pub(super) struct Told(Vec<(u32, Pin)>);

impl Told {
    fn note(&mut self, thread: u32, pin: Pin) {
        self.0.retain(|(known, _)| *known != thread);
        if self.0.len() == MOST {
            self.0.remove(0);
        }
        self.0.push((thread, pin));
    }

    /// What the process of `thread` was told last; what the thread itself was told, if it does all by
    /// itself. Those that cannot be seen count as one.
    fn to_process_of(&self, thread: u32, alone: bool) -> Option<&Pin> {
        let own = self.0.iter().find(|(known, _)| *known == thread);
        if self.0.is_empty() || alone {
            return own.map(|(_, pin)| pin);
        }
        let group = process::thread_group(thread);
        let mut latest = self.0.iter().rev();
        let is_of = |known: u32| known == thread || same_process(known, group);
        latest.find(|(known, _)| is_of(*known)).map(|(_, pin)| pin)
    }
}

/// Whether `thread` belongs to a process that can be seen.
fn same_process(thread: u32, group: Option<u32>) -> bool {
    group.is_some() && process::thread_group(thread) == group
}

impl HandleState {
    fn is_draining(&self) -> bool {
        self.pin
            .as_ref()
            .is_some_and(|pin| 0 < self.reading.read_to && self.reading.read_to < pin.length)
    }

    /// Whether it is going to read another version than the one that is current.
    fn is_outdated(&self, current: u64) -> bool {
        if self.write {
            return false;
        }
        let fresh = self.reading.fresh.is_some_and(|f| f.version != current);
        let pinned = self.pin.as_ref().is_some_and(|p| p.version != current);
        fresh || pinned && self.is_draining()
    }
}

impl NodeState {
    /// Versions that somebody was told of, and may read first.
    pub(super) fn add_promised(&mut self, versions: &mut Vec<u64>) {
        if !self.handles.values().any(|own| !own.write) {
            self.told.0.clear();
        }
        let fresh = self.handles.values().filter_map(|h| h.reading.fresh);
        versions.extend(fresh.map(|fresh| fresh.version));
        versions.extend(self.told.0.iter().map(|(_, pin)| pin.version));
    }

    /// Whether a reader is going to read another version than the one that is current.
    fn has_outdated_readers(&self, current: u64) -> bool {
        self.handles.values().any(|own| own.is_outdated(current))
    }

    fn has_outdated_fresh(&self, current: u64) -> bool {
        let mut fresh = self.handles.values().filter_map(|h| h.reading.fresh);
        fresh.any(|fresh| fresh.version != current)
    }

    /// What the first read of a handle that was opened at `fresh` gets, if others were published
    /// since: what its process was told of last.
    pub(super) fn told_since(&self, fh: FileHandle, fresh: Shown, thread: u32) -> Option<Pin> {
        let opener = self.handles.get(&fh).map(|own| own.reading.thread);
        let told = self.told.to_process_of(thread, opener == Some(thread))?;
        (told.version > fresh.version).then(|| told.clone())
    }

    /// What a thread was told last, if that is not older than what it has settled on. Once: what it
    /// reads at the beginning after that is newer.
    pub(super) fn told_again(&mut self, pinned: Shown, thread: u32) -> Option<Pin> {
        let mut told = self.told.0.iter();
        let at = told.position(|(known, _)| *known == thread && thread != 0)?;
        let (_, told) = self.told.0.remove(at);
        (told.version >= pinned.version).then_some(told)
    }

    /// Whether a thread has a handle that it may read again from the beginning.
    fn may_read_again(&self, thread: u32) -> bool {
        let mut handles = self.handles.values().filter(|own| !own.write);
        thread != 0 && handles.any(|own| own.reading.thread == thread && own.pin.is_some())
    }

    /// The kernel takes the file to reach at least so far.
    pub(super) fn note_reach(&mut self, end: u64) {
        self.believed = self.believed.map(|believed| believed.max(end));
    }

    /// The draft that a handle writes to, and where it is.
    fn draft_through<'a>(
        &'a self,
        fh: FileHandle,
        own: &'a HandleState,
    ) -> Option<(Source, &'a Draft)> {
        match &own.own {
            Some(draft) => Some((Source::Own(fh), draft)),
            None => {
                let shared = self.shared.as_ref().filter(|_| own.write);
                shared.map(|draft| (Source::Shared, draft))
            }
        }
    }

    /// The drafts of those handles that `are`, the one that was changed last.
    fn latest_draft(&self, are: impl Fn(&HandleState) -> bool) -> Option<(Source, &Draft)> {
        let handles = self.handles.iter().filter(|(_, own)| are(own));
        let drafts = handles.filter_map(|(fh, own)| self.draft_through(*fh, own));
        drafts.max_by_key(|(_, draft)| (draft.is_unpublished(), draft.edited_at))
    }

    /// The draft of a process: of several, the one that was changed last.
    fn draft_of_process(&self, thread: u32, node: &Place) -> Option<(Source, &Draft)> {
        // Who asks about a file that nobody writes is not asked who he is.
        let any = self.latest_draft(|_| true)?;
        let group = process::thread_group(thread)?;
        let writes = |own: &HandleState| own.opener == Some(group) || own.groups.contains(&group);
        let known = self.latest_draft(writes);
        if known.is_some() && self.only_reads(thread) {
            return None;
        }
        // It may have been given the descriptor by another.
        let given = || descriptors::has_writable(group, node.id, node.device).then_some(any);
        known.or_else(given)
    }

    /// Whether a thread has just read, or opened for reading, in a process in which others write.
    fn only_reads(&self, thread: u32) -> bool {
        let mut reads = false;
        for own in self
            .handles
            .values()
            .filter(|own| own.reading.thread == thread)
        {
            if own.write {
                return false;
            }
            reads = true;
        }
        reads
    }

    /// The draft whose length the kernel must have: one that is mapped, can be mapped, or of which the
    /// end was just asked for.
    fn sizing_draft(&self) -> Option<&Draft> {
        let sizes =
            |own: &HandleState| own.maps || own.sought.is_some_and(|at| at.elapsed() < SOUGHT);
        let latest = || {
            let (_, draft) = self.latest_draft(sizes)?;
            draft.is_unpublished().then_some(draft)
        };
        self.mapped_draft().or_else(latest)
    }

    /// The draft that pages may be of.
    fn mapped_draft(&self) -> Option<&Draft> {
        match self.pages.source()? {
            Source::Version(_) => None,
            Source::Shared => self.shared.as_ref(),
            Source::Own(fh) => self.handles.get(&fh)?.own.as_ref(),
        }
    }

    /// A modification time is set: for what its process is writing, with which it is told to others.
    /// `false` when that is what is published, and the drafts of others, which do not move it again.
    pub(super) fn set_modified(&mut self, thread: u32, node: &Place, time: Timestamp) -> bool {
        let own = self.draft_of_process(thread, node);
        let own = own.filter(|(_, draft)| draft.is_unpublished());
        let draft = match own.map(|(source, _)| source) {
            Some(Source::Own(fh)) => self.handles.get_mut(&fh).and_then(|own| own.own.as_mut()),
            Some(Source::Shared) => self.shared.as_mut(),
            Some(Source::Version(_)) | None => None,
        };
        if let Some(draft) = draft {
            draft.modified = Some(time);
            return true;
        }
        let own = self.handles.values_mut().filter_map(|own| own.own.as_mut());
        own.chain(&mut self.shared)
            .for_each(|draft| draft.modified = Some(time));
        false
    }
}

/// A node, and the device number of its mount if that is known.
pub(super) struct Place {
    pub(super) id: NodeId,
    pub(super) device: Option<(u32, u32)>,
}

/// An answer, and whether the kernel may take it for what is true for all.
struct Answer {
    attr: Attr,
    for_all: bool,
}

impl FileSystem {
    /// A node of this mount.
    pub(super) fn place(&self, id: NodeId) -> Place {
        Place {
            id,
            device: self.device.get().copied(),
        }
    }

    /// What is stored of a node.
    pub(super) fn stored_attr(&self, node: &Node) -> Attr {
        let a = &node.attributes;
        let mut attr = Attr {
            ino: node.id,
            kind: node.kind,
            mode: a.mode,
            links: node.visible_links(),
            uid: a.uid,
            gid: a.gid,
            device: 0,
            size: 0,
            accessed: a.accessed,
            modified: a.modified,
            changed: a.changed,
            ttl: self.settings.ttl,
            version: 0,
        };
        match &a.body {
            Body::File(file) => (attr.size, attr.version) = (file.size, file.version),
            Body::Directory(directory) => attr.size = directory.entries,
            Body::Symlink(target) => attr.size = target.len() as u64,
            Body::Special(device) => attr.device = *device,
        }
        attr
    }

    /// What the kernel is told of a node that nobody has asked about: with a name, or after a change.
    /// If there is more to know it asks itself before it tells anybody.
    pub(super) fn attr_of(&self, node: &Node) -> Attr {
        let mut attr = self.stored_attr(node);
        if node.kind == Kind::File
            && let Some(open) = self.table.node(node.id)
        {
            let mut state = open.lock();
            self.mark_unsettled(&mut attr, &state);
            match state.sizing_draft() {
                Some(draft) if attr.version > 0 => attr.size = draft.len(),
                _ => show_first_draft(&mut attr, &state),
            }
            state.believed = Some(attr.size);
        }
        attr
    }

    /// Whatever may change with the next request, or without one, or is not the same for all, is not
    /// to be remembered.
    fn mark_unsettled(&self, attr: &mut Attr, state: &NodeState) {
        if state.has_writers()
            || state.shared.is_some()
            || state.publishing > 0
            || state.has_outdated_readers(attr.version)
        {
            attr.ttl = Duration::ZERO;
        }
    }

    /// What `stat` or `fstat` shows to a process, or what asking for the end of a handle finds.
    pub(super) fn told_attr(
        self: &Arc<Self>,
        caller: Caller,
        ino: NodeId,
        fh: Option<FileHandle>,
        done: Done<Attr>,
    ) {
        // Who writes does not wait for what is being published of it.
        if let Some(fh) = fh
            && let Some(length) = self.seek_in_draft(fh)
        {
            return done(self.node(ino).map(|node| {
                let attr = self.stored_attr(&node);
                self.with_draft_through(fh, attr, length)
            }));
        }
        let fs = Arc::clone(self);
        self.when_settled(ino, move || match fs.tell(caller, ino, fh) {
            Ok(Some(answer)) => {
                if !answer.for_all
                    && let Some(forget) = fs.forget.get()
                {
                    forget(ino);
                }
                done(Ok(answer.attr));
            }
            // Somebody has begun to publish since.
            Ok(None) => fs.told_attr(caller, ino, fh, done),
            Err(error) => done(Err(error)),
        });
    }

    /// The length of the draft of a handle, which its process is asking for.
    fn seek_in_draft(&self, fh: FileHandle) -> Option<u64> {
        let handle = self.table.get(fh).ok()?;
        let mut state = handle.node.lock();
        let length = state.draft_of(fh)?.len();
        if let Some(own) = state.handles.get_mut(&fh) {
            own.sought = Some(Instant::now());
        }
        state.believed = Some(length);
        Some(length)
    }

    /// After a change through a handle: the length and times of its draft.
    pub(super) fn attr_through(&self, fh: Option<FileHandle>, node: &Node) -> Attr {
        let attr = self.attr_of(node);
        let handle = fh.and_then(|fh| Some((fh, self.table.get(fh).ok()?)));
        let Some((fh, handle)) = handle else {
            return attr;
        };
        let length = {
            let mut state = handle.node.lock();
            let length = state.draft_of(fh).map(|draft| draft.len());
            state.believed = length.or(state.believed);
            length
        };
        match length {
            Some(length) => self.with_draft_through(fh, attr, length),
            None => attr,
        }
    }

    fn with_draft_through(&self, fh: FileHandle, mut attr: Attr, length: u64) -> Attr {
        attr.size = length;
        attr.ttl = Duration::ZERO;
        if let Ok(handle) = self.table.get(fh)
            && let Some(draft) = handle.node.lock().draft_of(fh)
        {
            show_times(&mut attr, draft);
        }
        attr
    }

    /// `None` while something is being published.
    fn tell(
        &self,
        caller: Caller,
        ino: NodeId,
        fh: Option<FileHandle>,
    ) -> Result<Option<Answer>, Errno> {
        let for_all = |attr| Answer {
            attr,
            for_all: true,
        };
        let Some(open) = self.table.node(ino) else {
            let attr = self.stored_attr(&*self.node(ino)?);
            self.note_told(&attr);
            return Ok(Some(for_all(attr)));
        };
        let mut state = open.lock();
        if state.publishing > 0 {
            return Ok(None);
        }
        let node = self.node(ino)?;
        let mut attr = self.stored_attr(&node);
        let Ok(file) = node.file() else {
            return Ok(Some(for_all(attr)));
        };
        self.mark_unsettled(&mut attr, &state);
        if file.version == 0 {
            show_first_draft(&mut attr, &state);
            state.believed = Some(attr.size);
            return Ok(Some(for_all(attr)));
        }
        if let Some(fh) = fh {
            let mut end = Shown::of(file).pin();
            if self.vault.is_read_only() && state.settles_elsewhere(fh, file) {
                drop(state);
                // It may be gone when it is read.
                end = self.load_current_of(ino)?.unwrap_or(end);
                state = open.lock();
            }
            attr.size = state.seek_in_version(fh, file, end);
            state.believed = Some(attr.size);
            return Ok(Some(for_all(attr)));
        }
        let draft = state.draft_of_process(caller.pid, &self.place(ino));
        // What is published is the same for all.
        let is_own = |draft: &Draft| draft.is_unpublished() || draft.len() != attr.size;
        if let Some((_, draft)) = draft.filter(|(_, draft)| is_own(draft)) {
            attr.size = draft.len();
            show_times(&mut attr, draft);
            state.believed = Some(attr.size);
            return Ok(Some(for_all(attr)));
        }
        if let Some(length) = state.drained_by(caller.pid, file) {
            attr.size = length;
        } else if state.has_outdated_fresh(file.version) {
            let mut pin = Shown::of(file).pin();
            if self.vault.is_read_only() {
                drop(state);
                pin = self.load_current_of(ino)?.unwrap_or(pin);
                state = open.lock();
            }
            (attr.size, attr.version) = (pin.length, pin.version);
            state.told.note(caller.pid, pin);
        } else if !self.vault.is_read_only() && state.may_read_again(caller.pid) {
            state.told.note(caller.pid, Shown::of(file).pin());
        }
        let sizing = state.sizing_draft().map(Draft::len);
        let believed_by_all = sizing.is_none_or(|length| length == attr.size);
        if believed_by_all {
            state.believed = Some(attr.size);
        }
        drop(state);
        self.note_told(&attr);
        Ok(Some(Answer {
            attr,
            for_all: believed_by_all,
        }))
    }

    /// The length that everybody sees who does not write.
    pub(super) fn size_for_all(&self, node: &Node) -> u64 {
        let mut attr = self.stored_attr(node);
        if let Some(open) = self.table.node(node.id) {
            show_first_draft(&mut attr, &open.lock());
        }
        attr.size
    }

    /// The length of what a handle is going to read: its draft, or the version that it has settled on
    /// or settles on now.
    pub(super) fn size_through(&self, fh: FileHandle, thread: u32) -> Option<u64> {
        let handle = self.table.get(fh).ok()?;
        let mut state = handle.node.lock();
        if let Some(draft) = state.draft_of(fh) {
            return Some(draft.len());
        }
        // One that writes follows what is published until it has a draft.
        let own = state.handles.get(&fh).filter(|own| !own.write)?;
        let pinned = own.pin.as_ref().map(|pin| pin.length);
        let Some(fresh) = own.reading.fresh else {
            return pinned;
        };
        let Some(told) = state.told_since(fh, fresh, thread) else {
            return Some(fresh.length);
        };
        let length = told.length;
        if let Some(own) = state.handles.get_mut(&fh) {
            own.reading.fresh = Some(Shown::of_pin(&told));
            // Only beside a writer there is one so early.
            own.pin = own.pin.take().map(|_| told);
        }
        Some(length)
    }

    /// Of a file that another process writes: the kernel may remember what it is told.
    fn note_told(&self, attr: &Attr) {
        if self.vault.is_read_only() {
            self.table.note_told(attr.ino, attr.version);
        }
    }

    /// In a read-only mount, a file is being opened at `version`: what the kernel remembers must not
    /// be of another.
    pub(super) fn forget_others(&self, ino: NodeId, version: u64) {
        let told = self.table.note_told(ino, version);
        if told.is_some_and(|told| told != version)
            && let Some(forget) = self.forget.get()
        {
            forget(ino);
        }
    }
}

impl NodeState {
    /// Whether what a handle reads next is its own, and not what is current.
    fn reads_on(own: &HandleState, file: &FileBody) -> bool {
        let is_behind = |pin: &Pin| pin.version < file.replaced;
        !own.write && own.is_draining() && own.pin.as_ref().is_some_and(is_behind)
    }

    /// Whether a handle has to be given what is current when its end is asked for.
    fn settles_elsewhere(&self, fh: FileHandle, file: &FileBody) -> bool {
        self.handles.get(&fh).is_some_and(|own| {
            let pinned = own.pin.as_ref().map(|pin| pin.version);
            !own.write && !Self::reads_on(own, file) && pinned != Some(file.version)
        })
    }

    /// The length of what a handle without a draft is going to read: of what it is in the middle of,
    /// or of what is current, where it settles with `end`.
    fn seek_in_version(&mut self, fh: FileHandle, file: &FileBody, end: Pin) -> u64 {
        let moves = self.settles_elsewhere(fh, file);
        let Some(own) = self.handles.get_mut(&fh).filter(|own| !own.write) else {
            return file.size;
        };
        let is_settled = own.pin.is_some();
        if let Some(fresh) = &mut own.reading.fresh {
            (fresh.version, fresh.length) = (end.version, end.length);
        } else {
            own.reading.held = true;
        }
        if moves && is_settled {
            own.settle(Some(end));
            own.reading.read_to = 0;
        }
        let fresh = own.reading.fresh.map(|fresh| fresh.length);
        let pinned = own.pin.as_ref().map(|pin| pin.length);
        fresh.or(pinned).unwrap_or(file.size)
    }

    /// The length of what a process is in the middle of reading, if that was replaced and it has no
    /// other handle: it may go on, and a read at the beginning must not bring another.
    fn drained_by(&mut self, thread: u32, file: &FileBody) -> Option<u64> {
        if !self.handles.values().any(|own| Self::reads_on(own, file)) {
            return None;
        }
        let group = process::thread_group(thread);
        let mut of_process = self
            .handles
            .values_mut()
            .filter(|own| same_process(own.reading.thread, group));
        let own = of_process.next().filter(|own| Self::reads_on(own, file))?;
        if of_process.next().is_some() {
            return None;
        }
        own.reading.held = true;
        own.pin.as_ref().map(|pin| pin.length)
    }
}

/// A file that was never published shows its first content while it is written.
fn show_first_draft(attr: &mut Attr, state: &NodeState) {
    if attr.version == 0
        && let Some(shared) = &state.shared
    {
        attr.size = shared.len();
        show_times(attr, shared);
    }
}

fn show_times(attr: &mut Attr, draft: &Draft) {
    if draft.is_unpublished() {
        attr.modified = draft.modified.unwrap_or(draft.edited_at);
        attr.changed = attr.changed.max(draft.edited_at);
    }
}
