//! The file system layer as a kernel would use it, without one: calls that wait for their answer.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use secretfs::control::{self, ControlFiles, Controller, Shown};
use secretfs::fs::{
    Attr, Caller, DirectoryEntry, Ending, Errno, FileHandle, FileSystem, FrontDoor, SetAttributes,
    Settings, Transfer,
};
use secretfs::kms::{KeyUri, KmsSettings};
use secretfs::vault::{
    CheckReport, Failure, InitOptions, Kind, NewNode, OpenOptions, RenameMode, Vault, VaultError,
    Verify, check, init,
};

/// A vault in a directory of its own, with keys and anchors beside it.
pub struct Layer {
    dir: tempfile::TempDir,
}

/// The vault, opened and served.
pub struct Served(pub Arc<FrontDoor>);

fn ask<T: Send + 'static>(
    call: impl FnOnce(Box<dyn FnOnce(Result<T, Errno>) + Send>),
) -> Result<T, Errno> {
    let (sender, receiver) = mpsc::channel();
    call(Box::new(move |answer| sender.send(answer).unwrap()));
    receiver
        .recv_timeout(Duration::from_secs(60))
        .expect("every request is answered")
}

impl Layer {
    pub fn new() -> Self {
        Self::inside(tempfile::tempdir().unwrap())
    }

    /// For tests that make many vaults and need no disk.
    pub fn in_memory() -> Self {
        Self::inside(match tempfile::tempdir_in("/dev/shm") {
            Ok(dir) => dir,
            Err(_) => tempfile::tempdir().unwrap(),
        })
    }

    /// With a new vault somewhere below a directory.
    pub fn below(directory: &Path) -> Self {
        Self::inside(tempfile::tempdir_in(directory).unwrap())
    }

