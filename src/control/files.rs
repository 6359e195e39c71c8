//! The control directory `.secretfs` at the root of a mount. It is reachable by name, but no
//! listing shows it, so `cp -a`, `tar` and `rm -rf *` never meet it.
//!
//! The user of the daemon owns it, whoever owns the vault's root. Every open and every write checks
//! here whether the caller may command: the kernel checks modes, but not for a passed descriptor.
//! An open renders the file. Each kind of reader sees files with inode numbers of their own,
//! because the kernel keeps one owner and one length per number.

use std::sync::Arc;
use std::time::Duration;

use crate::fs::{
    self, Attr, Caller, DirectoryEntry, Done, Errno, FileHandle, Opened, ReadDone, SetAttributes,
    VIRTUAL_DIRECTORY, VirtualDirectory,
};
use crate::vault::{Kind, ROOT, Timestamp};

use super::command::{Commander, Refusal};
use super::commanders::Right;
use super::controller::Controller;
use super::directory::{FILES, File, NAME, Sight, Text, file_of, number};
use super::opening::Openings;
use super::protocol::Answer;
use super::refusals::Refusals;
use super::renderers::Renderers;
use super::texts::Texts;

/// The control directory of one mount, as the module describes.
pub struct ControlFiles(Arc<Files>);

/// The state that the directory and its rendering threads share.
struct Files {
    controller: Arc<Controller>,
    open: Openings,
    renderers: Renderers,
    refused_commands: Refusals,
}

impl ControlFiles {
    /// The control files of `controller`.
    pub fn of(controller: &Arc<Controller>) -> Self {
        let is_read_only = controller.vault().is_read_only();
        Self(Arc::new(Files {
            controller: Arc::clone(controller),
            open: Openings::new(*controller.commanders(), is_read_only),
            renderers: Renderers::default(),
            refused_commands: Refusals::default(),
        }))
    }
}

impl Files {
    fn texts(&self) -> &Texts {
        self.controller.texts()
    }

    fn may_command(&self, uid: u32) -> bool {
        self.controller.commanders().may_command(uid)
    }

    fn sight_of(&self, uid: u32) -> Sight {
        match self.controller.commanders().right(uid) {
            Some(Right::All) => Sight::Own,
            Some(Right::KnownKeys) => Sight::Also,
            None => Sight::Public,
        }
    }

    /// The key-management history, one JSON object per line.
    fn render_audit(&self) -> Result<Text, Errno> {
        let vault = self.controller.vault();
        let head = vault.history_head();
        if !vault.is_condemned()
            && let Some(known) = self.texts().history(&head)
        {
            return Ok(known);
        }
        let events = self.controller.audit();
        let events = events.map_err(|error| Errno::from(&error))?;
        let lines = events.iter().map(|event| format!("{event}\n").into_bytes());
        let text = Arc::new(lines.flatten().collect());
        // The history may have grown meanwhile.
        if events.len() as u64 == head.length {
            self.texts().note_history(head, &text);
        }
        Ok(text)
    }

    fn render(&self, file: File, in_full: bool) -> Result<Text, Errno> {
        let text = match file {
            File::Audit => return self.render_audit(),
            File::Status if in_full => format!("{:#}\n", self.controller.status()),
            File::Status => format!("{:#}\n", self.controller.public_status()),
            File::Control => self.controller.last_command(),
        };
        Ok(self.texts().share(file, in_full, text.into_bytes()))
    }

    /// Renders a file on another thread, because rendering may wait for the disk, and calls the
    /// continuation there with the text.
    fn when_rendered(
        self: &Arc<Self>,
        file: File,
        in_full: bool,
        then: impl FnOnce(&Self, Result<Text, Errno>) + Send + 'static,
    ) {
        let files = Arc::clone(self);
        let job = move |may: Result<(), Errno>| {
            let text = may.and_then(|()| files.render(file, in_full));
            then(&files, text);
        };
        match file {
            // The control file shows only what is in memory.
            File::Control => job(Ok(())),
            File::Status | File::Audit => {
                fs::answered_elsewhere();
                self.renderers.run(in_full, Box::new(job));
            }
        }
    }

