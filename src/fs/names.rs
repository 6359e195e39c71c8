//! Names: look-up, creation, links, renames and removal.

use std::sync::Arc;

use crate::store::NodeId;
use crate::vault::{Kind, NewNode, NodeBody, RenameMode, Ticket, Vault};

use super::beside::Beside;
use super::commits::Commits;
use super::errno::directory_of;
use super::failures::Failures;
use super::getattr::Attributes;
use super::nodes::Nodes;
use super::reaping::Reaping;
use super::table::Table;
use super::{Attr, Caller, Done, Errno};

/// Operations on names.
pub(super) struct Names {
    pub(super) vault: Arc<Vault>,
    pub(super) failures: Arc<Failures>,
    pub(super) table: Arc<Table>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) attributes: Arc<Attributes>,
    pub(super) commits: Arc<Commits>,
    pub(super) reaping: Arc<Reaping>,
    pub(super) beside: Arc<Beside>,
}

impl Names {
    /// Looks up a name for a thread of a user.
    pub(super) fn lookup_for(
        self: &Arc<Self>,
        caller: Caller,
        parent: u64,
        name: &[u8],
        done: Done<Attr>,
    ) {
        let is_number = matches!(name, b"." | b"..");
        match self.vault.is_read_only() && !is_number {
            true => done(self.beside.lookup(caller, parent, name)),
            false => self.lookup(parent, name, done),
        }
    }

    /// Looks up a name.
    pub(super) fn lookup(self: &Arc<Self>, parent: u64, name: &[u8], done: Done<Attr>) {
        match name {
            b"." => return self.lookup_number(parent, done),
            b".." => return self.lookup_parent(parent, done),
            _ => {}
        }
        match self.vault.lookup(parent, name) {
            // A read-only mount publishes nothing, and a second look-up could find the node gone.
            Ok(node) if self.vault.is_read_only() => done(Ok(self.attributes.attr_of(&node))),
            Ok(node) => {
                let (names, name) = (Arc::clone(self), name.to_vec());
                let then: Done<Attr> = Box::new(move |attr| match attr {
                    // The file was replaced: the name names another node now, or none.
                    Err(Errno(libc::ENOENT)) => names.lookup(parent, &name, done),
                    attr => done(attr),
                });
                self.attributes.attr_when_stored(node.id, then);
            }
            // Reading the directory again would only find the damage again.
            Err(error) if error.is_damage() => done(Err(self.failures.errno(&error))),
            // The directory itself may be gone.
            Err(error) => done(Err(match self.nodes.stored_or_held(parent) {
                Err(stale @ Errno(libc::ESTALE)) => stale,
                _ => self.failures.errno(&error),
            })),
        }
    }

    /// Finds a node by a number that a program has kept (`open_by_handle_at`, NFS), after the
    /// kernel has forgotten it. A node without a name counts as gone.
    fn lookup_number(self: &Arc<Self>, id: NodeId, done: Done<Attr>) {
        match self.nodes.stored(id) {
            Ok(node) if node.attributes.links > 0 && node.kind != Kind::System => {
                self.attributes.attr_when_stored(id, done);
            }
            Ok(_) | Err(Errno(libc::ESTALE)) => done(Err(Errno(libc::ENOENT))),
            Err(error) => done(Err(error)),
        }
    }

    /// Finds the parent of a directory, for the same programs.
    fn lookup_parent(self: &Arc<Self>, id: NodeId, done: Done<Attr>) {
        match self
            .nodes
            .stored(id)
            .and_then(|node| Ok(directory_of(&node)?.parent))
        {
            Ok(parent) => self.lookup_number(parent, done),
            Err(Errno(libc::ESTALE)) => done(Err(Errno(libc::ENOENT))),
            Err(error) => done(Err(error)),
        }
    }

    /// Creates a node of any kind.
    pub(super) fn make(
        self: &Arc<Self>,
        caller: Caller,
        parent: u64,
        name: &[u8],
        new: NewNode,
        done: impl FnOnce(Result<Attr, Errno>) + Send + 'static,
    ) {
        let queue = match self.commits.queue_of_names() {
            Ok(queue) => queue,
            Err(error) => return done(Err(error)),
        };
        let name = name.to_vec();
        let names = Arc::clone(self);
        queue.submit(
            Ticket::quick(caller.whose()),
            move |tx| tx.create(parent, &name, &new),
            move |made| {
                let attr = names.failures.to_errno(made);
                let attr = attr.and_then(|id| names.nodes.stored_or_held(id));
                done(attr.map(|node| names.attributes.attr_of(&node)));
            },
        );
    }

