//! The file systems that are compared: how each is prepared, mounted and unmounted.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::floor;
use crate::kind::Kind;
use crate::mounted::{Mounted, is_mounted, processes_that_name};

/// What is compared, and where.
pub struct Setting {
    /// The directory of the run; everything is inside.
    pub dir: PathBuf,
    pub secretfs: PathBuf,
    pub before: Option<PathBuf>,
    /// More options of `secretfs mount`.
    pub options: Vec<String>,
    /// How many threads of secretfs read requests, if not as many as it chooses.
    pub threads: Option<usize>,
    /// As many have the floor.
    pub floor_threads: usize,
}

/// One tree of files as one file system stores it.
pub struct System<'a> {
    pub kind: Kind,
    setting: &'a Setting,
    /// Which tree.
    tree: String,
}

impl<'a> System<'a> {
    pub fn new(setting: &'a Setting, kind: Kind, tree: &str) -> Self {
        Self {
            kind,
            setting,
            tree: tree.to_owned(),
        }
    }

    /// Where everything of this tree is.
    pub fn home(&self) -> PathBuf {
        let home = self.setting.dir.join("trees").join(&self.tree);
        home.join(self.kind.directory())
    }

    /// What is stored.
    pub fn backing(&self) -> PathBuf {
        self.home().join("backing")
    }

    pub fn point(&self) -> PathBuf {
        let points = self.setting.dir.join("mounts").join(&self.tree);
        points.join(self.kind.name().replace(' ', ""))
    }

    /// Makes an empty one, unless there is one. Tells whether it was made.
    pub fn prepare(&self) -> Result<bool, Failure> {
        fs::create_dir_all(self.point())?;
        if self.backing().exists() {
            return Ok(false);
        }
        fs::create_dir_all(self.home())?;
        fs::write(self.home().join("password"), "bench\n")?;
        let made = self.backing().with_extension("new");
        let _ = fs::remove_dir_all(&made);
        match self.kind {
            Kind::Secretfs | Kind::Before => {
                self.run(self.secretfs()?.arg("init").arg(&made))?;
            }
            Kind::Gocryptfs | Kind::GocryptfsX => {
                fs::create_dir(&made)?;
                let mut init = Command::new("gocryptfs");
                init.args(["-init", "-q", "-scryptn", "10", "-passfile"]);
                init.arg(self.home().join("password"));
                if self.kind == Kind::GocryptfsX {
                    init.arg("-xchacha");
                }
                self.run(init.arg(&made))?;
            }
            Kind::Securefs => {
                fs::create_dir(&made)?;
                let mut create = Command::new("securefs");
                create.args(["create", "--pass", "bench", "--rounds", "1"]);
                self.run(create.arg(&made))?;
            }
            Kind::Cryfs | Kind::Bindfs | Kind::Tmpfs | Kind::Floor | Kind::FloorSqlite => {
                fs::create_dir(&made)?;
            }
        }
        fs::rename(made, self.backing())?;
        Ok(true)
    }

