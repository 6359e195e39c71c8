//! The control directory `.secretfs` at the root of a mount: reachable by name, not listed, so
//! that `cp -a`, `tar` and `rm -rf *` never meet it.
//!
//! It belongs to the user of the daemon, whoever owns the vault's root, and who may command is looked
//! at here, at every open and every write: modes are the kernel's business, and a descriptor that is
//! passed on has passed them. Its files are rendered when they are opened. Who may command sees files
//! of his own, with their own inode numbers: owner and length that the kernel keeps are of one of them.

mod handles;
mod opening;
mod renderers;
mod status;
mod texts;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::vault::{Kind, ROOT, Timestamp, with_times};

use super::command::{Asker, Refusal};
use super::commanders::{Commanders, Right};
use super::directories::DirectoryEntry;
use super::io::ReadDone;
use super::{Attr, Caller, Done, Errno, FileHandle, FileSystem, Refusals, readers};
use handles::Handles;
use renderers::Renderers;
use texts::Texts;

/// The directory's name.
pub(super) const CONTROL_NAME: &[u8] = b".secretfs";
/// The directory's inode number; nodes have none as high.
pub const CONTROL_DIRECTORY: u64 = 1 << 63;
/// Handles of control files are numbered from here.
const FIRST_HANDLE: FileHandle = 1 << 63;

/// What a control file holds.
type Text = Arc<Vec<u8>>;

/// A file of the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum File {
    Status,
    Control,
    Audit,
}

/// In the order in which they are listed.
const FILES: [File; 3] = [File::Control, File::Status, File::Audit];

impl File {
    fn name(self) -> &'static [u8] {
        match self {
            File::Status => b"status",
            File::Control => b"control",
            File::Audit => b"audit",
        }
    }

    fn mode(self, sight: Sight) -> u32 {
        match (self, sight) {
            (File::Status, Sight::Public) => 0o444,
            // An overlay asks for everybody as who has mounted it.
            (File::Status | File::Audit, _) => 0o400,
            (File::Control, _) => 0o600,
        }
    }
}

/// Who looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    /// Root and the user of the daemon.
    Own,
    /// Whom `control-uid` names: the files are hers, or the kernel would not let her open them.
    Also,
    /// Everybody else.
    Public,
}

const SIGHTS: [Sight; 3] = [Sight::Own, Sight::Also, Sight::Public];

fn number(file: File, sight: Sight) -> u64 {
    CONTROL_DIRECTORY + 1 + sight as u64 * 16 + file as u64
}

/// Which file an inode number is of.
fn file_of(ino: u64) -> Option<(File, Sight)> {
    SIGHTS
        .into_iter()
        .flat_map(|sight| FILES.map(|file| (file, sight)))
        .find(|(file, sight)| number(*file, *sight) == ino)
}

/// Whether an inode number belongs to the control directory.
pub(super) fn is_control(ino: u64) -> bool {
    ino >= CONTROL_DIRECTORY
}

/// Whether a handle is that of a control file.
pub(super) fn is_control_handle(fh: FileHandle) -> bool {
    fh >= FIRST_HANDLE
}

/// Open control files, and who may have them.
pub(super) struct Control {
    commanders: Commanders,
    open: Mutex<Handles>,
    next: AtomicU64,
    texts: Texts,
    refusals: Refused,
    renderers: Renderers,
}

/// What was refused.
#[derive(Default)]
struct Refused {
    open: Refusals,
    write: Refusals,
    too_many: Refusals,
}

impl Control {
    /// `also` may command, too.
    pub(super) fn new(also: Option<u32>) -> Self {
        Self {
            commanders: Commanders::new(also),
            open: Mutex::default(),
            next: AtomicU64::default(),
            texts: Texts::default(),
            refusals: Refused::default(),
            renderers: Renderers::default(),
        }
    }

    fn open(&self) -> MutexGuard<'_, Handles> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of open control files.
    pub(super) fn len(&self) -> usize {
        self.open().len()
    }

    /// Lengths that were told are out of date.
    pub(super) fn forget_told(&self) {
        self.texts.forget_told();
    }

