//! Reading beside a writer, in another process, who removes files without knowing what is about to be
//! opened here.
//!
//! The kernel looks a name up, and then asks for the node by its number. When the node has gone in
//! between it is told `ESTALE`, looks the whole path up anew, and does so once: if it met the same
//! again, the program would be told. So what a thread looks up after it was told `ESTALE` is held for
//! it, the content from the snapshot that the name was found in, and what the thread asks for next is
//! served from there, as other file systems serve a file that was removed just after it was looked up.
//! That ends when the thread has opened something, or after a while.

use std::sync::Arc;

use crate::store::NodeId;
use crate::vault::{Node, ROOT, Vault, VaultError};

use super::askers::{Askers, Held};
use super::budget::Budget;
use super::failures::Failures;
use super::getattr::Attributes;
use super::loaded::pin_of;
use super::loading::Loader;
use super::nodes::Nodes;
use super::opened::Opened;
use super::table::Table;
use super::{Access, Attr, Caller, Errno};

/// See the module.
pub(super) struct Beside {
    pub(super) vault: Arc<Vault>,
    pub(super) failures: Arc<Failures>,
    pub(super) table: Arc<Table>,
    pub(super) askers: Arc<Askers>,
    pub(super) budget: Arc<Budget>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) loader: Arc<Loader>,
    pub(super) attributes: Arc<Attributes>,
}

impl Beside {
    /// Finds a name for a thread that may have been told `ESTALE` before.
    pub(super) fn lookup(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &[u8],
    ) -> Result<Attr, Errno> {
        let thread = caller.pid;
        let asking = self.askers.is_asking(thread);
        let found = match asking {
            true => self.lookup_and_hold(caller, parent, name),
            false => self.vault.lookup(parent, name),
        };
        match found {
            Ok(node) => Ok(self.attributes.attr_of(&node)),
            // What is absent may be the directory itself.
            Err(error) => match self.nodes.stored(parent) {
                Err(stale @ Errno(libc::ESTALE)) if !self.askers.holds(thread, parent) => {
                    Err(stale)
                }
                _ => {
                    if asking {
                        self.askers.looked_up(thread, None);
                    }
                    Err(self.failures.errno(&error))
                }
            },
        }
    }

    fn lookup_and_hold(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &[u8],
    ) -> Result<Arc<Node>, VaultError> {
        let mut room = Err(Errno(libc::ENOMEM));
        let (node, content) = self.vault.lookup_with_content(parent, name, &mut |file| {
            room = Err(Errno(libc::ENOMEM));
            room = self.loader.room_for(caller.uid, file.size);
            room.as_ref().map_or(0, |_| file.size)
        })?;
        let content = match content {
            Ok(content) => pin_of(&node, content, room),
            // It is no file, perhaps; else opening it tells.
            Err(error) => Err(self.failures.errno(&error)),
        };
        let xattrs = node.xattr_bytes() as u64;
        let Ok(xattrs) = self.budget.of(caller.uid).reserve(xattrs, xattrs) else {
            self.askers.looked_up(caller.pid, None);
            return Ok(node);
        };
        let held = Held {
            node: Arc::new(node.without_name()),
            content,
            user: caller.uid,
            _xattrs: Arc::new(xattrs),
        };
        self.askers.looked_up(caller.pid, Some(held));
        Ok(node)
    }

    /// What came of opening a file for `thread`: what was there when it looked the file up is opened,
    /// if it has gone since.
    pub(super) fn opened(
        &self,
        caller: Caller,
        ino: NodeId,
        access: Access,
        opened: Result<Opened, Errno>,
    ) -> Result<Opened, Errno> {
        let opened = match opened {
            Err(Errno(libc::ESTALE)) => self.open_held(caller, ino, access),
            opened => opened,
        };
        if opened.is_ok() {
            self.askers.satisfied(caller.pid);
        }
        opened
    }

    fn open_held(&self, caller: Caller, ino: NodeId, access: Access) -> Result<Opened, Errno> {
        let held = self.askers.file(caller.pid, ino);
        let held = held.ok_or(Errno(libc::ESTALE))?;
        let pin = held.content?;
        let (fh, handle) = self.table.open(ino, access, None, caller.uid)?;
        self.loader.settle(fh, &handle, caller.pid, held.node, pin);
        Ok(Opened { fh, flushes: false })
    }

    /// What `thread` is told when it has asked, beside a writer, for a node that is gone.
    pub(super) fn gone_for(&self, thread: u32, ino: NodeId, error: Errno) -> Errno {
        match error {
            // No writer removes the top directory.
            Errno(libc::ESTALE) if ino != ROOT => self.askers.missed(thread, ino),
            error => error,
        }
    }
}
