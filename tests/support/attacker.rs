//! A program of another user, in a process of its own, that takes as much as it is given.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::sys::resource::Resource;

use super::child;
use super::process::Place;

/// Its user, who has nothing to do with the mount.
pub const ATTACKER: u32 = 65534;

/// It runs a Python script that tells a line when it has taken what it gets, and keeps that until it
/// is told to go on.
pub struct Attacker {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Attacker {
    /// `script` has the modules `errno`, `os` and `sys`, the arguments in `sys.argv[1:]`, and `told(x)`.
    pub fn start(script: &str, arguments: &[&Path]) -> Self {
        // An interpreter that root has installed for itself runs for nobody else.
        let prelude = format!(
            "import errno, os, sys
os.setgroups([])
os.setresgid({ATTACKER}, {ATTACKER}, {ATTACKER})
os.setresuid({ATTACKER}, {ATTACKER}, {ATTACKER})
def told(x):
    print(x, flush=True)
    sys.stdin.readline()
"
        );
        let mut command = Command::new("python3");
        command
            .args(["-c", &format!("{prelude}{script}")])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        child::limited(&mut command, Resource::RLIMIT_NOFILE, 20_000);
        child::not_outliving_us(&mut command);
        let mut child = command.spawn().expect("python3 runs");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self {
            child,
            input,
            output,
        }
    }

    /// The next line that it tells.
    #[track_caller]
    pub fn told(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        assert!(line.ends_with('\n'), "the attacker has failed");
        line.trim_end().to_owned()
    }

    pub fn go_on(&mut self) {
        let input = self.input.as_mut().expect("it is there");
        input.write_all(b"\n").expect("it listens");
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A vault in a place that all users can come to.
pub fn open_place() -> Place {
    let place = Place::with_vault();
    let mode = PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(place.path(), mode).expect("a mode");
    place
}

/// All may do with `path` whatever there is to do.
pub fn open_to_all(path: &Path) {
    let mode = if path.is_dir() { 0o777 } else { 0o666 };
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("a mode");
}
