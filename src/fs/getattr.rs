//! The length and times that each process sees, so that `fstat` agrees with the content that the
//! process reads or writes.
//!
//! A file that is being written has two lengths: that of the draft, for the processes that write
//! it, and that of the published content, for all others. The kernel has room for one. It keeps the
//! draft's where that matters: if the draft can be mapped, or a writer has just asked for its end.
//! Other processes get theirs in an answer that the kernel passes on without storing it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::store::NodeId;
use crate::vault::{Kind, Node, NodeBody, ROOT};

use super::authors::Place;
use super::draft::Draft;
use super::handles::NodeState;
use super::kernel::{Device, Kernel};
use super::loaded::Shown;
use super::loading::Loader;
use super::nodes::Nodes;
use super::publication_wait::PublicationWait;
use super::readings::LastSeen;
use super::table::Table;
use super::{Attr, Caller, Done, Errno, FileHandle};

/// An answer, and whether the kernel may use it for all processes.
struct Answer {
    attr: Attr,
    for_all: bool,
}

/// The attributes of a mount's nodes.
pub(super) struct Attributes {
    pub(super) is_beside_writer: bool,
    /// How long the kernel may keep attributes.
    pub(super) ttl: Duration,
    pub(super) table: Arc<Table>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) loader: Arc<Loader>,
    pub(super) publications: Arc<PublicationWait>,
    pub(super) kernel: Arc<Kernel>,
    pub(super) device: Arc<Device>,
}

impl Attributes {
    /// The node `id` of this mount.
    pub(super) fn place(&self, id: NodeId) -> Place {
        Place {
            id,
            device: self.device.get(),
        }
    }

