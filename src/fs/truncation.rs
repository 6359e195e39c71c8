//! Truncates and extends files, through a handle or by path.

use std::sync::Arc;

use crate::vault::Whose;

use super::closing::Closing;
use super::drafts::{Base, Drafts};
use super::errno::file_of;
use super::nodes::Nodes;
use super::publication_wait::PublicationWait;
use super::publish::Publisher;
use super::table::Table;
use super::{Access, Done, Errno, FileHandle};

/// Truncates and extends files.
pub(super) struct Truncation {
    pub(super) table: Arc<Table>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) drafts: Arc<Drafts>,
    pub(super) publisher: Arc<Publisher>,
    pub(super) closing: Arc<Closing>,
    pub(super) publications: Arc<PublicationWait>,
}

impl Truncation {
    /// ftruncate(2): edits the draft of the handle.
    pub(super) fn by_handle(self: &Arc<Self>, fh: FileHandle, size: u64, done: Done<()>) {
        let handle = match self.table.get(fh) {
            Ok(handle) if handle.access.write => handle,
            Ok(_) => return done(Err(Errno(libc::EINVAL))),
            Err(error) => return done(Err(error)),
        };
        match self
            .drafts
            .edit(fh, &handle, Base::for_size(size), |draft| {
                draft.cut_to(size)
            }) {
            Some(outcome) => done(outcome),
            None => {
                let truncation = Arc::clone(self);
                let again = move || truncation.by_handle(fh, size, done);
                self.publications.when_stored(handle.node.id, again);
            }
        }
    }

    /// truncate(2): there is no handle whose close would publish, so it publishes at once.
    pub(super) fn by_path(self: &Arc<Self>, user: u32, ino: u64, size: u64, done: Done<()>) {
        let truncation = Arc::clone(self);
        self.publications.when_stored(ino, move || {
            // A temporary handle keeps the node in the table while its draft is published.
            let access = Access {
                read: false,
                write: true,
                append: false,
            };
            let opened = truncation.table.open(ino, access, None, user);
            let (fh, handle) = match opened {
                Ok(opened) => opened,
                Err(error) => return done(Err(error)),
            };
            let is_file = truncation
                .nodes
                .stored_or_held(ino)
                .and_then(|node| file_of(&node).map(drop));
            let edited = match is_file {
                Ok(()) => truncation
                    .drafts
                    .edit(fh, &handle, Base::for_size(size), |draft| {
                        draft.cut_to(size)
                    }),
                Err(error) => Some(Err(error)),
            };
            let Some(edited) = edited else {
                // A new publication has begun since.
                truncation.closing.release(fh);
                return truncation.by_path(user, ino, size, done);
            };
            let closing = Arc::clone(&truncation.closing);
            let done: Done<()> = Box::new(move |outcome| {
                closing.release(fh);
                done(outcome);
            });
            match edited {
                Ok(()) => truncation
                    .publisher
                    .publish_shared(&handle.node, Whose::of(user), done),
                Err(error) => done(Err(error)),
            }
        });
    }
}