    /// The length of a file for a caller. `by_number`: the caller may mean a file that is open.
    fn length_for(
        self: &Arc<Self>,
        caller: Caller,
        file: File,
        by_number: bool,
        done: impl FnOnce(&Self, u64) + Send + 'static,
    ) {
        let texts = self.texts();
        let in_full = self.may_command(caller.uid);
        let known = match in_full {
            // The public status has no member that changes every second.
            false if file == File::Status => None,
            false => return done(self, 0),
            true => texts.promised(caller.uid, file),
        };
        let open = || {
            texts
                .opened_by(caller, file)
                .filter(|_| by_number && in_full)
        };
        if let Some(text) = known.or_else(open) {
            return done(self, text.len() as u64);
        }
        self.when_rendered(file, in_full, move |files, text| {
            if in_full && let Ok(text) = &text {
                files.texts().promise(caller.uid, file, text);
            }
            // An open reports the error.
            done(files, text.map_or(0, |text| text.len() as u64));
        });
    }

    /// The attributes of the directory.
    fn own_attr(&self) -> Attr {
        let now = Timestamp::now();
        let (uid, gid) = self.controller.commanders().owner();
        Attr {
            ino: VIRTUAL_DIRECTORY,
            kind: Kind::Directory,
            mode: 0o555,
            links: 2,
            uid,
            gid,
            device: 0,
            size: 0,
            accessed: now,
            modified: now,
            changed: now,
            ttl: Duration::ZERO,
            version: 0,
        }
    }

    fn file_attr(&self, file: File, sight: Sight, size: u64) -> Attr {
        let directory = self.own_attr();
        let also = self.controller.commanders().also();
        Attr {
            ino: number(file, sight),
            kind: Kind::File,
            mode: file.mode(sight),
            links: 1,
            uid: match (sight, also) {
                (Sight::Also, Some(also)) => also,
                _ => directory.uid,
            },
            size,
            ..directory
        }
    }

    fn opened(
        &self,
        caller: Caller,
        (file, commands): (File, bool),
        text: &Text,
    ) -> Result<Opened, Errno> {
        let opened = self.open.add(caller, commands, text)?;
        if self.may_command(caller.uid) {
            self.texts().note_opened(caller, file, text);
        }
        Ok(opened)
    }
}

