//! Speaks to the socket of a vault that is mounted for writing, as anybody might.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub fn socket_of(vault: &Path) -> PathBuf {
    vault.join("control.sock")
}

/// The line that asks `question` of the vault there.
pub fn line(vault: &Path, question: &str) -> String {
    let directory = std::fs::metadata(vault).expect("a vault");
    format!("{}:{} {question}\n", directory.dev(), directory.ino())
}

pub fn connect(vault: &Path) -> std::io::Result<UnixStream> {
    UnixStream::connect(socket_of(vault))
}

/// Sends `bytes`; all that is answered, to the end.
pub fn send(vault: &Path, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(vault).expect("somebody listens");
    // Who is refused is not read.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

/// The answer to a question.
#[track_caller]
pub fn ask(vault: &Path, question: &str) -> Value {
    let answer = send(vault, line(vault, question).as_bytes());
    assert_eq!(
        answer.iter().filter(|byte| **byte == b'\n').count(),
        1,
        "one line"
    );
    serde_json::from_slice(&answer).expect("JSON")
}
