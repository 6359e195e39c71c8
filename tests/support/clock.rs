//! Programs whose clock is another.

use std::path::PathBuf;
use std::process::Command;

/// The library, where Debian has it.
pub fn faketime() -> PathBuf {
    let found = std::fs::read_dir("/usr/lib").expect("libraries").flatten();
    let library = found
        .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.exists());
    library.expect("this test needs libfaketime: scripts/test installs it")
}

/// Starts `command` with a clock that is `ahead`, `+89d` for one, and runs on from there.
pub fn ahead(command: &mut Command, ahead: &str) {
    command
        .env("LD_PRELOAD", faketime())
        .env("FAKETIME", ahead)
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}