    /// Gives a node another name.
    pub(super) fn link(
        self: &Arc<Self>,
        caller: Caller,
        ino: u64,
        (parent, name): (u64, &[u8]),
        done: Done<Attr>,
    ) {
        let queue = match self.commits.queue_of_names() {
            Ok(queue) => queue,
            Err(error) => return done(Err(error)),
        };
        let name = name.to_vec();
        let names = Arc::clone(self);
        queue.submit(
            Ticket::quick(caller.whose()),
            move |tx| tx.link(ino, parent, &name),
            move |outcome| {
                let node = names.failures.to_errno(outcome);
                let node = node.and_then(|()| names.nodes.stored_or_held(ino));
                done(node.map(|node| names.attributes.attr_of(&node)));
            },
        );
    }

    /// Removes a name of a node that is not a directory.
    pub(super) fn unlink(
        self: &Arc<Self>,
        caller: Caller,
        parent: u64,
        name: &[u8],
        done: Done<()>,
    ) {
        self.remove(caller, (parent, name), false, done);
    }

    /// Removes an empty directory.
    pub(super) fn rmdir(
        self: &Arc<Self>,
        caller: Caller,
        parent: u64,
        name: &[u8],
        done: Done<()>,
    ) {
        self.remove(caller, (parent, name), true, done);
    }

    fn remove(
        self: &Arc<Self>,
        caller: Caller,
        (parent, name): (u64, &[u8]),
        directory: bool,
        done: Done<()>,
    ) {
        let queue = match self.commits.queue_of_names() {
            Ok(queue) => queue,
            Err(error) => return done(Err(error)),
        };
        let name = name.to_vec();
        let reaper = self.reaping.reaper();
        let names = Arc::clone(self);
        queue.submit(
            Ticket::quick(caller.whose()),
            move |tx| match directory {
                true => tx.rmdir(parent, &name, &reaper),
                false => tx.unlink(parent, &name, &reaper),
            },
            move |removed| {
                if let Ok(node) = &removed {
                    names.reap_if_closed(*node);
                }
                done(names.failures.to_errno(removed.map(drop)));
            },
        );
    }

    /// Reaps a node that was open when its last name was removed, and closed before the commit. A
    /// node that the kernel knows is deleted when the kernel forgets it.
    fn reap_if_closed(&self, node: NodeId) {
        let is_open = self.table.node(node).is_some();
        if !is_open && self.nodes.is_nameless(node) && !self.table.keep_if_known(node) {
            self.reaping.reap(node);
        }
    }

    /// Moves a name.
    pub(super) fn rename(
        self: &Arc<Self>,
        caller: Caller,
        from: (u64, &[u8]),
        to: (u64, &[u8]),
        mode: RenameMode,
        done: Done<()>,
    ) {
        let queue = match self.commits.queue_of_names() {
            Ok(queue) => queue,
            Err(error) => return done(Err(error)),
        };
        let replaced = match mode {
            RenameMode::Replace => self.vault.lookup(to.0, to.1).ok().map(|node| node.id),
            RenameMode::NoReplace | RenameMode::Exchange => None,
        };
        let (from, to) = ((from.0, from.1.to_vec()), (to.0, to.1.to_vec()));
        let reaper = self.reaping.reaper();
        let names = Arc::clone(self);
        queue.submit(
            Ticket::quick(caller.whose()),
            move |tx| tx.rename((from.0, &from.1), (to.0, &to.1), mode, &reaper),
            move |outcome| {
                if let (Ok(()), Some(replaced)) = (&outcome, replaced) {
                    names.reap_if_closed(replaced);
                }
                done(names.failures.to_errno(outcome));
            },
        );
    }

    /// Notes that the kernel gets to know a node; it will report when it forgets it.
    pub(super) fn remember(&self, attr: &Attr) {
        self.table.remember(attr);
        self.attributes.forget_outdated(attr);
    }

    /// Notes that the kernel forgets a node that it got `lookups` times.
    pub(super) fn forget(&self, ino: u64, lookups: u64) {
        if self.table.forget(ino, lookups) {
            self.reaping.reap(ino);
        }
    }

    /// The target of a symbolic link.
    pub(super) fn read_link(&self, ino: u64) -> Result<Vec<u8>, Errno> {
        let node = self.nodes.stored_or_held(ino)?;
        match (&node.attributes.body, node.kind) {
            (NodeBody::Symlink(target), Kind::Symlink) => Ok(target.clone()),
            _ => Err(Errno(libc::EINVAL)),
        }
    }
}
