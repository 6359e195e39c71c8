//! Opening control files: the permission check, and the files that are open.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fs::{Caller, Errno, FIRST_VIRTUAL_HANDLE, FileHandle, Opened, VIRTUAL_DIRECTORY};
use crate::sync::{Mutex, MutexGuard, Rank};

use super::commanders::Commanders;
use super::directory::{File, Text, file_of};
use super::handles::{Handles, MAX_BYTES, MAX_HANDLES, OpenControl};
use super::refusals::Refusals;

/// The open control files of one mount, and the rules for opening more.
pub(super) struct Openings {
    commanders: Commanders,
    is_read_only: bool,
    open: Mutex<Handles>,
    next: AtomicU64,
    refused: Refusals,
    too_many: Refusals,
}

impl Openings {
    /// `commanders` may open every file, and the control file for commands unless the mount
    /// `is_read_only`.
    pub(super) fn new(commanders: Commanders, is_read_only: bool) -> Self {
        Self {
            commanders,
            is_read_only,
            open: Mutex::new(Rank::ControlHandles, Handles::default()),
            next: AtomicU64::default(),
            refused: Refusals::default(),
            too_many: Refusals::default(),
        }
    }

    fn lock_open(&self) -> MutexGuard<'_, Handles> {
        self.open.lock()
    }

    /// Number of open files.
    pub(super) fn len(&self) -> usize {
        self.lock_open().len()
    }

    pub(super) fn get(&self, fh: FileHandle) -> Option<OpenControl> {
        self.lock_open().get(fh)
    }

    /// Notes the answer to a command that came through `fh`, which shows it from now on.
    pub(super) fn note_answer(&self, fh: FileHandle, answer: Text) {
        self.lock_open().note_answer(fh, answer);
    }

    pub(super) fn remove(&self, fh: FileHandle) {
        self.lock_open().remove(fh);
    }

    /// Returns the file, and whether this open takes commands.
    ///
    /// # Errors
    /// When there is no such file, or `caller` may not open it with these flags.
    pub(super) fn must_be_allowed(
        &self,
        caller: Caller,
        ino: u64,
        flags: i32,
    ) -> Result<(File, bool), Errno> {
        let (file, _) = file_of(ino).ok_or(Errno(match ino {
            VIRTUAL_DIRECTORY => libc::EISDIR,
            _ => libc::ENOENT,
        }))?;
        let (uid, pid) = (caller.uid, caller.pid);
        if !self.commanders.may_command(uid) && file != File::Status {
            self.refused.log(uid, || {
                let name = String::from_utf8_lossy(file.name());
                let who = self.commanders;
                format!("refused to open .secretfs/{name}: user {uid}, process {pid}; {who}")
            });
            return Err(Errno(libc::EPERM));
        }
        let commands = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if commands && file != File::Control {
            return Err(Errno(libc::EACCES));
        }
        if commands && self.is_read_only {
            return Err(Errno(libc::EROFS));
        }
        Ok((file, commands))
    }

    /// Opens a file that shows `text`.
    ///
    /// # Errors
    /// `EMFILE` when `caller` has too many open.
    pub(super) fn add(&self, caller: Caller, commands: bool, text: &Text) -> Result<Opened, Errno> {
        let (uid, pid) = (caller.uid, caller.pid);
        // The first handle is the directory's.
        let fh = FIRST_VIRTUAL_HANDLE + 1 + self.next.fetch_add(1, Ordering::Relaxed);
        let open = OpenControl {
            text: Arc::clone(text),
            uid,
            commands,
            answer: None,
        };
        self.lock_open().add(fh, open).inspect_err(|_| {
            self.too_many.log(uid, || {
                format!(
                    "refused to open a file of .secretfs: user {uid}, process {pid}, has as many \
                     open as one user may, {MAX_HANDLES}, or {MAX_BYTES} bytes of texts that differ; \
                     close some"
                )
            });
        })?;
        Ok(Opened { fh, flushes: false })
    }

    /// Logs the refusals that are still only counted.
    pub(super) fn end(&self) {
        self.refused.end("refused to open files of .secretfs");
        self.too_many.end("refused to open more files of .secretfs");
    }
}