    fn may_command(&self, uid: u32) -> bool {
        self.commanders.right(uid).is_some()
    }

    fn sight_of(&self, uid: u32) -> Sight {
        match self.commanders.right(uid) {
            Some(Right::All) => Sight::Own,
            Some(Right::KnownKeys) => Sight::Also,
            None => Sight::Public,
        }
    }

    /// Nothing more is refused.
    pub(super) fn end(&self) {
        let Refused {
            open,
            write,
            too_many,
        } = &self.refusals;
        open.end("refused to open files of .secretfs");
        write.end("refused commands to .secretfs/control");
        too_many.end("refused to open more files of .secretfs");
    }
}

impl FileSystem {
    /// Who may command the keys.
    pub(crate) fn commanders(&self) -> &Commanders {
        &self.control.commanders
    }

    /// The key-management history, one JSON object a line.
    fn render_audit(&self) -> Result<Text, Errno> {
        let head = self.vault.history_head();
        if !self.vault.is_condemned()
            && let Some(known) = self.control.texts.history(&head)
        {
            return Ok(known);
        }
        let events = self.vault.history()?;
        let lines = events.iter().map(|event| {
            let event = serde_json::to_value(event).unwrap_or_default();
            format!("{}\n", with_times(event)).into_bytes()
        });
        let text = Arc::new(lines.flatten().collect());
        // It may have grown meanwhile.
        if events.len() as u64 == head.length {
            self.control.texts.note_history(head, &text);
        }
        Ok(text)
    }

    fn render(&self, file: File, in_full: bool) -> Result<Text, Errno> {
        let bytes = match file {
            File::Audit => return self.render_audit(),
            File::Status => self.render_status(in_full),
            File::Control => self.keeper.last().into_bytes(),
        };
        Ok(self.control.texts.share(file, in_full, bytes))
    }

    /// Has a file rendered, which may wait for the disk, and goes on with its text on another thread.
    fn when_rendered(
        self: &Arc<Self>,
        file: File,
        in_full: bool,
        then: impl FnOnce(&Self, Result<Text, Errno>) + Send + 'static,
    ) {
        let fs = Arc::clone(self);
        let job = move |may: Result<(), Errno>| {
            let text = may.and_then(|()| fs.render(file, in_full));
            then(&fs, text);
        };
        match file {
            // It looks at nothing but what is in memory.
            File::Control => job(Ok(())),
            File::Status | File::Audit => {
                readers::hand_over();
                self.control.renderers.run(in_full, Box::new(job));
            }
        }
    }

    /// The length of a file for who asks. `by_number`: perhaps of one that is open.
    fn length_for(
        self: &Arc<Self>,
        caller: Caller,
        file: File,
        by_number: bool,
        done: impl FnOnce(&Self, u64) + Send + 'static,
    ) {
        let texts = &self.control.texts;
        let in_full = self.control.may_command(caller.uid);
        let known = match in_full {
            // There is nothing in it that changes from one moment to the next.
            false if file == File::Status => None,
            false => return done(self, 0),
            true => texts.told(caller.uid, file),
        };
        let open = || {
            texts
                .opened_by(caller, file)
                .filter(|_| by_number && in_full)
        };
        if let Some(text) = known.or_else(open) {
            return done(self, text.len() as u64);
        }
        self.when_rendered(file, in_full, move |fs, text| {
            if in_full && let Ok(text) = &text {
                fs.control.texts.tell(caller.uid, file, text);
            }
            // Opening it tells what is wrong.
            done(fs, text.map_or(0, |text| text.len() as u64));
        });
    }