    /// The attributes of a stored node.
    fn stored_attr(&self, node: &Node) -> Attr {
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
            ttl: self.ttl,
            version: 0,
        };
        match &a.body {
            NodeBody::File(file) => (attr.size, attr.version) = (file.size, file.version),
            NodeBody::Directory(directory) => attr.size = directory.entries,
            NodeBody::Symlink(target) => attr.size = target.len() as u64,
            NodeBody::Special(device) => attr.device = *device,
        }
        attr
    }

    /// The attributes for the kernel when no process has asked for them: with a name, or after a
    /// change. If they may differ for some process, the kernel asks again before it uses them.
    pub(super) fn attr_of(&self, node: &Node) -> Attr {
        let mut attr = self.stored_attr(node);
        if node.kind == Kind::File
            && let Some(open) = self.table.node(node.id)
        {
            let mut state = open.lock();
            self.limit_caching(&mut attr, &mut state);
            match state.authors().sizing_draft() {
                Some(draft) if !state.shows_draft(attr.version) => attr.size = draft.len(),
                _ => show_first_draft(&mut attr, &state),
            }
            state.believed = Some(attr.size);
        }
        attr
    }

    /// Keeps the kernel from storing attributes that may change with the next request, or without
    /// one, or differ between processes.
    fn limit_caching(&self, attr: &mut Attr, state: &mut NodeState) {
        if state.has_writers()
            || state.shared.is_some()
            || state.publishing > 0
            || state.readers().has_outdated(attr.version)
        {
            attr.ttl = Duration::ZERO;
        }
    }

    /// Attributes of a node, or of the content that a handle sees.
    pub(super) fn getattr(
        self: &Arc<Self>,
        caller: Caller,
        ino: u64,
        fh: Option<FileHandle>,
        done: Done<Attr>,
    ) {
        match ino {
            ROOT => self.attr_when_stored(ino, done),
            _ => self.attr_for(caller, ino, fh, done),
        }
    }

    /// The answer to `stat` or `fstat` of a process, or to a seek to the end of a handle.
    fn attr_for(
        self: &Arc<Self>,
        caller: Caller,
        ino: NodeId,
        fh: Option<FileHandle>,
        done: Done<Attr>,
    ) {
        // A writer does not wait for its own publication.
        if let Some(fh) = fh
            && let Some(length) = self.seek_in_draft(fh)
        {
            return done(self.nodes.stored_or_held(ino).map(|node| {
                let attr = self.stored_attr(&node);
                self.with_draft_through(fh, attr, length)
            }));
        }
        let attributes = Arc::clone(self);
        self.publications
            .when_stored(ino, move || match attributes.answer(caller, ino, fh) {
                Ok(Some(answer)) => {
                    match answer.for_all {
                        true => attributes.note_remembered(&answer.attr),
                        false => attributes.kernel.forget_attributes(ino),
                    }
                    done(Ok(answer.attr));
                }
                // A new publication has begun since.
                Ok(None) => attributes.attr_for(caller, ino, fh, done),
                Err(error) => done(Err(error)),
            });
    }

    /// The attributes of a node, after pending publications.
    pub(super) fn attr_when_stored(self: &Arc<Self>, id: NodeId, done: Done<Attr>) {
        let attributes = Arc::clone(self);
        self.publications.when_stored(id, move || {
            done(
                attributes
                    .nodes
                    .stored_held_or_opened(id)
                    .map(|node| attributes.attr_of(&node)),
            );
        });
    }

    /// The length of a handle's draft, if its process is seeking to the end.
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

    /// The attributes after a change through a handle, with the length and times of its draft.
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

    /// `None` while a publication is under way.
    fn answer(
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
            let attr = self.stored_attr(&*self.nodes.stored_or_held(ino)?);
            return Ok(Some(for_all(attr)));
        };
        let mut state = open.lock();
        if state.publishing > 0 {
            return Ok(None);
        }
        let node = match (self.nodes.stored(ino), &state.opened) {
            (Err(Errno(libc::ESTALE)), Some(_)) => {
                let attr = self.attr_of_removed(&mut state, caller, fh)?;
                return Ok(Some(for_all(attr)));
            }
            (Err(Errno(libc::ESTALE)), None) => self.nodes.stored_or_held(ino)?,
            (node, _) => node?,
        };
        let mut attr = self.stored_attr(&node);
        let Ok(file) = node.file() else {
            return Ok(Some(for_all(attr)));
        };
        self.limit_caching(&mut attr, &mut state);
        if state.shows_draft(file.version) {
            show_first_draft(&mut attr, &state);
            state.believed = Some(attr.size);
            return Ok(Some(for_all(attr)));
        }
        if let Some(fh) = fh {
            let mut end = Shown::of(file).pin();
            if self.is_beside_writer && state.readers().moves_at_end(fh, file) {
                drop(state);
                let handle = self.table.get(fh);
                let user = handle.map_or(caller.uid, |handle| handle.user);
                // The content may be gone when it is read.
                end = match self.loader.load_current_of(&open, user) {
                    Ok((_, current)) => current.unwrap_or(end),
                    Err(Errno(libc::ESTALE)) => {
                        let attr = self.attr_of_removed(&mut open.lock(), caller, Some(fh))?;
                        return Ok(Some(for_all(attr)));
                    }
                    Err(error) => return Err(error),
                };
                state = open.lock();
            }
            attr.size = state.readers().seek_in_version(fh, file, end);
            if self.is_beside_writer {
                // The kernel must use this length, which may belong to another version than `file`.
                attr.ttl = Duration::ZERO;
            }
            state.believed = Some(attr.size);
            return Ok(Some(for_all(attr)));
        }
        let authors = state.authors();
        let draft = authors.draft_of_process(caller.pid, &self.place(ino));
        // A published content is the same for all.
        let is_own = |draft: &Draft| draft.is_unpublished() || draft.len() != attr.size;
        if let Some((_, draft)) = draft.filter(|(_, draft)| is_own(draft)) {
            attr.size = draft.len();
            show_times(&mut attr, draft);
            state.believed = Some(attr.size);
            return Ok(Some(for_all(attr)));
        }
        if let Some(length) = state.readers().drained_by(caller.pid, file) {
            attr.size = length;
        } else if state.readers().has_outdated_fresh(file.version) {
            let mut pin = Some(Shown::of(file).pin());
            if self.is_beside_writer {
                // Hold nothing for processes that are not the first to read it.
                let place = self.place(ino);
                let may_read = state.readers().may_read_first(caller.pid, &place);
                drop(state);
                let current = may_read.then(|| self.loader.load_current_of(&open, caller.uid));
                pin = match current {
                    Some(Ok((_, current))) => current.or(pin),
                    // It reads the content from the time it opened the file.
                    None | Some(Err(Errno(libc::ENOMEM))) => None,
                    Some(Err(Errno(libc::ESTALE))) => {
                        let attr = self.attr_of_removed(&mut open.lock(), caller, fh)?;
                        return Ok(Some(for_all(attr)));
                    }
                    Some(Err(error)) => return Err(error),
                };
                state = open.lock();
            }
            if let Some(pin) = pin {
                (attr.size, attr.version) = (pin.length, pin.version);
                state.last_seen.note(caller.pid, pin);
            }
        } else if self.is_beside_writer {
            // No process is going to read another version.
            state.last_seen = LastSeen::default();
        } else if state.readers().may_read_again(caller.pid) {
            state.last_seen.note(caller.pid, Shown::of(file).pin());
        }
        let sizing = state.authors().sizing_draft().map(Draft::len);
        let believed_by_all = sizing.is_none_or(|length| length == attr.size);
        if believed_by_all {
            state.believed = Some(attr.size);
        }
        Ok(Some(Answer {
            attr,
            for_all: believed_by_all,
        }))
    }

    /// The attributes of an open file that the writer has removed: those at the time of the open.
    fn attr_of_removed(
        &self,
        state: &mut NodeState,
        caller: Caller,
        fh: Option<FileHandle>,
    ) -> Result<Attr, Errno> {
        let opened = state.opened.as_ref().ok_or(Errno(libc::ESTALE))?;
        let mut attr = self.stored_attr(&opened.without_name());
        let length = state.readers().length_read_by(fh, caller.pid);
        attr.size = length.unwrap_or(attr.size);
        attr.ttl = Duration::ZERO;
        Ok(attr)
    }

    /// The length that all processes see, except writers.
    fn size_for_all(&self, node: &Node) -> u64 {
        let mut attr = self.stored_attr(node);
        if let Some(open) = self.table.node(node.id) {
            show_first_draft(&mut attr, &open.lock());
        }
        attr.size
    }

    /// The length of the content that a handle is going to read: its draft, or the version that it
    /// is pinned to or pins now.
    fn size_through(&self, fh: FileHandle, thread: u32) -> Option<u64> {
        let handle = self.table.get(fh).ok()?;
        let mut state = handle.node.lock();
        if let Some(draft) = state.draft_of(fh) {
            return Some(draft.len());
        }
        // A handle for writing follows the published content until it has a draft.
        let own = state.handles.get(&fh).filter(|own| !own.write)?;
        let pinned = own.pin.as_ref().map(|pin| pin.length);
        let Some(fresh) = own.reading.fresh else {
            return pinned;
        };
        let Some(seen) = state.readers().seen_since(fh, fresh, thread) else {
            return Some(fresh.length);
        };
        let length = seen.length;
        if let Some(own) = state.handles.get_mut(&fh) {
            own.reading.fresh = Some(Shown::of_pin(&seen));
            // Only beside a writer is there a pin so early.
            own.pin = own.pin.take().map(|_| seen);
        }
        Some(length)
    }

    /// lseek(2) with SEEK_DATA and SEEK_HOLE: there are no holes.
    pub(super) fn seek(
        &self,
        caller: Caller,
        fh: FileHandle,
        offset: u64,
        whence: i32,
    ) -> Result<u64, Errno> {
        let handle = self.table.get(fh)?;
        let size = match self.size_through(fh, caller.pid) {
            Some(size) => size,
            None => self.size_for_all(&*self.nodes.stored_or_held(handle.node.id)?),
        };
        match whence {
            _ if offset >= size => Err(Errno(libc::ENXIO)),
            libc::SEEK_DATA => Ok(offset),
            libc::SEEK_HOLE => Ok(size),
            _ => Err(Errno(libc::EINVAL)),
        }
    }

    /// Called beside a writer, before the kernel gets `attr` and may store it. If the kernel may
    /// have stored another version, this tells it to forget that; it then ignores this answer, too.
    ///
    /// An opener pins a version and then reads the note; this writes the note and then looks at the
    /// pins. One of the two sees the other, so the kernel never keeps the length of another version
    /// than the one that is read. An answer that the kernel does not store needs no note.
    fn note_remembered(&self, attr: &Attr) {
        if !self.is_beside_writer || attr.kind != Kind::File || attr.ttl.is_zero() {
            return;
        }
        self.loader.forget_other_versions(attr.ino, attr.version);
        self.forget_outdated(attr);
    }

    /// The second half of that, called after the note.
    pub(super) fn forget_outdated(&self, attr: &Attr) {
        if self.is_beside_writer
            && !attr.ttl.is_zero()
            && let Some(open) = self.table.node(attr.ino)
            && open.lock().readers().has_outdated(attr.version)
        {
            self.kernel.forget_attributes(attr.ino);
        }
    }
}

/// Shows the first content of a file while it is being written, before the first publication.
fn show_first_draft(attr: &mut Attr, state: &NodeState) {
    if state.shows_draft(attr.version)
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