    /// With the vault, the keys and the anchors that are in `dir`.
    pub fn at(dir: tempfile::TempDir) -> Self {
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn inside(dir: tempfile::TempDir) -> Self {
        let layer = Self { dir };
        let options = InitOptions {
            kms_keys: vec![KeyUri::default_local()],
            uid: 0,
            gid: 0,
            kms: layer.kms(),
            anchor_dir: Some(layer.anchors()),
        };
        init(&layer.vault(), &options).unwrap();
        layer
    }

    pub fn vault(&self) -> PathBuf {
        self.dir.path().join("vault")
    }

    pub fn anchors(&self) -> PathBuf {
        self.dir.path().join("anchors")
    }

    pub fn kms(&self) -> KmsSettings {
        KmsSettings {
            local_dir: Some(self.dir.path().join("kms")),
            ..KmsSettings::default()
        }
    }

    pub fn options(&self) -> OpenOptions {
        OpenOptions {
            kms: self.kms(),
            anchor_dir: Some(self.anchors()),
            ..OpenOptions::default()
        }
    }

    pub fn open(&self) -> Served {
        self.open_with(16 << 20, 256 << 20)
    }

    pub fn open_with(&self, max_secret_size: u64, max_memory: u64) -> Served {
        self.open_patiently(max_secret_size, max_memory, Duration::ZERO)
    }

    /// With readers that are given time between pieces.
    pub fn open_patiently(
        &self,
        max_secret_size: u64,
        max_memory: u64,
        end_patience: Duration,
    ) -> Served {
        serve(self.open_vault(), max_secret_size, max_memory, end_patience).unwrap()
    }

    /// Served while it is still being counted.
    pub fn open_counted_later(&self) -> Served {
        let options = self.options();
        let vault = Vault::open_to_serve(&self.vault(), &options, Verify::Background).unwrap();
        serve(vault, 16 << 20, 256 << 20, Duration::ZERO).unwrap()
    }

    /// Served for reading only, beside whoever writes it.
    pub fn open_beside(&self) -> Served {
        let options = OpenOptions {
            read_only: true,
            ..self.options()
        };
        let vault = Vault::open(&self.vault(), &options).unwrap();
        serve(vault, 16 << 20, 256 << 20, Duration::ZERO).unwrap()
    }

    /// Opens the vault if it lets itself be opened.
    pub fn try_open(&self) -> Result<Served, VaultError> {
        let vault = Vault::open(&self.vault(), &self.options())?;
        Ok(serve(vault, 16 << 20, 256 << 20, Duration::ZERO).expect("threads"))
    }

    fn open_vault(&self) -> Vault {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match Vault::open(&self.vault(), &self.options()) {
                Ok(vault) => return vault,
                // A thread may still be counting what was opened last.
                Err(error) if error.failure() == Failure::Busy && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// What a crash of the machine would leave now, all being quiet and durable, in the vault's
    /// place after `end` has closed it.
    pub fn crash(&self, end: impl FnOnce()) {
        self.crash_while(|| 0, end);
    }

    /// The same while keys may be being replaced; `commits` counts what is committed.
    pub fn crash_while(&self, commits: impl Fn() -> u64, end: impl FnOnce()) {
        let kept = self.dir.path().join("kept");
        // The database before its log: a checkpoint moves pages from the log to the database.
        let files = ["vault.db", "vault.db-wal", "lock"].map(|name| (self.vault(), name));
        let anchors = std::fs::read_dir(self.anchors()).unwrap();
        let anchors: Vec<_> = anchors.map(|anchor| anchor.unwrap().file_name()).collect();
        let anchors = anchors
            .iter()
            .map(|name| (self.anchors(), name.to_str().unwrap()));
        let files: Vec<_> = files.into_iter().chain(anchors).collect();
        loop {
            let (before, log) = (commits(), Beginning::of(&self.vault()));
            std::fs::create_dir(&kept).unwrap();
            for (from, name) in &files {
                if from.join(name).exists() {
                    std::fs::copy(from.join(name), kept.join(name)).unwrap();
                }
            }
            // A log that was emptied after the database was copied had what that lacks.
            if commits() == before && Beginning::of(&kept).goes_on_with(&log) {
                break;
            }
            std::fs::remove_dir_all(&kept).unwrap();
        }
        let permissions = std::fs::metadata(self.vault()).unwrap().permissions();
        end();
        std::fs::remove_dir_all(self.vault()).unwrap();
        std::fs::create_dir(self.vault()).unwrap();
        std::fs::set_permissions(self.vault(), permissions).unwrap();
        for (to, name) in &files {
            if kept.join(name).exists() {
                std::fs::copy(kept.join(name), to.join(name)).unwrap();
            }
        }
        std::fs::remove_dir_all(&kept).unwrap();
    }

    pub fn check(&self) -> CheckReport {
        check(&self.vault(), &self.options()).unwrap()
    }
}

/// The header of a vault's log, which changes when the log is begun anew, and its length.
struct Beginning {
    header: Vec<u8>,
    length: u64,
}

impl Beginning {
    fn of(vault: &Path) -> Self {
        let Ok(log) = std::fs::File::open(vault.join("vault.db-wal")) else {
            return Self {
                header: Vec::new(),
                length: 0,
            };
        };
        let length = log.metadata().unwrap().len();
        let mut header = Vec::new();
        log.take(32).read_to_end(&mut header).unwrap();
        Self { header, length }
    }

    /// Whether all that the log had `before` is still there.
    fn goes_on_with(&self, before: &Self) -> bool {
        self.header == before.header && self.length >= before.length
    }
}

fn serve(
    vault: impl Into<Arc<Vault>>,
    max_secret_size: u64,
    max_memory: u64,
    end_patience: Duration,
) -> std::io::Result<Served> {
    let settings = Settings {
        ttl: Duration::from_secs(1),
        max_secret_size,
        max_memory,
        // The reference knows no time.
        end_patience,
        appends_after: Duration::from_secs(3600),
        verify_every: Duration::from_secs(60),
    };
    let control = control::Settings {
        rotate_every: None,
        control_uid: None,
        shown: Shown {
            mountpoint: "/nowhere".into(),
            verify: "before",
            max_memory_from: "option",
            protection: serde_json::Value::Null,
        },
    };
    let fs = FileSystem::new(vault, settings)?;
    // Of no file system: nobody else's locks are those of this one.
    fs.attach_device((u32::MAX, 0));
    let controller = Controller::start(&fs, control)?;
    let files = ControlFiles::of(&controller);
    Ok(Served(FrontDoor::new(fs, files)))
}

/// This process, which opens and closes everything.
pub fn caller() -> Caller {
    caller_as(std::process::id(), 0)
}

/// A process and its user; process 0 is one that cannot be seen.
pub fn caller_as(pid: u32, uid: u32) -> Caller {
    Caller { uid, gid: 0, pid }
}

pub fn new_node(kind: Kind, mode: u32) -> NewNode {
    NewNode {
        kind,
        mode,
        uid: 0,
        gid: 0,
        device: 0x0103,
        target: b"target".to_vec(),
    }
}

const THROUGH_READ_AND_WRITE: Transfer = Transfer {
    lock_owner: Some(1),
    kill_set_id: false,
    pid: 0,
};

impl Served {
    pub fn setattr_as(
        &self,
        caller: Caller,
        ino: u64,
        fh: Option<FileHandle>,
        set: SetAttributes,
    ) -> Result<Attr, Errno> {
        ask(|done| self.0.setattr(caller, ino, fh, set, done))
    }

    pub fn create_as(
        &self,
        caller: Caller,
        (parent, name): (u64, &[u8]),
        mode: u32,
        flags: i32,
    ) -> Result<(Attr, FileHandle), Errno> {
        let new = NewNode {
            uid: caller.uid,
            gid: caller.gid,
            ..new_node(Kind::File, mode)
        };
        let created = ask(|done| self.0.create(caller, parent, name, new, flags, done));
        created.map(|(attr, opened)| (attr, opened.fh))
    }

    pub fn open_as(&self, caller: Caller, ino: u64, flags: i32) -> Result<FileHandle, Errno> {
        let opened = ask(|done| self.0.open(caller, ino, flags, done));
        opened.map(|opened| opened.fh)
    }

    pub fn write_as(
        &self,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        (pid, owner, kill_set_id): (u32, u64, bool),
    ) -> Result<u32, Errno> {
        let transfer = Transfer {
            lock_owner: Some(owner),
            kill_set_id,
            pid,
        };
        ask(|done| self.0.write(fh, offset, data, transfer, done))
    }

    pub fn flush_as(&self, fh: FileHandle, pid: u32, owner: u64) -> Result<(), Errno> {
        ask(|done| self.0.flush(fh, pid, owner, done))
    }

    pub fn barrier(&self) {
        ask(|done| self.0.barrier(caller(), done)).unwrap();
    }

    pub fn allocate(
        &self,
        fh: FileHandle,
        (offset, length): (u64, u64),
        mode: i32,
    ) -> Result<(), Errno> {
        ask(|done| self.0.allocate(fh, offset, length, mode, done))
    }

    pub fn copy_range(
        &self,
        from: (FileHandle, u64),
        to: (FileHandle, u64),
        length: u64,
    ) -> Result<u32, Errno> {
        // As reads and writes: by nobody who can be seen.
        ask(|done| self.0.copy_range(caller_as(0, 0), from, to, length, done))
    }

    pub fn make_as(
        &self,
        (parent, name): (u64, &[u8]),
        kind: Kind,
        mode: u32,
    ) -> Result<Attr, Errno> {
        ask(|done| {
            self.0
                .make(caller(), parent, name, new_node(kind, mode), done)
        })
    }

    pub fn set_xattr(&self, ino: u64, name: &[u8], value: &[u8], flags: i32) -> Result<(), Errno> {
        ask(|done| self.0.set_xattr(caller(), ino, (name, value), flags, done))
    }

    pub fn remove_xattr(&self, ino: u64, name: &[u8]) -> Result<(), Errno> {
        ask(|done| self.0.remove_xattr(caller(), ino, name, done))
    }

    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Attr, Errno> {
        ask(|done| self.0.lookup(parent, name, done))
    }

    pub fn lookup_for(&self, thread: u32, parent: u64, name: &[u8]) -> Result<Attr, Errno> {
        self.lookup_as(caller_as(thread, 0), parent, name)
    }

    pub fn lookup_as(&self, by: Caller, parent: u64, name: &[u8]) -> Result<Attr, Errno> {
        ask(|done| self.0.lookup_for(by, parent, name, done))
    }

    /// As somebody asks who has nothing open.
    pub fn getattr(&self, ino: u64, fh: Option<FileHandle>) -> Result<Attr, Errno> {
        self.getattr_as(caller_as(0, 0), ino, fh)
    }

    pub fn getattr_as(
        &self,
        caller: Caller,
        ino: u64,
        fh: Option<FileHandle>,
    ) -> Result<Attr, Errno> {
        ask(|done| self.0.getattr(caller, ino, fh, done))
    }

    pub fn setattr(
        &self,
        ino: u64,
        fh: Option<FileHandle>,
        set: SetAttributes,
    ) -> Result<Attr, Errno> {
        ask(|done| self.0.setattr(caller(), ino, fh, set, done))
    }

    pub fn try_create(
        &self,
        parent: u64,
        name: &[u8],
        mode: u32,
        flags: i32,
    ) -> Result<(u64, FileHandle), Errno> {
        let new = new_node(Kind::File, mode);
        let created = ask(|done| self.0.create(caller(), parent, name, new, flags, done));
        created.map(|(attr, opened)| (attr.ino, opened.fh))
    }

    pub fn create(&self, parent: u64, name: &[u8], mode: u32) -> (u64, FileHandle) {
        self.try_create(parent, name, mode, libc::O_RDWR | libc::O_EXCL)
            .unwrap()
    }

    pub fn make(&self, parent: u64, name: &[u8], kind: Kind) -> Result<Attr, Errno> {
        ask(|done| {
            self.0
                .make(caller(), parent, name, new_node(kind, 0o755), done)
        })
    }

    pub fn open(&self, ino: u64, flags: i32) -> Result<FileHandle, Errno> {
        ask(|done| self.0.open(caller(), ino, flags, done)).map(|opened| opened.fh)
    }

    pub fn read(&self, fh: FileHandle, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        self.read_as(0, fh, offset, size)
    }

    pub fn read_as(
        &self,
        pid: u32,
        fh: FileHandle,
        offset: u64,
        size: u32,
    ) -> Result<Vec<u8>, Errno> {
        let transfer = Transfer {
            pid,
            ..THROUGH_READ_AND_WRITE
        };
        ask(|done| {
            let copy = Box::new(|read: Result<&[u8], Errno>| done(read.map(<[u8]>::to_vec)));
            self.0.read(fh, offset, size, transfer, copy);
        })
    }

    pub fn read_all(&self, ino: u64) -> Result<Vec<u8>, Errno> {
        let fh = self.open(ino, libc::O_RDONLY)?;
        let mut content = Vec::new();
        loop {
            let piece = self.read(fh, content.len() as u64, 50_000)?;
            if piece.is_empty() {
                break;
            }
            content.extend_from_slice(&piece);
        }
        self.release(fh);
        Ok(content)
    }

    pub fn write(&self, fh: FileHandle, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        ask(|done| self.0.write(fh, offset, data, THROUGH_READ_AND_WRITE, done))
    }

    pub fn flush(&self, fh: FileHandle) -> Result<(), Errno> {
        ask(|done| self.0.flush(fh, std::process::id(), 1, done))
    }

    pub fn fsync(&self, fh: FileHandle) -> Result<(), Errno> {
        ask(|done| self.0.fsync(fh, done))
    }

    pub fn release(&self, fh: FileHandle) {
        self.0.release(fh);
    }

    pub fn link(&self, ino: u64, parent: u64, name: &[u8]) -> Result<Attr, Errno> {
        ask(|done| self.0.link(caller(), ino, (parent, name), done))
    }

    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<(), Errno> {
        ask(|done| self.0.unlink(caller(), parent, name, done))
    }

    pub fn rmdir(&self, parent: u64, name: &[u8]) -> Result<(), Errno> {
        ask(|done| self.0.rmdir(caller(), parent, name, done))
    }

    pub fn rename(
        &self,
        from: (u64, &[u8]),
        to: (u64, &[u8]),
        mode: RenameMode,
    ) -> Result<(), Errno> {
        ask(|done| self.0.rename(caller(), from, to, mode, done))
    }

    /// All names of a directory but the dots, with their nodes.
    pub fn list(&self, ino: u64) -> Result<Vec<(Vec<u8>, u64)>, Errno> {
        let fh = self.0.open_directory(ino)?;
        let mut names = Vec::new();
        let outcome = self.0.read_directory(ino, fh, 0, |entry: &DirectoryEntry| {
            names.push((entry.name.clone(), entry.ino));
            false
        });
        self.0.release_directory(fh);
        names.retain(|(name, _)| name != b"." && name != b"..");
        names.sort();
        outcome.map(|()| names)
    }

    pub fn finish(self) {
        self.0.finish(Ending::Orderly).unwrap();
    }

    pub fn abort(self) {
        self.0.finish(Ending::Aborted).unwrap();
    }
}