    /// The attributes of the directory.
    pub(super) fn control_directory(&self) -> Attr {
        let now = Timestamp::now();
        let (uid, gid) = self.control.commanders.owner();
        Attr {
            ino: CONTROL_DIRECTORY,
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

    fn control_file(&self, file: File, sight: Sight, size: u64) -> Attr {
        let directory = self.control_directory();
        let also = self.control.commanders.also();
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

    /// A node of the control directory, as who asks sees it.
    pub(super) fn control_attr(self: &Arc<Self>, caller: Caller, ino: u64, done: Done<Attr>) {
        match file_of(ino) {
            Some((file, sight)) => self.length_for(caller, file, true, move |fs, size| {
                done(Ok(fs.control_file(file, sight, size)));
            }),
            None if ino == CONTROL_DIRECTORY => done(Ok(self.control_directory())),
            None => done(Err(Errno(libc::ENOENT))),
        }
    }

    /// The same, for nobody in particular: what is rendered already tells the length.
    pub(super) fn control_node(&self, ino: u64) -> Result<Attr, Errno> {
        match file_of(ino) {
            Some((file, sight)) => {
                let in_full = sight != Sight::Public;
                let size = self.control.texts.newest_length(file, in_full);
                Ok(self.control_file(file, sight, size))
            }
            None if ino == CONTROL_DIRECTORY => Ok(self.control_directory()),
            None => Err(Errno(libc::ENOENT)),
        }
    }

    pub(super) fn lookup_control(
        self: &Arc<Self>,
        caller: Caller,
        parent: u64,
        name: &[u8],
        done: Done<Attr>,
    ) {
        if parent != CONTROL_DIRECTORY {
            return done(Err(Errno(libc::ENOTDIR)));
        }
        let Some(file) = FILES.into_iter().find(|file| file.name() == name) else {
            return done(Err(Errno(libc::ENOENT)));
        };
        let sight = self.control.sight_of(caller.uid);
        self.length_for(caller, file, false, move |fs, size| {
            done(Ok(fs.control_file(file, sight, size)));
        });
    }

    /// Changes nothing: `echo rotate > control` may truncate first.
    pub(super) fn change_control(
        self: &Arc<Self>,
        caller: Caller,
        ino: u64,
        set: &super::SetAttributes,
        done: Done<Attr>,
    ) {
        let refused = set.mode.is_some() || set.uid.is_some() || set.gid.is_some();
        match refused || !self.control.may_command(caller.uid) {
            true => done(Err(Errno(libc::EPERM))),
            false => self.control_attr(caller, ino, done),
        }
    }

    pub(super) fn read_control(&self, fh: FileHandle, offset: u64, size: u32, done: ReadDone) {
        let open = self.control.open().get(fh);
        match open {
            Some(open) => done(Ok(super::io::window(&open.text, offset, size))),
            None => done(Err(Errno(libc::EBADF))),
        }
    }

    /// One write is one command, wherever it is written to. Who writes may not be who has opened it,
    /// and is looked at, too; of what comes out of the page cache (`mmap`) nobody knows who it was.
    pub(super) fn write_control(
        self: &Arc<Self>,
        caller: Caller,
        fh: FileHandle,
        data: &[u8],
        from_cache: bool,
        done: Done<u32>,
    ) {
        let open = self.control.open().get(fh);
        let Some(open) = open.filter(|open| open.commands) else {
            return done(Err(Errno(libc::EBADF)));
        };
        let (uid, pid) = (caller.uid, caller.pid);
        if from_cache || !self.control.may_command(uid) {
            // Of a mapping it is known who has opened it alone.
            let whose = if from_cache { open.uid } else { uid };
            self.control.refusals.write.log(whose, || {
                let (opener, who) = (open.uid, self.commanders());
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
            return done(Err(Errno(libc::EPERM)));
        }
        let count = data.len() as u32;
        let told = move |begun: Result<(), Refusal>| match begun {
            Ok(()) => done(Ok(count)),
            Err(refusal) => done(Err(refusal.errno)),
        };
        // Whoever it is: other programs of that user may be what writes here.
        let right = Right::KnownKeys;
        self.command(data, Asker { uid, right }, Box::new(told));
    }

    pub(super) fn release_control(&self, fh: FileHandle) {
        self.control.open().remove(fh);
    }

    pub(super) fn read_control_directory(
        &self,
        position: u64,
        mut take: impl FnMut(&DirectoryEntry) -> bool,
    ) -> Result<(), Errno> {
        let dots = [
            (CONTROL_DIRECTORY, Kind::Directory, &b"."[..]),
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
        Ok(())
    }
}
