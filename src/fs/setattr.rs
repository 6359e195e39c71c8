//! Changes of attributes. They take effect at once, except for the length of an open file, which is
//! that of a draft.

use std::sync::Arc;
use std::time::Duration;

use crate::vault::{AttributeChange, Kind, Node, Ticket};

use super::commits::Commits;
use super::failures::Failures;
use super::getattr::Attributes;
use super::nodes::Nodes;
use super::set_attributes::SetAttributes;
use super::set_id::{SetIdBits, without_set_id};
use super::table::Table;
use super::truncation::Truncation;
use super::watchers::Watchers;
use super::{Attr, Caller, Done, Errno, FileHandle};

/// Makes the kernel ask for the attributes again before it uses them. It takes the length in the
/// answer to a change as the file's, whatever it has learnt meanwhile, while it drops stale answers
/// to mere queries. And a publication may end while the answer is made, like that of an emptied
/// file after its last close.
fn not_remembered(done: Done<Attr>) -> Done<Attr> {
    Box::new(move |mut answer| {
        if let Ok(attr) = &mut answer
            && attr.kind == Kind::File
        {
            attr.ttl = Duration::ZERO;
        }
        done(answer);
    })
}

/// The changes of attributes in a mount.
pub(super) struct AttributeChanges {
    pub(super) is_read_only: bool,
    pub(super) failures: Arc<Failures>,
    pub(super) table: Arc<Table>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) commits: Arc<Commits>,
    pub(super) attributes: Arc<Attributes>,
    pub(super) watchers: Arc<Watchers>,
    pub(super) set_id: Arc<SetIdBits>,
    pub(super) truncation: Arc<Truncation>,
}

impl AttributeChanges {
    /// Changes attributes. A change of length edits a draft, or publishes at once if there is no
    /// handle.
    pub(super) fn setattr(
        self: &Arc<Self>,
        caller: Caller,
        ino: u64,
        fh: Option<FileHandle>,
        set: SetAttributes,
        done: Done<Attr>,
    ) {
        let done = not_remembered(done);
        if let Some(answer) = self.watchers.answer_to_touch(ino, fh, &set) {
            return done(answer);
        }
        if self.is_read_only {
            return done(Err(Errno(libc::EROFS)));
        }
        if let Err(error) = self.commits.queue() {
            return done(Err(error));
        }
        let Some(size) = set.size else {
            return self.set_plain(caller, ino, set, done);
        };
        let changes = Arc::clone(self);
        let then: Done<()> = Box::new(move |resized| match resized {
            Ok(()) => {
                let own = Arc::clone(&changes);
                // The kernel takes this length as the file's.
                let done: Done<Attr> =
                    Box::new(move |attr| match (attr, own.nodes.stored_or_held(ino)) {
                        (Ok(_), Ok(node)) => done(Ok(own.attributes.attr_through(fh, &node))),
                        (attr, _) => done(attr),
                    });
                changes.set_plain(caller, ino, SetAttributes { size: None, ..set }, done);
            }
            Err(error) => done(Err(error)),
        });
        let then = self.set_id.cleared_by(caller, ino, then);
        match fh {
            Some(fh) => self.truncation.by_handle(fh, size, then),
            None => self.truncation.by_path(caller.uid, ino, size, then),
        }
    }

    /// Changes all attributes except the length.
    fn set_plain(self: &Arc<Self>, caller: Caller, ino: u64, set: SetAttributes, done: Done<Attr>) {
        let node = match self.nodes.stored_or_held(ino) {
            Ok(node) => node,
            Err(error) => return done(Err(error)),
        };
        let mut change = AttributeChange {
            mode: set.mode.or_else(|| mode_after_chown(&node, caller, &set)),
            uid: set.uid,
            gid: set.gid,
            accessed: set.accessed,
            modified: set.modified,
        };
        if let (Some(modified), Some(open)) = (set.modified, self.table.node(ino)) {
            let moves = open
                .lock()
                .set_modified(caller.pid, &self.attributes.place(ino), modified);
            let is_published = node.file().is_ok_and(|file| file.version > 0);
            if moves && is_published {
                // Otherwise the time would also apply to the content published so far.
                change.modified = None;
            }
        }
        if change == AttributeChange::default() {
            return self.attributes.attr_when_stored(ino, done);
        }
        let queue = match self.commits.queue() {
            Ok(queue) => queue,
            Err(error) => return done(Err(error)),
        };
        let changes = Arc::clone(self);
        queue.submit(
            Ticket::quick(caller.whose()).on(ino),
            move |tx| tx.set_attributes(ino, &change),
            move |outcome| match changes.failures.to_errno(outcome) {
                Ok(()) => changes.attributes.attr_when_stored(ino, done),
                Err(error) => done(Err(error)),
            },
        );
    }
}

/// chown(2) clears set-id bits for every caller, except on directories.
fn mode_after_chown(node: &Node, caller: Caller, set: &SetAttributes) -> Option<u32> {
    if node.kind == Kind::Directory || (set.uid.is_none() && set.gid.is_none()) {
        return None;
    }
    let mode = node.attributes.mode;
    // Without execute permission the set-group-id bit marks mandatory locking, and stays for
    // privileged callers.
    let kept = without_set_id(mode) & if caller.uid == 0 { !0 } else { !0o2000 };
    (kept != mode).then_some(kept)
}
