//! Extended attributes: those that programs set, and the computed ones.

use std::sync::Arc;

use crate::vault::{Node, NodeBody, Ticket, Timestamp, Tx, VaultError};

use super::commits::Commits;
use super::failures::Failures;
use super::nodes::Nodes;
use super::{Caller, Done, Errno};

/// Prefix of extended attributes that programs may set.
pub(super) const USER: &[u8] = b"user.";
/// Prefix of the computed ones.
const VIRTUAL: &[u8] = b"user.secretfs.";

/// Operations on extended attributes.
pub(super) struct Xattrs {
    pub(super) is_read_only: bool,
    pub(super) failures: Arc<Failures>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) commits: Arc<Commits>,
}

impl Xattrs {
    /// The value of an extended attribute.
    pub(super) fn get(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>, Errno> {
        // ENODATA would be true as well, but then `ls -l` asks for two attributes of every file.
        if !name.starts_with(USER) {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        let node = self.nodes.stored_held_or_opened(ino)?;
        if let Some(name) = name.strip_prefix(VIRTUAL) {
            return virtual_xattr(&node, name).ok_or(Errno(libc::ENODATA));
        }
        let xattrs = &node.attributes.xattrs;
        let place = xattrs.binary_search_by(|(n, _)| n[..].cmp(name));
        place
            .map(|at| xattrs[at].1.clone())
            .map_err(|_| Errno(libc::ENODATA))
    }

    /// The names of all attributes that programs have set, each ended by a NUL. The computed ones
    /// are not listed: copying a file would fail to set them.
    pub(super) fn list(&self, ino: u64) -> Result<Vec<u8>, Errno> {
        let node = self.nodes.stored_held_or_opened(ino)?;
        let names = node.attributes.xattrs.iter();
        Ok(names
            .flat_map(|(name, _)| name.iter().copied().chain([0]))
            .collect())
    }

    /// Sets an extended attribute.
    pub(super) fn set(
        &self,
        caller: Caller,
        ino: u64,
        (name, value): (&[u8], &[u8]),
        flags: i32,
        done: Done<()>,
    ) {
        let ticket = Ticket::quick(caller.whose()).with_bytes(value.len() as u64);
        let (name, value) = (name.to_vec(), value.to_vec());
        let must = (
            flags & libc::XATTR_CREATE != 0,
            flags & libc::XATTR_REPLACE != 0,
        );
        self.change(ticket, &name.clone(), done, move |tx| {
            tx.set_xattr(ino, &name, &value, must)
        });
    }

    /// Removes an extended attribute.
    pub(super) fn remove(&self, caller: Caller, ino: u64, name: &[u8], done: Done<()>) {
        let (own, ticket) = (name.to_vec(), Ticket::quick(caller.whose()));
        self.change(ticket, name, done, move |tx| tx.remove_xattr(ino, &own));
    }

    fn change(
        &self,
        ticket: Ticket,
        name: &[u8],
        done: Done<()>,
        job: impl FnMut(&mut Tx<'_>) -> Result<(), VaultError> + Send + 'static,
    ) {
        let allowed = if self.is_read_only {
            Err(Errno(libc::EROFS))
        } else if name.starts_with(VIRTUAL) {
            Err(Errno(libc::EPERM))
        } else if !name.starts_with(USER) || name.len() == USER.len() {
            Err(Errno(libc::EOPNOTSUPP))
        } else if name.len() > 255 {
            Err(Errno(libc::ERANGE))
        } else {
            self.commits.queue()
        };
        match allowed {
            Ok(queue) => {
                let failures = Arc::clone(&self.failures);
                let done = move |outcome| done(failures.to_errno(outcome));
                queue.submit(ticket, job, done);
            }
            Err(error) => done(Err(error)),
        }
    }
}

/// The value of a computed attribute.
fn virtual_xattr(node: &Node, name: &[u8]) -> Option<Vec<u8>> {
    let text = match (name, &node.attributes.body) {
        (b"version", NodeBody::File(file)) => file.version.to_string(),
        (b"generation", _) => node.generation.to_string(),
        (b"modified", _) => {
            let Timestamp {
                seconds,
                nanoseconds,
            } = node.attributes.modified;
            format!("{seconds}.{nanoseconds:09}")
        }
        (_, _) => return None,
    };
    Some(text.into_bytes())
}
