//! Runs the real program on real mounts. Everything a test makes is gone when it ends, however it
//! ends.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_secretfs");

/// A directory with room for a vault `v` and a mount point `m`.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// An empty place.
    pub fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests must run as root"
        );
        assert!(
            Path::new("/dev/fuse").exists(),
            "these tests need /dev/fuse"
        );
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("m")).expect("a mount point");
        Self { dir }
    }

    /// A place with a new vault.
    pub fn with_vault() -> Self {
        let place = Self::new();
        place
            .run(["init".as_ref(), place.vault().as_os_str()])
            .succeeded();
        place
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Leaves everything but mounts and processes where it is, to be looked at.
    pub fn keep(&mut self) {
        self.dir.disable_cleanup(true);
    }

    pub fn vault(&self) -> PathBuf {
        self.dir.path().join("v")
    }

    pub fn point(&self) -> PathBuf {
        self.dir.path().join("m")
    }

    /// The program with an environment of its own: no settings, keys and anchors inside the place.
    pub fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        for (name, _) in std::env::vars_os() {
            if name.as_bytes().starts_with(b"SECRETFS_") || name.as_bytes().starts_with(b"AWS_") {
                command.env_remove(name);
            }
        }
        command
            .env_remove("CREDENTIALS_DIRECTORY")
            .env("SECRETFS_LOCAL_KMS_DIR", self.path().join("kms"))
            .env("SECRETFS_ANCHOR_DIR", self.path().join("anchors"))
            .env("XDG_CONFIG_HOME", self.path().join("config"))
            .env("XDG_DATA_HOME", self.path().join("data"))
            .env("XDG_STATE_HOME", self.path().join("state"))
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub fn run<I, S>(&self, args: I) -> Ran
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        Ran(self
            .command()
            .args(args)
            .output()
            .expect("the program runs"))
    }

    /// `mount` in the background, with more arguments.
    pub fn mount(&self, more: &[&str]) -> Ran {
        let mut command = self.command();
        command
            .arg("mount")
            .arg(self.vault())
            .arg(self.point())
            .args(more);
        Ran(command.output().expect("the program runs"))
    }

    /// `mount -f`, with more arguments; returns when the mount is announced.
    pub fn serve(&self, more: &[&str]) -> Server {
        let mut command = self.command();
        command
            .arg("mount")
            .arg(self.vault())
            .arg(self.point())
            .arg("-f")
            .args(more);
        Server::start(command)
    }

    /// Whether secretfs is mounted on the mount point.
    pub fn is_mounted(&self) -> bool {
        types_at(&self.point()).iter().any(|t| t == "fuse.secretfs")
    }

    /// The daemons that serve mounts in this place.
    pub fn daemons(&self) -> Vec<i32> {
        let place = self.path().as_os_str().as_bytes();
        let processes = std::fs::read_dir("/proc").expect("/proc");
        let pids = processes
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            *pid != std::process::id() as i32
                && line.windows(5).any(|w| w == b"mount")
                && line.windows(place.len()).any(|w| w == place)
        })
        .collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for pid in self.daemons() {
            kill(pid, libc::SIGKILL);
        }
        while !types_at(&self.point()).is_empty() {
            if !Command::new("umount")
                .arg("-l")
                .arg(self.point())
                .status()
                .is_ok_and(|s| s.success())
            {
                break;
            }
        }
    }
}

/// The types of all mounts on `point`, from the lowest.
pub fn types_at(point: &Path) -> Vec<String> {
    let text = std::fs::read("/proc/self/mountinfo").expect("mountinfo");
    let text = String::from_utf8_lossy(&text);
    let wanted = point.to_string_lossy().into_owned();
    text.lines()
        .filter(|line| line.split(' ').nth(4) == Some(wanted.as_str()))
        .filter_map(|line| {
            line.split(" - ")
                .nth(1)?
                .split(' ')
                .next()
                .map(str::to_owned)
        })
        .collect()
}

/// What a finished program left.
pub struct Ran(pub Output);

impl Ran {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    /// It succeeded, and had nothing to complain about. That `umount` had to wait is no complaint: a
    /// busy disk does that, and so do other tests, whose namespaces have copies of every mount while
    /// they begin.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert!(
            self.0.status.success(),
            "{:?}: {}{}",
            self.0.status,
            self.stdout(),
            self.stderr()
        );
        let said = self.stderr();
        let mut complaints = said
            .lines()
            .filter(|line| !line.ends_with("; waiting for that"));
        assert_eq!(complaints.next(), None, "{said}");
        self
    }

    /// It failed with `code` and exactly one line, which holds `part`.
    #[track_caller]
    pub fn failed(self, code: i32, part: &str) -> Self {
        let said = self.stderr();
        assert_eq!(self.0.status.code(), Some(code), "{said}");
        assert!(
            said.ends_with('\n') && said.lines().count() == 1,
            "not one line: {said:?}"
        );
        assert!(
            said.starts_with("secretfs: ") || said.starts_with("mount.secretfs: "),
            "{said}"
        );
        assert!(said.contains(part), "{said:?} does not say {part:?}");
        self
    }
}

