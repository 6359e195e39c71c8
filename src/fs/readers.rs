//! The version that a reader reads next: the one whose length its process has seen. Versions are
//! kept for readers when others are published.

use crate::vault::FileBody;

use super::FileHandle;
use super::authors::Place;
use super::descriptors::{self, For};
use super::handle_state::{HandleState, Handles};
use super::loaded::{Pin, Shown};
use super::readings::{LastSeen, same_process};
use crate::os::process;

impl HandleState {
    /// The content that it reads or is going to read, named by its first version.
    pub(super) fn content(&self) -> Option<u64> {
        let fresh = self.reading.fresh.map(|fresh| fresh.since);
        fresh.or(self.pin.as_ref().map(|pin| pin.since))
    }

    fn is_draining(&self) -> bool {
        self.pin
            .as_ref()
            .is_some_and(|pin| 0 < self.reading.read_to && self.reading.read_to < pin.length)
    }

    /// Whether it is going to read another version than the current one.
    fn is_outdated(&self, current: u64) -> bool {
        if self.write {
            return false;
        }
        let fresh = self.reading.fresh.is_some_and(|f| f.version != current);
        let pinned = self.pin.as_ref().is_some_and(|p| p.version != current);
        fresh || pinned && (self.is_draining() || self.reading.held)
    }
}

/// A node's handles, for the versions that their readers see, and the lengths that their processes
/// were given.
pub(super) struct Readers<'a> {
    handles: &'a mut Handles,
    last_seen: &'a mut LastSeen,
}

impl<'a> Readers<'a> {
    pub(super) fn new(handles: &'a mut Handles, last_seen: &'a mut LastSeen) -> Self {
        Self { handles, last_seen }
    }

    /// Adds the versions that a process has seen, and may read first.
    pub(super) fn add_promised(&mut self, versions: &mut Vec<u64>) {
        if !self.handles.values().any(|own| !own.write) {
            self.last_seen.0.clear();
        }
        let fresh = self.handles.values().filter_map(|h| h.reading.fresh);
        versions.extend(fresh.map(|fresh| fresh.version));
        versions.extend(self.last_seen.0.iter().map(|(_, pin)| pin.version));
    }

    /// Whether any reader is going to read another version than the current one.
    pub(super) fn has_outdated(&self, current: u64) -> bool {
        self.handles.values().any(|own| own.is_outdated(current))
    }

    pub(super) fn has_outdated_fresh(&self, current: u64) -> bool {
        let mut fresh = self.handles.values().filter_map(|h| h.reading.fresh);
        fresh.any(|fresh| fresh.version != current)
    }

    /// Whether the process of a thread has a handle that it has not read from yet, so that its
    /// first read gets the version it has seen.
    pub(super) fn may_read_first(&self, thread: u32, node: &Place) -> bool {
        let mut fresh = self
            .handles
            .values()
            .filter(|own| own.reading.fresh.is_some());
        let Some(group) = process::thread_group(thread) else {
            return fresh.any(|own| own.reading.thread == thread);
        };
        fresh.any(|own| same_process(own.reading.thread, Some(group)))
            // Another process may have passed the descriptor to it.
            || descriptors::has_one(For::Reading, group, node.id, node.device)
    }

    /// The version for the first read of a handle opened at `fresh`, if others were published
    /// since: the one that its process saw last.
    pub(super) fn seen_since(&self, fh: FileHandle, fresh: Shown, thread: u32) -> Option<Pin> {
        let opener = self.handles.get(&fh).map(|own| own.reading.thread);
        let seen = self
            .last_seen
            .by_process_of(thread, opener == Some(thread))?;
        (seen.version > fresh.version).then(|| seen.clone())
    }

    /// Notes a read by a thread: versions that it saw before do not count for later reads, except
    /// through a handle that it has not read from yet. The kernel may have read ahead through
    /// another.
    pub(super) fn forget_seen(&mut self, fh: FileHandle, thread: u32) {
        if thread == 0 || self.last_seen.0.is_empty() {
            return;
        }
        let is_fresh =
            |own: &HandleState| own.reading.thread == thread && own.reading.fresh.is_some();
        let mut others = self.handles.iter().filter(|(other, _)| **other != fh);
        if !others.any(|(_, own)| is_fresh(own)) {
            self.last_seen.0.retain(|(known, _)| *known != thread);
        }
    }

    /// The length of the version that a handle, or a thread's handle, reads or is going to read.
    pub(super) fn length_read_by(&self, fh: Option<FileHandle>, thread: u32) -> Option<u64> {
        let own = match fh {
            Some(fh) => self.handles.get(&fh),
            None => self
                .handles
                .values()
                .find(|own| own.reading.thread == thread),
        }?;
        let fresh = own.reading.fresh.map(|fresh| fresh.length);
        fresh.or(own.pin.as_ref().map(|pin| pin.length))
    }

    /// The version that a thread has seen since its last read, if it is not older than its pinned
    /// one.
    pub(super) fn seen_again(&self, pinned: Shown, thread: u32) -> Option<Pin> {
        let mut seen = self.last_seen.0.iter();
        let (_, seen) = seen.find(|(known, _)| *known == thread && thread != 0)?;
        (seen.version >= pinned.version).then(|| seen.clone())
    }

    /// Whether a thread has a handle that it may read again from the start.
    pub(super) fn may_read_again(&self, thread: u32) -> bool {
        let mut handles = self.handles.values().filter(|own| !own.write);
        thread != 0 && handles.any(|own| own.reading.thread == thread && own.pin.is_some())
    }

    /// Whether a handle's next read gets its pinned version, not the current one.
    fn reads_on(own: &HandleState, file: &FileBody) -> bool {
        let is_behind = |pin: &Pin| pin.version < file.replaced;
        !own.write && own.is_draining() && own.pin.as_ref().is_some_and(is_behind)
    }

    /// Whether a handle must move to the current version when a program asks for its end.
    pub(super) fn moves_at_end(&self, fh: FileHandle, file: &FileBody) -> bool {
        self.handles.get(&fh).is_some_and(|own| {
            let pinned = own.pin.as_ref().map(|pin| pin.version);
            !own.write && !Self::reads_on(own, file) && pinned != Some(file.version)
        })
    }

    /// The length of the version that a handle without a draft is going to read: the one it is in
    /// the middle of, or the current one, to which `end` pins it.
    pub(super) fn seek_in_version(&mut self, fh: FileHandle, file: &FileBody, end: Pin) -> u64 {
        let moves = self.moves_at_end(fh, file);
        let Some(own) = self.handles.get_mut(&fh).filter(|own| !own.write) else {
            return file.size;
        };
        let is_pinned = own.pin.is_some();
        if let Some(fresh) = &mut own.reading.fresh {
            (fresh.version, fresh.length) = (end.version, end.length);
        } else {
            own.reading.held = true;
        }
        if moves && is_pinned {
            own.pin_to(Some(end));
            own.reading.read_to = 0;
        }
        let fresh = own.reading.fresh.map(|fresh| fresh.length);
        let pinned = own.pin.as_ref().map(|pin| pin.length);
        fresh.or(pinned).unwrap_or(file.size)
    }

    /// The length of the version that a process is in the middle of reading, if that was replaced
    /// and the process has no other handle: it may go on, and a read at the start must not get
    /// another version.
    pub(super) fn drained_by(&mut self, thread: u32, file: &FileBody) -> Option<u64> {
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
