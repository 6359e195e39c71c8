//! Opening control files: who may, and what is shown then.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::open::Opened;
use super::super::{Caller, Done, Errno, FileSystem};
use super::handles::{MAX_BYTES, MAX_HANDLES, OpenControl};
use super::{CONTROL_DIRECTORY, FIRST_HANDLE, File, Text, file_of};

impl FileSystem {
    pub(in super::super) fn open_control(
        self: &Arc<Self>,
        caller: Caller,
        ino: u64,
        flags: i32,
        done: Done<Opened>,
    ) {
        let (file, commands) = match self.may_open_control(caller, ino, flags) {
            Ok(may) => may,
            Err(error) => return done(Err(error)),
        };
        let may_command = self.control.may_command(caller.uid);
        let then = move |fs: &Self, text: Result<Text, Errno>| {
            done(text.and_then(|text| fs.opened_control(caller, file, commands, &text)));
        };
        let told = self.control.texts.take(caller.uid, file);
        match told.filter(|_| may_command) {
            Some(text) => then(self, Ok(text)),
            None => self.when_rendered(file, may_command, then),
        }
    }

    /// Which file it is, and whether it is to take commands.
    fn may_open_control(
        &self,
        caller: Caller,
        ino: u64,
        flags: i32,
    ) -> Result<(File, bool), Errno> {
        let (file, _) = file_of(ino).ok_or(Errno(match ino {
            CONTROL_DIRECTORY => libc::EISDIR,
            _ => libc::ENOENT,
        }))?;
        let (uid, pid) = (caller.uid, caller.pid);
        if !self.control.may_command(uid) && file != File::Status {
            self.control.refusals.open.log(uid, || {
                let name = String::from_utf8_lossy(file.name());
                let who = self.control.commanders;
                format!("refused to open .secretfs/{name}: user {uid}, process {pid}; {who}")
            });
            return Err(Errno(libc::EPERM));
        }
        let commands = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if commands && file != File::Control {
            return Err(Errno(libc::EACCES));
        }
        if commands && self.vault.is_read_only() {
            return Err(Errno(libc::EROFS));
        }
        Ok((file, commands))
    }

    fn opened_control(
        &self,
        caller: Caller,
        file: File,
        commands: bool,
        text: &Text,
    ) -> Result<Opened, Errno> {
        let control = &self.control;
        let (uid, pid) = (caller.uid, caller.pid);
        let fh = FIRST_HANDLE + control.next.fetch_add(1, Ordering::Relaxed);
        let open = OpenControl {
            text: Arc::clone(text),
            uid,
            commands,
        };
        control.open().add(fh, open).inspect_err(|_| {
            control.refusals.too_many.log(uid, || {
                format!(
                    "refused to open a file of .secretfs: user {uid}, process {pid}, has as many \
                     open as one user may, {MAX_HANDLES}, or {MAX_BYTES} bytes of texts that differ; \
                     close some"
                )
            });
        })?;
        if control.may_command(uid) {
            control.texts.note_opened(caller, file, text);
        }
        Ok(Opened { fh, flushes: false })
    }
}