impl VirtualDirectory for ControlFiles {
    fn name(&self) -> &'static [u8] {
        NAME
    }

    fn own_attr(&self) -> Attr {
        self.0.own_attr()
    }

    fn lookup(&self, caller: Caller, name: &[u8], done: Done<Attr>) {
        let Some(file) = FILES.into_iter().find(|file| file.name() == name) else {
            return done(Err(Errno(libc::ENOENT)));
        };
        let sight = self.0.sight_of(caller.uid);
        self.0.length_for(caller, file, false, move |files, size| {
            done(Ok(files.file_attr(file, sight, size)));
        });
    }

    fn attr(&self, caller: Caller, ino: u64, done: Done<Attr>) {
        match file_of(ino) {
            Some((file, sight)) => self.0.length_for(caller, file, true, move |files, size| {
                done(Ok(files.file_attr(file, sight, size)));
            }),
            None if ino == VIRTUAL_DIRECTORY => done(Ok(self.own_attr())),
            None => done(Err(Errno(libc::ENOENT))),
        }
    }

    /// The length is that of the newest rendered text.
    fn attr_for_anybody(&self, ino: u64) -> Result<Attr, Errno> {
        match file_of(ino) {
            Some((file, sight)) => {
                let in_full = sight != Sight::Public;
                let size = self.0.texts().newest_length(file, in_full);
                Ok(self.0.file_attr(file, sight, size))
            }
            None if ino == VIRTUAL_DIRECTORY => Ok(self.own_attr()),
            None => Err(Errno(libc::ENOENT)),
        }
    }

    /// Accepts a truncation and changes nothing: `echo rotate > control` truncates first.
    fn set_attr(&self, caller: Caller, ino: u64, set: &SetAttributes, done: Done<Attr>) {
        let refused = set.mode.is_some() || set.uid.is_some() || set.gid.is_some();
        match refused || !self.0.may_command(caller.uid) {
            true => done(Err(Errno(libc::EPERM))),
            false => self.attr(caller, ino, done),
        }
    }

    fn open(&self, caller: Caller, ino: u64, flags: i32, done: Done<Opened>) {
        let (file, commands) = match self.0.open.must_be_allowed(caller, ino, flags) {
            Ok(allowed) => allowed,
            Err(error) => return done(Err(error)),
        };
        let may_command = self.0.may_command(caller.uid);
        let then = move |files: &Files, text: Result<Text, Errno>| {
            done(text.and_then(|text| files.opened(caller, (file, commands), &text)));
        };
        let promised = self.0.texts().take_promised(caller.uid, file);
        match promised.filter(|_| may_command) {
            Some(text) => then(&self.0, Ok(text)),
            None => self.0.when_rendered(file, may_command, then),
        }
    }

    fn read(&self, fh: FileHandle, offset: u64, size: u32, done: ReadDone) {
        match self.0.open.get(fh) {
            Some(open) => done(Ok(fs::window(open.shown(), offset, size))),
            None => done(Err(Errno(libc::EBADF))),
        }
    }

    /// One write is one command, at any offset. The writer may differ from the opener; both are
    /// checked. The writer of data from the page cache (`mmap`) is unknown. The answer is read
    /// through the same descriptor, at offset 0: an errno alone does not tell the class of a refusal.
    fn write(
        &self,
        caller: Caller,
        fh: FileHandle,
        data: &[u8],
        from_cache: bool,
        done: Done<u32>,
    ) {
        let open = self.0.open.get(fh);
        let Some(open) = open.filter(|open| open.commands) else {
            return done(Err(Errno(libc::EBADF)));
        };
        let (uid, pid) = (caller.uid, caller.pid);
        if from_cache || !self.0.may_command(uid) {
            // For a mapping, only the opener is known.
            let whose = if from_cache { open.uid } else { uid };
            self.0.refused_commands.log(whose, || {
                let (opener, who) = (open.uid, self.0.controller.commanders());
                match from_cache {
                    true => format!(
                        "refused a command to .secretfs/control: it came through a mapping, of a \
                         descriptor that user {opener} has opened; write(2) it"
                    ),
                    false => format!(
                        "refused a command to .secretfs/control: user {uid}, process {pid}, wrote to \
                         a descriptor that user {opener} has opened; {who}"
                    ),
                }
            });
            // The opener reads the answer to its command, and that stays so.
            return done(Err(Errno(libc::EPERM)));
        }
        let files = Arc::clone(&self.0);
        let count = data.len() as u32;
        let reply = move |begun: Result<(), Refusal>| {
            let written = begun.as_ref().map(|()| count);
            let written = written.map_err(|refusal| refusal.errno);
            if let Ok(line) = Answer::from(begun).line() {
                files.open.note_answer(fh, Arc::new(line));
            }
            done(written);
        };
        // Even for root: any program of that user may write here.
        let right = Right::KnownKeys;
        let by = Commander { uid, right };
        self.0.controller.command(data, by, Box::new(reply));
    }

    fn release(&self, fh: FileHandle) {
        self.0.open.remove(fh);
    }

    fn list(&self, position: u64, take: &mut dyn FnMut(&DirectoryEntry) -> bool) {
        let dots = [
            (VIRTUAL_DIRECTORY, Kind::Directory, &b"."[..]),
            (ROOT, Kind::Directory, b".."),
        ];
        let files = FILES.map(|file| (number(file, Sight::Own), Kind::File, file.name()));
        for (at, (ino, kind, name)) in dots.into_iter().chain(files).enumerate() {
            let entry = DirectoryEntry {
                ino,
                kind,
                name: name.to_vec(),
                position: at as u64 + 1,
            };
            if at as u64 >= position && take(&entry) {
                break;
            }
        }
    }

    fn open_files(&self) -> usize {
        self.0.open.len()
    }

    fn begin_to_end(&self) {
        self.0.controller.begin_to_end();
    }

    fn end(&self) {
        self.0.controller.end();
        self.0.open.end();
        let refused = &self.0.refused_commands;
        refused.end("refused commands to .secretfs/control");
    }
}
