//! Changing attributes: at once, but for the length of what is open, which is that of a draft.

use std::sync::Arc;
use std::time::Duration;

use crate::vault::{AttributeChange, Kind, Node, ROOT, Timestamp};

use super::queue::{Ticket, Whose};
use super::set_id::without_set_id;
use super::write::Base;
use super::{Attr, Caller, Done, Errno, FileHandle, FileSystem, to_errno};

/// What `setattr` is asked to change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttributes {
    /// Permission bits, set-id bits and sticky bit.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub accessed: Option<Timestamp>,
    /// Last change of the content.
    pub modified: Option<Timestamp>,
}

/// The kernel takes the length in the answer to a change for that of the file, whatever it knows by
/// then; of what it has only asked for, it drops what is of before. A publication may end while the answer
/// is made, as that of an emptied file does after its last close, so the kernel is to ask again before it
/// tells anybody.
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

impl FileSystem {
    /// Attributes of a node, or of what a handle sees.
    pub fn getattr(
        self: &Arc<Self>,
        caller: Caller,
        ino: u64,
        fh: Option<FileHandle>,
        done: Done<Attr>,
    ) {
        match ino {
            ROOT => self.attributes.settled_attr(ino, done),
            _ => self.attributes.told_attr(caller, ino, fh, done),
        }
    }

    /// Changes attributes; a change of length edits a draft, or publishes when there is no handle.
    pub fn setattr(
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
        if self.vault.is_read_only() {
            return done(Err(Errno(libc::EROFS)));
        }
        if let Err(error) = self.commits.queue() {
            return done(Err(error));
        }
        let Some(size) = set.size else {
            return self.set_plain(caller, ino, set, done);
        };
        let fs = Arc::clone(self);
        let then: Done<()> = Box::new(move |resized| match resized {
            Ok(()) => {
                let told = Arc::clone(&fs);
                // The kernel takes what this tells for the length of the file.
                let done: Done<Attr> = Box::new(move |attr| match (attr, told.nodes.node(ino)) {
                    (Ok(_), Ok(node)) => done(Ok(told.attributes.attr_through(fh, &node))),
                    (attr, _) => done(attr),
                });
                fs.set_plain(caller, ino, SetAttributes { size: None, ..set }, done);
            }
            Err(error) => done(Err(error)),
        });
        let then = self.set_id.cleared_by(caller, ino, then);
        match fh {
            Some(fh) => self.truncate_handle(fh, size, then),
            None => self.truncate_path(caller.uid, ino, size, then),
        }
    }

    fn truncate_handle(self: &Arc<Self>, fh: FileHandle, size: u64, done: Done<()>) {
        let handle = match self.table.get(fh) {
            Ok(handle) if handle.access.write => handle,
            Ok(_) => return done(Err(Errno(libc::EINVAL))),
            Err(error) => return done(Err(error)),
        };
        match self.with_draft(fh, &handle, Base::for_size(size), |draft| {
            draft.cut_to(size)
        }) {
            Some(outcome) => done(outcome),
            None => {
                let fs = Arc::clone(self);
                let again = move || fs.truncate_handle(fh, size, done);
                self.settling.when_settled(handle.node.id, again);
            }
        }
    }

    /// truncate(2): there is no handle whose closing would publish, so it happens at once.
    pub(super) fn truncate_path(self: &Arc<Self>, user: u32, ino: u64, size: u64, done: Done<()>) {
        let fs = Arc::clone(self);
        self.settling.when_settled(ino, move || {
            // A handle keeps the node in the table while its draft is being published.
            let access = super::Access {
                read: false,
                write: true,
                append: false,
            };
            let opened = fs.table.open(ino, access, None, user);
            let (fh, handle) = match opened {
                Ok(opened) => opened,
                Err(error) => return done(Err(error)),
            };
            let is_file = fs.nodes.node(ino).and_then(|node| Ok(node.file().map(drop)?));
            let edited = match is_file {
                Ok(()) => fs.with_draft(fh, &handle, Base::for_size(size), |draft| {
                    draft.cut_to(size)
                }),
                Err(error) => Some(Err(error)),
            };
            let Some(edited) = edited else {
                // Somebody has begun to publish since.
                fs.closing.release(fh);
                return fs.truncate_path(user, ino, size, done);
            };
            let close = Arc::clone(&fs);
            let done: Done<()> = Box::new(move |outcome| {
                close.closing.release(fh);
                done(outcome);
            });
            match edited {
                Ok(()) => fs.publisher.publish_shared(&handle.node, Whose::of(user), done),
                Err(error) => done(Err(error)),
            }
        });
    }

    /// Everything but the length.
    fn set_plain(self: &Arc<Self>, caller: Caller, ino: u64, set: SetAttributes, done: Done<Attr>) {
        let node = match self.nodes.node(ino) {
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
                // Or it would be told of what is there until then.
                change.modified = None;
            }
        }
        if change == AttributeChange::default() {
            return self.attributes.settled_attr(ino, done);
        }
        let queue = match self.commits.queue() {
            Ok(queue) => queue,
            Err(error) => return done(Err(error)),
        };
        let fs = Arc::clone(self);
        queue.submit(
            Ticket::quick(caller.whose()).on(ino),
            move |tx| tx.set_attributes(ino, &change),
            move |outcome| match to_errno(outcome) {
                Ok(()) => fs.attributes.settled_attr(ino, done),
                Err(error) => done(Err(error)),
            },
        );
    }
}

/// chown(2) takes away set-id bits, from everything but directories, whoever calls it.
fn mode_after_chown(node: &Node, caller: Caller, set: &SetAttributes) -> Option<u32> {
    if node.kind == Kind::Directory || (set.uid.is_none() && set.gid.is_none()) {
        return None;
    }
    let mode = node.attributes.mode;
    // Without execute permission the bit marks mandatory locking, which only the privileged keep.
    let kept = without_set_id(mode) & if caller.uid == 0 { !0 } else { !0o2000 };
    (kept != mode).then_some(kept)
}
