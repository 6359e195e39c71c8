//! Reading beside a writer in another process, which removes files without knowing which are about
//! to be opened here.
//!
//! The kernel looks up a name, and then asks for the node by number. If the node is gone by then,
//! the kernel gets `ESTALE` and looks up the whole path again, but only once: a second `ESTALE`
//! would reach the program. So after an `ESTALE`, the nodes that the thread looks up are held for
//! it, with the content from the snapshot of the look-up. The thread's next requests are served
//! from there, as other file systems serve a file that is removed just after its look-up. This ends
//! when the thread has opened something, or after some time.

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

/// Look-ups and opens beside a writer, as the module describes.
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
    /// Looks up a name for a thread that may have got `ESTALE` before.
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
            // Reading the directory again would only find the damage again.
            Err(error) if error.is_damage() => {
                if asking {
                    self.askers.looked_up(thread, None);
                }
                Err(self.failures.errno(&error))
            }
            // The directory itself may be gone.
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
            // Perhaps it is not a file; otherwise opening it reports the error.
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

    /// Completes an open for `thread`: if the file has gone since its look-up, the held content is
    /// opened.
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
        self.loader.pin(fh, &handle, caller.pid, held.node, pin);
        Ok(Opened { fh, flushes: false })
    }

    /// The errno for `thread`, which has asked for a removed node beside a writer.
    pub(super) fn gone_for(&self, thread: u32, ino: NodeId, error: Errno) -> Errno {
        match error {
            // No writer removes the top directory.
            Errno(libc::ESTALE) if ino != ROOT => self.askers.missed(thread, ino),
            error => error,
        }
    }
}
