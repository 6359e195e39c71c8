//! Replies to the kernel.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use fuser::{
    INodeNo, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};

use super::super::directory_entry::DirectoryEntry;
use super::super::entry::FrontDoor;
use super::super::opened::Opened;
use super::super::room::Figures;
use super::super::{Attr, Done, Errno, ReadDone};
use super::convert::{GENERATION, file_attr, kind, open_flags};
use crate::vault::MAX_NAME;

/// A request that names a node by number. If the node is gone, the name that led to it is stale:
/// for ESTALE the kernel looks the name up again, while ENOENT would reach the program.
pub(super) struct ByNumber {
    /// Set beside a writer, where the errno depends on the thread's earlier answers.
    pub(super) beside_writer: Option<Arc<FrontDoor>>,
    pub(super) thread: u32,
    pub(super) ino: u64,
}

impl ByNumber {
    pub(super) fn errno(&self, error: Errno) -> fuser::Errno {
        match (error, &self.beside_writer) {
            (error, Some(door)) => door.gone_for(self.thread, self.ino, error).into(),
            (Errno(libc::ENOENT), None) => fuser::Errno::ESTALE,
            (error, None) => error.into(),
        }
    }
}

/// Answers with a node that the kernel knows from now on.
pub(super) fn entry(door: &Arc<FrontDoor>, reply: ReplyEntry) -> Done<Attr> {
    let door = Arc::clone(door);
    Box::new(move |result| match result {
        Ok(attr) => {
            door.remember(&attr);
            reply.entry(&attr.ttl, &file_attr(&attr), GENERATION);
        }
        Err(error) => reply.error(error.into()),
    })
}

/// The same for a name in the directory of `asked`.
pub(super) fn named_entry(door: &Arc<FrontDoor>, asked: ByNumber, reply: ReplyEntry) -> Done<Attr> {
    let door = Arc::clone(door);
    Box::new(move |found| match found {
        // The directory itself is gone.
        Err(error @ Errno(libc::ESTALE)) => reply.error(asked.errno(error)),
        found => entry(&door, reply)(found),
    })
}

pub(super) fn attributes(asked: ByNumber, reply: ReplyAttr) -> Done<Attr> {
    Box::new(move |result| match result {
        Ok(attr) => reply.attr(&attr.ttl, &file_attr(&attr)),
        Err(error) => reply.error(asked.errno(error)),
    })
}

pub(super) fn empty(reply: ReplyEmpty) -> Done<()> {
    Box::new(move |result| match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.into()),
    })
}

pub(super) fn opened(asked: ByNumber, reply: ReplyOpen) -> Done<Opened> {
    Box::new(move |opened| match opened {
        Ok(opened) => reply.opened(fuser::FileHandle(opened.fh), open_flags(opened.flushes)),
        Err(error) => reply.error(asked.errno(error)),
    })
}

pub(super) fn created(door: &Arc<FrontDoor>, reply: ReplyCreate) -> Done<(Attr, Opened)> {
    let door = Arc::clone(door);
    Box::new(move |created| match created {
        Ok((attr, opened)) => {
            door.remember(&attr);
            reply.created(
                &attr.ttl,
                &file_attr(&attr),
                GENERATION,
                fuser::FileHandle(opened.fh),
                open_flags(opened.flushes),
            );
        }
        Err(error) => reply.error(error.into()),
    })
}

pub(super) fn bytes(reply: ReplyData) -> ReadDone {
    Box::new(move |read| match read {
        Ok(bytes) => reply.data(bytes),
        Err(error) => reply.error(error.into()),
    })
}

pub(super) fn written(reply: ReplyWrite) -> Done<u32> {
    Box::new(move |written| match written {
        Ok(count) => reply.written(count),
        Err(error) => reply.error(error.into()),
    })
}

pub(super) fn sought(result: Result<u64, Errno>, reply: ReplyLseek) {
    match result {
        Ok(offset) => reply.offset(offset as i64),
        Err(error) => reply.error(error.into()),
    }
}

/// Answers with an extended attribute, or with its length if the caller asks for that.
pub(super) fn xattr(
    asked: &ByNumber,
    result: Result<Vec<u8>, Errno>,
    size: u32,
    reply: ReplyXattr,
) {
    match result {
        Err(error) => reply.error(asked.errno(error)),
        Ok(bytes) if size == 0 => reply.size(bytes.len() as u32),
        Ok(bytes) if bytes.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(bytes) => reply.data(&bytes),
    }
}

pub(super) fn figures(result: Result<Figures, Errno>, reply: ReplyStatfs) {
    match result {
        Ok(f) => reply.statfs(
            f.blocks,
            f.free,
            f.available,
            f.files,
            f.files_free,
            f.block,
            MAX_NAME as u32,
            f.block,
        ),
        Err(error) => reply.error(error.into()),
    }
}

/// Adds an entry to a listing; true if it is full.
pub(super) fn add(entry: &DirectoryEntry, reply: &mut ReplyDirectory) -> bool {
    let name = OsStr::from_bytes(&entry.name);
    reply.add(INodeNo(entry.ino), entry.position, kind(entry.kind), name)
}

/// A listing with attributes.
pub(super) struct Listing {
    reply: ReplyDirectoryPlus,
    /// Nodes that the kernel knows once it has the listing.
    remembered: Vec<Attr>,
    failure: Option<Errno>,
}

impl Listing {
    pub(super) fn of(reply: ReplyDirectoryPlus) -> Self {
        Self {
            reply,
            remembered: Vec::new(),
            failure: None,
        }
    }

    /// Adds an entry; true if the listing is full or has failed.
    pub(super) fn add(
        &mut self,
        entry: &DirectoryEntry,
        attr: Result<Attr, Errno>,
        is_salvage: bool,
    ) -> bool {
        match attr {
            Ok(attr) => {
                let full = self.reply.add(
                    INodeNo(entry.ino),
                    entry.position,
                    OsStr::from_bytes(&entry.name),
                    &attr.ttl,
                    &file_attr(&attr),
                    GENERATION,
                );
                // The kernel does not count dots as look-ups.
                if !full && entry.name != b"." && entry.name != b".." {
                    self.remembered.push(attr);
                }
                full
            }
            // The node was removed since the entry was read; beside a writer that is ESTALE.
            Err(Errno(libc::ENOENT | libc::ESTALE)) => false,
            // The failure is logged, and a salvage lists the rest.
            Err(Errno(libc::EIO)) if is_salvage => false,
            Err(error) => {
                self.failure = Some(error);
                true
            }
        }
    }

    /// Answers with the added entries; `read` is the result of reading the directory.
    pub(super) fn send(self, door: &FrontDoor, read: Result<(), Errno>) {
        match read.and(self.failure.map_or(Ok(()), Err)) {
            Ok(()) => {
                self.remembered.iter().for_each(|attr| door.remember(attr));
                self.reply.ok();
            }
            Err(error) => self.reply.error(error.into()),
        }
    }
}