/// A server in the foreground.
/// It ends with the thread that started it.
pub struct Server {
    child: Child,
}

impl Server {
    /// Starts `command` and waits until it announces its mount.
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        super::child::not_outliving_us(&mut command);
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut server = Self {
            child: child.expect("the program runs"),
        };
        let mut said = Vec::new();
        let mut byte = [0];
        let stdout = server.child.stdout.as_mut().expect("piped");
        while !said.ends_with(b"\n") && stdout.read(&mut byte).is_ok_and(|n| n == 1) {
            said.push(byte[0]);
        }
        let said = String::from_utf8_lossy(&said).into_owned();
        if !said.contains(" is mounted on ") {
            let mut why = String::new();
            let _ = server
                .child
                .stderr
                .take()
                .map(|mut e| e.read_to_string(&mut why));
            panic!("no mount: {said:?} {why:?}");
        }
        server
    }

    pub fn signal(&self, signal: i32) {
        kill(self.pid(), signal);
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Waits for its end; its code, and its log.
    #[track_caller]
    pub fn ended(mut self, within: Duration) -> (Option<i32>, String) {
        wait_for("the end of the server", within, || !self.is_running());
        let mut log = String::new();
        let _ = self
            .child
            .stderr
            .take()
            .map(|mut e| e.read_to_string(&mut log));
        (self.child.wait().expect("a child").code(), log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets go of the mounts of tests beside this one: a copy would keep their daemons alive.
const ALONE: &str = r#"
sed -n 's/^[^ ]* [^ ]* [^ ]* [^ ]* \([^ ]*\) .* - fuse\.secretfs .*/\1/p' /proc/self/mountinfo |
while read -r point; do
    case $point in
        "$PLACE"/*) ;;
        *) umount -i -c -l "$(printf "$point")" 2> /dev/null || true ;;
    esac
done
exec "$@"
"#;

/// Begins a program, to be added with its arguments, in a mount namespace of its own. It has the
/// environment of the place, and the path of that in `PLACE`.
pub fn in_own_namespace(place: &Place) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["-m", "--propagation", "private", "sh", "-c", ALONE, "sh"])
        .envs(
            place
                .command()
                .get_envs()
                .filter_map(|(k, v)| Some((k, v?))),
        )
        .env("PLACE", place.path())
        .stdin(Stdio::null());
    command
}

/// A server with a mount namespace of its own: nobody outside sees its mount, save through
/// `/proc/PID/root`.
pub fn apart(place: &Place, point: &str, options: &str) -> Server {
    std::fs::create_dir_all(place.path().join(point)).expect("a mount point");
    let mut command = in_own_namespace(place);
    command
        .args([PROGRAM, "mount"])
        .arg(place.vault())
        .arg(place.path().join(point))
        .args(["-f", "-o", options]);
    Server::start(command)
}

/// The mount of a server, as seen from here.
pub fn root_of(place: &Place, server: &Server, point: &str) -> PathBuf {
    let root = PathBuf::from(format!("/proc/{}/root", server.pid()));
    root.join(
        place
            .path()
            .join(point)
            .strip_prefix("/")
            .expect("absolute"),
    )
}

/// Does what lets all others go on, if the test fails while this is there: threads of a scope are
/// waited for, and would wait for something that never comes.
pub struct OnFailure<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for OnFailure<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0)();
        }
    }
}

/// What a mount tells of itself.
#[track_caller]
pub fn status(point: &Path) -> serde_json::Value {
    let text = std::fs::read(point.join(".secretfs/status")).expect("a status");
    serde_json::from_slice(&text).expect("JSON")
}

/// Unmounts lazily: a program that another thread is just about to run may have copies of
/// descriptors, for which the mount would be busy.
#[track_caller]
pub fn detach(point: &Path) {
    system("umount", &["-l".as_ref(), point.as_os_str()]);
}

/// Cuts the connection to the kernel, as an operator does. A daemon that is stopped can be meant.
pub fn abort(place: &Place) {
    let control = place.path().join("fusectl");
    std::fs::create_dir_all(&control).expect("made");
    // Nothing is asked of the daemon for that.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("a list");
    let point = place.point().display().to_string();
    let fields = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut mounts = mounts.lines().map(fields);
    let mount = mounts.find(|mount| mount[4] == point).expect("mounted");
    let (_, device) = mount[2].split_once(':').expect("a device");
    let args = ["-t", "fusectl", "none"].map(AsRef::<OsStr>::as_ref);
    system("mount", &[args[0], args[1], args[2], control.as_os_str()]);
    let written = std::fs::write(control.join(device).join("abort"), "1");
    system("umount", &[control.as_os_str()]);
    written.expect("aborted");
}

pub fn kill(pid: i32, signal: i32) {
    // SAFETY: no memory is involved.
    unsafe { libc::kill(pid, signal) };
}

/// Waits until `done`, but not longer than `within`.
#[track_caller]
pub fn wait_for(what: &str, within: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a system command that must succeed.
#[track_caller]
pub fn system(program: &str, args: &[&OsStr]) {
    let output = Command::new(program).args(args).output().expect("it runs");
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
