//! Attributes, extended attributes and the figures of the whole file system.

use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::vault::{AttributeChange, Body, Kind, Node, ROOT, Timestamp};

use super::open::without_set_id;
use super::queue::{Ticket, Whose};
use super::write::Base;
use super::{Attr, Caller, Done, Errno, FileHandle, FileSystem, to_errno};

/// Names of extended attributes that programs may set.
pub(super) const USER: &[u8] = b"user.";
/// Names of those that are computed.
const VIRTUAL: &[u8] = b"user.secretfs.";

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

/// File system figures, in units of 512 bytes where they are sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Size of a block in bytes.
    pub block: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks for users.
    pub available: u64,
    /// Nodes in all.
    pub files: u64,
    /// Nodes that can still be made.
    pub files_free: u64,
}

/// Bytes that must be free where the vault lies for a file to be opened for replacing: enough for
/// the transaction of a small secret.
const ROOM: u64 = 64 * 1024;

/// Bytes that must be free beside a content for it to be stored in pieces.
const ROOM_BESIDES: u64 = 8 << 20;

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
    /// Fails on a full disk. Publishing would fail, too, but a shell that has redirected its output
    /// does not look at what closing says.
    pub(super) fn must_have_room(&self) -> Result<(), Errno> {
        let place = self.vault.path();
        let room = nix::sys::statvfs::statvfs(place).map(|below| {
            below
                .blocks_available()
                .saturating_mul(below.fragment_size())
        });
        // What cannot be told is told by the transaction.
        if room.is_err() || room.is_ok_and(|room| room >= ROOM) {
            return Ok(());
        }
        // Root may use what others may not, and only trying tells how much of that there is.
        let scratch = std::fs::OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .open(place);
        let Ok(scratch) = scratch else {
            return Ok(());
        };
        let tried = nix::fcntl::posix_fallocate(&scratch, 0, ROOM as i64);
        match tried {
            Err(nix::errno::Errno::ENOSPC | nix::errno::Errno::EDQUOT) => Err(Errno(libc::ENOSPC)),
            _ => Ok(()),
        }
    }

    /// Whether there is room for a content of so many bytes beside those that are being stored, in the
    /// log and in the database, and some besides: what is stored by and by does not take the last of the
    /// disk from others.
    pub(super) fn has_room_for(&self, bytes: u64) -> bool {
        let bytes = bytes.saturating_add(self.counters.in_pieces.load(Ordering::Relaxed));
        let needed = bytes.saturating_mul(2).saturating_add(ROOM_BESIDES);
        nix::sys::statvfs::statvfs(self.vault.path()).is_ok_and(|below| {
            let free = below.blocks_available();
            free.saturating_mul(below.fragment_size()) >= needed
        })
    }

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
        if let Some(answer) = self.answer_to_touch(ino, fh, &set) {
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
        let then = self.without_set_id_bits(caller, ino, then);
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
                fs.release(fh);
                return fs.truncate_path(user, ino, size, done);
            };
            let close = Arc::clone(&fs);
            let done: Done<()> = Box::new(move |outcome| {
                close.release(fh);
                done(outcome);
            });
            match edited {
                Ok(()) => fs.publish_shared(&handle.node, Whose::of(user), done),
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

    // --- extended attributes --------------------------------------------------------------------

    /// The value of an extended attribute.
    pub fn get_xattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>, Errno> {
        // ENODATA would be the truth as well, but then `ls -l` asks for two of them of every file.
        if !name.starts_with(USER) {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        let node = self.nodes.node_or_opened(ino)?;
        if let Some(name) = name.strip_prefix(VIRTUAL) {
            return virtual_xattr(&node, name).ok_or(Errno(libc::ENODATA));
        }
        let xattrs = &node.attributes.xattrs;
        let place = xattrs.binary_search_by(|(n, _)| n[..].cmp(name));
        place
            .map(|at| xattrs[at].1.clone())
            .map_err(|_| Errno(libc::ENODATA))
    }

    /// The names of all that programs have set, each ended by a NUL. The computed ones are not
    /// among them, or copying a file would fail to set them.
    pub fn list_xattrs(&self, ino: u64) -> Result<Vec<u8>, Errno> {
        let node = self.nodes.node_or_opened(ino)?;
        let names = node.attributes.xattrs.iter();
        Ok(names
            .flat_map(|(name, _)| name.iter().copied().chain([0]))
            .collect())
    }

    /// Sets an extended attribute.
    pub fn set_xattr(
        self: &Arc<Self>,
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
        self.change_xattr(ticket, &name.clone(), done, move |tx| {
            tx.set_xattr(ino, &name, &value, must)
        });
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(self: &Arc<Self>, caller: Caller, ino: u64, name: &[u8], done: Done<()>) {
        let (own, ticket) = (name.to_vec(), Ticket::quick(caller.whose()));
        self.change_xattr(ticket, name, done, move |tx| {
            tx.remove_xattr(ino, &own)
        });
    }

    fn change_xattr(
        &self,
        ticket: Ticket,
        name: &[u8],
        done: Done<()>,
        job: impl FnMut(&mut crate::vault::Tx<'_>) -> Result<(), crate::vault::VaultError>
        + Send
        + 'static,
    ) {
        let allowed = if self.vault.is_read_only() {
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
                queue.submit(ticket, job, move |outcome| done(to_errno(outcome)));
            }
            Err(error) => done(Err(error)),
        }
    }

    /// Figures of the file system below the vault: that is where secrets take up room.
    pub fn figures(&self) -> Result<Figures, Errno> {
        let below = nix::sys::statvfs::statvfs(self.vault.path()).map_err(|e| Errno(e as i32))?;
        let state = self.vault.state();
        Ok(Figures {
            block: u32::try_from(below.fragment_size()).unwrap_or(4096),
            blocks: below.blocks(),
            free: below.blocks_free(),
            available: below.blocks_available(),
            files: state.nodes.saturating_add(below.files_free()),
            files_free: below.files_free(),
        })
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

fn virtual_xattr(node: &Node, name: &[u8]) -> Option<Vec<u8>> {
    let text = match (name, &node.attributes.body) {
        (b"version", Body::File(file)) => file.version.to_string(),
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
