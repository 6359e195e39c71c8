//! The control directory `.secretfs` at the root of a mount: reachable by name, not listed, so
//! that `cp -a`, `tar` and `rm -rf *` never meet it.
//!
//! It belongs to the user of the daemon, whoever owns the vault's root, and who may command is looked
//! at here, at every open and every write: modes are the kernel's business, and a descriptor that is
//! passed on has passed them. Its files are rendered when they are opened. Who may command sees files
//! of his own, with their own inode numbers: owner and length that the kernel keeps are of one of them.

mod handles;
mod status;
mod texts;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::vault::{Kind, ROOT, Timestamp, with_times};

use super::command::{Asker, Refusal};
use super::commanders::{Commanders, Right};
use super::directories::DirectoryEntry;
use super::io::ReadDone;
use super::open::Opened;
use super::{Attr, Caller, Done, Errno, FileHandle, FileSystem};
use handles::{Handles, MAX_BYTES, MAX_HANDLES, OpenControl};
use texts::Texts;

/// The directory's name.
pub(super) const CONTROL_NAME: &[u8] = b".secretfs";
/// The directory's inode number; nodes have none as high.
pub const CONTROL_DIRECTORY: u64 = 1 << 63;
/// Handles of control files are numbered from here.
const FIRST_HANDLE: FileHandle = 1 << 63;
/// Refusals that anybody can bring about are logged this often at most, of each kind.
const LOG_EVERY: Duration = Duration::from_secs(1);

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
    /// When each kind of refusal was logged last.
    logged: Mutex<[Option<Instant>; 3]>,
}

/// What is refused.
#[derive(Clone, Copy)]
enum Refused {
    Open,
    Write,
    TooMany,
}

impl Control {
    /// `also` may command, too.
    pub(super) fn new(also: Option<u32>) -> Self {
        Self {
            commanders: Commanders::new(also),
            open: Mutex::default(),
            next: AtomicU64::default(),
            texts: Texts::default(),
            logged: Mutex::default(),
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

    /// Logs a refusal, but not as often as somebody likes to be refused.
    fn log(&self, what: Refused, said: impl FnOnce() -> String) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let last = &mut logged[what as usize];
        if last.is_none_or(|last| last.elapsed() >= LOG_EVERY) {
            *last = Some(Instant::now());
            drop(logged);
            tracing::warn!("{}", said());
        }
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

    /// The length of a file for who asks. `by_number`: perhaps of one that is open.
    fn length_for(&self, caller: Caller, file: File, by_number: bool) -> u64 {
        let texts = &self.control.texts;
        let in_full = self.control.may_command(caller.uid);
        let known = match in_full {
            // There is nothing in it that changes from one moment to the next.
            false if file == File::Status => None,
            false => return 0,
            true => texts.told(caller.uid, file),
        };
        let open = || {
            texts
                .opened_by(caller, file)
                .filter(|_| by_number && in_full)
        };
        if let Some(text) = known.or_else(open) {
            return text.len() as u64;
        }
        // Opening it tells what is wrong.
        let Ok(text) = self.render(file, in_full) else {
            return 0;
        };
        if in_full {
            texts.tell(caller.uid, file, &text);
        }
        text.len() as u64
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
    pub(super) fn control_attr(&self, caller: Caller, ino: u64) -> Result<Attr, Errno> {
        match file_of(ino) {
            Some((file, sight)) => {
                Ok(self.control_file(file, sight, self.length_for(caller, file, true)))
            }
            None if ino == CONTROL_DIRECTORY => Ok(self.control_directory()),
            None => Err(Errno(libc::ENOENT)),
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
        &self,
        caller: Caller,
        parent: u64,
        name: &[u8],
    ) -> Result<Attr, Errno> {
        if parent != CONTROL_DIRECTORY {
            return Err(Errno(libc::ENOTDIR));
        }
        let file = FILES.into_iter().find(|file| file.name() == name);
        let file = file.ok_or(Errno(libc::ENOENT))?;
        let sight = self.control.sight_of(caller.uid);
        let size = self.length_for(caller, file, false);
        Ok(self.control_file(file, sight, size))
    }

    /// Changes nothing: `echo rotate > control` may truncate first.
    pub(super) fn change_control(
        &self,
        caller: Caller,
        ino: u64,
        set: &super::SetAttributes,
    ) -> Result<Attr, Errno> {
        let refused = set.mode.is_some() || set.uid.is_some() || set.gid.is_some();
        match refused || !self.control.may_command(caller.uid) {
            true => Err(Errno(libc::EPERM)),
            false => self.control_attr(caller, ino),
        }
    }

    pub(super) fn open_control(
        &self,
        caller: Caller,
        ino: u64,
        flags: i32,
    ) -> Result<Opened, Errno> {
        let (file, _) = file_of(ino).ok_or(Errno(match ino {
            CONTROL_DIRECTORY => libc::EISDIR,
            _ => libc::ENOENT,
        }))?;
        let control = &self.control;
        let (uid, pid) = (caller.uid, caller.pid);
        let may_command = control.may_command(uid);
        if !may_command && file != File::Status {
            control.log(Refused::Open, || {
                let name = String::from_utf8_lossy(file.name());
                let who = control.commanders;
                format!("refused to open .secretfs/{name}: user {uid}, process {pid}; {who}")
            });
            return Err(Errno(libc::EACCES));
        }
        let commands = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if commands && file != File::Control {
            return Err(Errno(libc::EACCES));
        }
        if commands && self.vault.is_read_only() {
            return Err(Errno(libc::EROFS));
        }
        let told = control.texts.take(uid, file).filter(|_| may_command);
        let text = match told {
            Some(text) => text,
            None => self.render(file, may_command)?,
        };
        let fh = FIRST_HANDLE + control.next.fetch_add(1, Ordering::Relaxed);
        let open = OpenControl {
            text: Arc::clone(&text),
            uid,
            commands,
        };
        control.open().add(fh, open).inspect_err(|_| {
            control.log(Refused::TooMany, || {
                format!(
                    "refused to open a file of .secretfs: user {uid}, process {pid}, has as many \
                     open as one user may, {MAX_HANDLES} and {MAX_BYTES} bytes; close some"
                )
            });
        })?;
        if may_command {
            control.texts.note_opened(caller, file, &text);
        }
        Ok(Opened { fh, flushes: false })
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
            self.control.log(Refused::Write, || {
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
            return done(Err(Errno(libc::EACCES)));
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
