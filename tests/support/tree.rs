//! A mounted vault in which programs are run and system calls are made, also as other users.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::process::{Place, Ran, wait_for};

/// A user without any privileges, and another.
pub const ALICE: u32 = 4001;
pub const BOB: u32 = 4002;
/// Their own groups have the same numbers; this one can be given to either.
pub const STAFF: u32 = 4100;

/// A mounted vault, and a directory beside the mount on the file system of the machine.
pub struct Tree {
    place: Place,
}

impl Tree {
    /// Mounted so that all users reach it and programs in it run.
    pub fn new() -> Self {
        Self::with_options("allow_other,exec")
    }

    pub fn with_options(options: &str) -> Self {
        let place = Place::with_vault();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(place.path(), open).expect("chmod");
        std::fs::create_dir(place.path().join("beside")).expect("a directory");
        let tree = Self { place };
        tree.mount(options);
        tree
    }

    fn mount(&self, options: &str) {
        let log = format!("log-file={}", self.place.path().join("log").display());
        self.place.mount(&["-o", options, "-o", &log]).succeeded();
    }

    /// The mount point.
    pub fn root(&self) -> PathBuf {
        self.place.point()
    }

    /// A path in the mount.
    pub fn at(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// A path outside of it.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.place.path().join("beside").join(name)
    }

    /// A directory in the mount that everybody may write to.
    pub fn shared(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.at(name);
        std::fs::create_dir(&path).expect("a directory");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&path, mode).expect("chmod");
        path
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(self.root())
            .env("BESIDE", self.place.path().join("beside"))
            .env("MOUNT", self.root())
            .env("HOME", self.place.path().join("beside"))
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn run(&self, program: &str, args: &[&str]) -> String {
        let output = self.command(program, args).output();
        let output = Ran(output.unwrap_or_else(|e| panic!("{program} cannot be run: {e}")));
        assert!(
            output.0.status.success(),
            "{:?}\n{}{}",
            output.0.status,
            output.stdout(),
            output.stderr()
        );
        output.stdout()
    }

    /// Runs a script in the mount, which ends at the first command that fails; `$BESIDE` is the
    /// directory beside the mount. Returns what it printed.
    #[track_caller]
    pub fn bash(&self, script: &str) -> String {
        self.run("bash", &["-euo", "pipefail", "-c", script])
    }

    /// Runs a Python program in the mount.
    #[track_caller]
    pub fn python(&self, program: &str) -> String {
        self.run("python3", &["-c", program])
    }

    /// Starts a script that goes on.
    pub fn start(&self, script: &str) -> Background {
        let command = self
            .command(
                "bash",
                &["-euo", "pipefail", "-c", &format!("exec {script}")],
            )
            .stdout(Stdio::null())
            .process_group(0)
            .spawn();
        Background(command.expect("bash runs"))
    }

    /// Unmounts and mounts again.
    pub fn remount(&self) {
        self.remount_with("allow_other,exec");
    }

    /// Unmounts and mounts again with other options.
    pub fn remount_with(&self, options: &str) {
        self.unmount();
        self.mount(options);
    }

    /// Unmounts, as soon as programs that are ending have let go of it.
    #[track_caller]
    fn unmount(&self) {
        wait_for("programs to end", Duration::from_secs(60), || {
            let ran = self.place.run(["umount".as_ref(), self.root().as_os_str()]);
            let busy = ran.0.status.code() == Some(7);
            assert!(busy || ran.0.status.success(), "{}", ran.stderr());
            !busy
        });
        wait_for("the daemon's end", Duration::from_secs(60), || {
            self.place.daemons().is_empty()
        });
    }

    /// Unmounts: the vault is sound, and nothing was complained about.
    #[track_caller]
    pub fn ends_sound(self) {
        self.unmount();
        let vault = self.place.vault();
        self.place
            .run(["check".as_ref(), vault.as_os_str()])
            .succeeded();
        let log = std::fs::read_to_string(self.place.path().join("log")).expect("a log");
        let complaints: Vec<_> = log
            .lines()
            .filter(|line| line.contains("ERROR") || line.contains("panic"))
            .collect();
        assert!(complaints.is_empty(), "{complaints:#?}");
    }
}

/// A program that is killed, with all its children, when the test is over.
pub struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        super::process::kill(-(self.0.id() as i32), libc::SIGKILL);
        let _ = self.0.wait();
    }
}

/// These programs are on this machine.
#[track_caller]
pub fn needs(programs: &[&str]) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all: Vec<_> = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .collect();
    for program in programs {
        let found = all.iter().any(|dir| dir.join(program).is_file());
        assert!(found, "this test needs {program}: scripts/test installs it");
    }
}

/// What `call` returns when a user without privileges makes it.
pub fn as_user<T: Send>(uid: u32, groups: &[u32], call: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            become_user(uid, groups);
            call()
        });
        thread
            .join()
            .unwrap_or_else(|why| std::panic::resume_unwind(why))
    })
}

/// The system calls themselves change one thread alone; it is the C library that tells the others.
fn become_user(uid: u32, groups: &[u32]) {
    // SAFETY: the list is as long as it is said to be, and nothing else is passed by address.
    let outcome = unsafe {
        // The umask and the working directory become the thread's own, too.
        libc::unshare(libc::CLONE_FS)
            | libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) as i32
            | libc::syscall(libc::SYS_setresgid, uid, uid, uid) as i32
            | libc::syscall(libc::SYS_setresuid, uid, uid, uid) as i32
    };
    assert_eq!(outcome, 0, "{}", std::io::Error::last_os_error());
}

/// Runs `call` with another umask.
pub fn with_umask<T: Send>(mask: u32, call: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: no memory is involved.
            unsafe {
                assert_eq!(libc::unshare(libc::CLONE_FS), 0);
                libc::umask(mask);
            }
            call()
        });
        thread
            .join()
            .unwrap_or_else(|why| std::panic::resume_unwind(why))
    })
}

/// The error number of what failed; 0 for what did not.
pub fn errno<T>(result: std::io::Result<T>) -> i32 {
    result.err().map_or(0, |e| e.raw_os_error().unwrap_or(-1))
}

/// The result of a system call that returns -1 when it fails.
pub fn sys(result: impl Into<i64>) -> std::io::Result<i64> {
    match result.into() {
        -1 => Err(std::io::Error::last_os_error()),
        n => Ok(n),
    }
}

/// `close` that tells.
pub fn closed(file: std::fs::File) -> std::io::Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor was owned by `file`, and by nobody from here on.
    sys(unsafe { libc::close(file.into_raw_fd()) }).map(drop)
}

/// A path as system calls want it.
pub fn c(path: impl AsRef<Path>) -> std::ffi::CString {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::CString::new(path.as_ref().as_os_str().as_bytes()).expect("no NUL")
}
