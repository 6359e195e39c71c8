//! Has core files written to a directory of the test.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// While there is one, a process that crashes in this directory leaves its core file there.
pub struct CoreFiles(Option<Child>);

impl CoreFiles {
    pub fn go_to(directory: &Path) -> Self {
        let pattern = fs::read_to_string(PATTERN).expect("a pattern");
        if !pattern.contains('/') && !pattern.starts_with('|') {
            // To wherever the process is.
            return Self(None);
        }
        // The pattern is that of the whole machine. Whoever sets it puts it back when we end,
        // however that is, and has it locked until then.
        let script = r#"exec 9<"$0"; flock 9; before=$(cat "$0"); printf %s "$1" >"$0" || exit 1
            echo set; cat >/dev/null; printf %s "$before" >"$0""#;
        let mut keeper = Command::new("sh")
            .args(["-c", script, PATTERN])
            .arg(directory.join("core.%p"))
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut said = String::new();
        let stdout = BufReader::new(keeper.stdout.as_mut().expect("piped")).read_line(&mut said);
        stdout.expect("readable");
        assert_eq!(said, "set\n", "{PATTERN} cannot be set");
        Self(Some(keeper))
    }
}

impl Drop for CoreFiles {
    fn drop(&mut self) {
        if let Some(keeper) = &mut self.0 {
            keeper.stdin = None;
            let _ = keeper.wait();
        }
    }
}