    fn secretfs(&self) -> Result<Command, Failure> {
        let program = match (self.kind, &self.setting.before) {
            (Kind::Before, Some(before)) => before,
            _ => &self.setting.secretfs,
        };
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.as_bytes().starts_with(b"SECRETFS_") || name.as_bytes().starts_with(b"AWS_") {
                command.env_remove(name);
            }
        }
        let home = self.home();
        command
            .env("SECRETFS_LOCAL_KMS_DIR", home.join("kms"))
            .env("SECRETFS_ANCHOR_DIR", home.join("anchors"))
            .env("XDG_CONFIG_HOME", home.join("config"))
            .env("XDG_DATA_HOME", home.join("data"))
            .env("XDG_STATE_HOME", home.join("state"));
        Ok(command)
    }

    /// What mounts it and returns when it is mounted. `large` lets files of 64 MiB in.
    fn mount_command(&self, large: bool) -> Result<Command, Failure> {
        let (backing, point) = (self.backing(), self.point());
        let password = self.home().join("password");
        let mut command;
        match self.kind {
            Kind::Secretfs | Kind::Before => {
                command = self.secretfs()?;
                command.arg("mount").arg(backing).arg(point);
                command.arg("--log-file").arg(self.home().join("log"));
                if self.kind == Kind::Secretfs {
                    command.args(&self.setting.options);
                }
                if let Some(threads) = self.setting.threads {
                    command.args(["--threads", &threads.to_string()]);
                }
                if large {
                    command.args(["--max-secret-size", "256M", "--max-memory", "1G"]);
                }
            }
            Kind::Gocryptfs | Kind::GocryptfsX => {
                command = Command::new("gocryptfs");
                command.args(["-q", "-passfile"]).arg(password);
                command.arg(backing).arg(point);
            }
            Kind::Securefs => {
                command = Command::new("securefs");
                command.args(["mount", "-b", "--pass", "bench"]);
                command.arg(backing).arg(point);
            }
            Kind::Cryfs => {
                command = Command::new("cryfs");
                command.arg(backing).arg(point);
                command
                    .env("CRYFS_FRONTEND", "noninteractive")
                    .env("CRYFS_NO_UPDATE_CHECK", "true")
                    .env("CRYFS_LOCAL_STATE_DIR", self.home().join("state"))
                    .stdin(File::open(password)?);
                return Ok(command);
            }
            Kind::Bindfs => {
                command = Command::new("bindfs");
                command.arg(backing).arg(point);
            }
            Kind::Tmpfs => {
                command = Command::new("mount");
                command.args(["-t", "tmpfs", "-o", "size=512M", "tmpfs"]);
                command.arg(point);
            }
            Kind::Floor | Kind::FloorSqlite => {
                let database = backing.with_extension("db");
                command = Command::new(std::env::current_exe()?);
                command.arg(floor::SERVE).arg(backing).arg(point);
                command.arg(self.setting.floor_threads.to_string());
                if self.kind == Kind::FloorSqlite {
                    command.arg(database);
                }
            }
        }
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// Mounts it.
    pub fn mount(&self) -> Result<Mounted, Failure> {
        self.mount_for(false)
    }

    /// Mounts it, with room for files of 128 MiB if they are `large`.
    pub fn mount_for(&self, large: bool) -> Result<Mounted, Failure> {
        self.mount_by(self.mount_command(large)?)
    }

    fn mount_by(&self, mut command: Command) -> Result<Mounted, Failure> {
        let point = self.point();
        let mut mounted = Mounted {
            kind: self.kind,
            point,
            pids: Vec::new(),
        };
        if matches!(self.kind, Kind::Floor | Kind::FloorSqlite) {
            // It stays in the foreground.
            let mut child = command
                .stdout(self.output()?)
                .stderr(self.output()?)
                .spawn()?;
            let deadline = Instant::now() + Duration::from_secs(20);
            while !is_mounted(&mounted.point) {
                if child.try_wait()?.is_some() || Instant::now() > deadline {
                    return Err(self.said("did not mount"));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        } else {
            self.run(&mut command)?;
        }
        // securefs returns a moment before.
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_mounted(&mounted.point) {
            if Instant::now() > deadline {
                return Err(self.said("did not mount"));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        mounted.pids = processes_that_name(&mounted.point);
        if mounted.pids.is_empty() && self.kind != Kind::Tmpfs {
            return Err(self.said("has no daemon"));
        }
        Ok(mounted)
    }

    /// Mounts secretfs with more options, and no larger files than it lets in by itself.
    pub fn mount_with(&self, options: &[&str]) -> Result<Mounted, Failure> {
        let mut command = self.mount_command(false)?;
        command.args(options);
        self.mount_by(command)
    }

    fn output(&self) -> Result<Stdio, Failure> {
        let path = self.home().join("output");
        Ok(File::options().append(true).create(true).open(path)?.into())
    }

    /// Runs a command that must succeed. Its output goes to a file, which a daemon may keep open.
    fn run(&self, command: &mut Command) -> Result<(), Failure> {
        let _ = fs::remove_file(self.home().join("output"));
        command.stdout(self.output()?).stderr(self.output()?);
        match command.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(self.said(&format!("failed ({status})"))),
            Err(e) => Err(self.said(&format!("cannot be started ({e})"))),
        }
    }

    fn said(&self, what: &str) -> Failure {
        let output = fs::read(self.home().join("output")).unwrap_or_default();
        let output = String::from_utf8_lossy(&output);
        let name = self.kind.name();
        Failure(format!("{name} {what}; it said: {}", output.trim()))
    }
}
