//! Virtual environments of Python, with packages of pinned versions. `scripts/test` makes the same ones
//! before the tests.
//!
//! Never skips: if one cannot be made, the test fails and says why.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Python of the environment `NAME-venv`, which the first caller makes.
pub fn python(name: &str, packages: &[&str]) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("the target directory");
    let venv = target.join(format!("{name}-venv"));
    let stamp = venv.join("complete");
    let wanted = packages.join("\n");
    // Test binaries run at once; the first makes it, the others wait.
    let lock = File::create(target.join(format!("{name}-venv.lock"))).unwrap();
    lock.lock().unwrap();
    if fs::read_to_string(&stamp).ok().as_deref() != Some(&wanted) {
        if venv.exists() {
            fs::remove_dir_all(&venv).unwrap();
        }
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
        let pip = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ];
        run(Command::new(venv.join("bin/python"))
            .args(pip)
            .args(packages));
        fs::write(&stamp, wanted).unwrap();
    }
    venv.join("bin/python")
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| {
        panic!("the test needs python3 with its venv module; cannot run {command:?}: {e}")
    });
    assert!(
        output.status.success(),
        "the test needs a virtual environment; {command:?} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
