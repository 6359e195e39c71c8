//! Every fuzz target on its committed corpus, and on mutations of it. `scripts/fuzz` does the same
//! for longer, guided by coverage; `SECRETFS_FUZZ_ROUNDS` multiplies the mutations here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(corpora().join(target))
        .expect("a corpus")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    let inputs: Vec<_> = files
        .iter()
        .map(|file| std::fs::read(file).expect("an input"))
        .collect();
    assert!(inputs.len() >= 3, "the corpus of {target} is empty");
    inputs
}

/// The same numbers in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % sides.max(1)
    }

    fn mutate(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = corpus[self.roll(corpus.len())].clone();
        for _ in 0..=self.roll(4) {
            let at = self.roll(input.len());
            match self.roll(8) {
                // The first byte selects what is tried: that it stays is as good.
                0 | 1 if input.len() > 1 => {
                    let at = 1 + self.roll(input.len() - 1);
                    input[at] ^= 1 << self.roll(8);
                }
                2 if !input.is_empty() => {
                    input[at] = [0, 1, 0x7f, 0x80, 0xff][self.roll(5)];
                }
                3 => input.truncate(at),
                4 => input.insert(self.roll(input.len() + 1), self.roll(256) as u8),
                5 if !input.is_empty() => drop(input.remove(at)),
                6 => {
                    let other = &corpus[self.roll(corpus.len())];
                    let from = self.roll(other.len());
                    input.truncate(at);
                    input.extend(&other[from..]);
                }
                _ => {
                    let number = [0, u64::MAX, 1 << 32, 1 << 20, 65_536][self.roll(5)];
                    let end = (at + 8).min(input.len());
                    input[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
                }
            }
        }
        input
    }
}

fn explore(target: &str, mutations: usize) {
    // The bound on allocations holds for the whole process.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let corpus = corpus(target);
    for input in &corpus {
        crate::bodies::run(target, input);
    }
    let times = match std::env::var("SECRETFS_FUZZ_ROUNDS") {
        Ok(times) => times.parse().expect("SECRETFS_FUZZ_ROUNDS is a number"),
        Err(_) => 1,
    };
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for round in 0..mutations * times {
        let input = dice.mutate(&corpus);
        let told = std::panic::catch_unwind(|| crate::bodies::run(target, &input));
        assert!(told.is_ok(), "{target}, round {round}: {input:02x?}");
    }
}

#[test]
fn headers_and_keyrings_of_any_bytes_are_refused_or_genuine() {
    explore("keyring", 20_000);
}

#[test]
fn nodes_of_any_bytes_are_refused_or_genuine() {
    explore("node", 20_000);
}

#[test]
fn entries_versions_chunks_states_and_events_of_any_bytes_are_refused_or_genuine() {
    explore("records", 20_000);
}

#[test]
fn anchors_and_lock_files_of_any_bytes_are_refused_or_harmless() {
    explore("anchor", 10_000);
}

#[test]
fn local_keys_and_their_blobs_of_any_bytes_are_refused_or_genuine() {
    explore("local_kms", 5_000);
}

#[test]
fn settings_of_any_bytes_are_refused_in_one_line_or_within_bounds() {
    explore("settings", 20_000);
}

#[test]
fn databases_and_logs_of_any_bytes_are_refused_or_read_back_as_written() {
    explore("database", 1_000);
}

#[test]
fn requests_with_any_bytes_are_answered_and_harm_nothing() {
    explore("requests", 2_000);
}

#[test]
fn answers_of_any_bytes_in_place_of_aws_kms_are_told_in_one_line() {
    // Configured by the environment, which belongs to a whole process.
    let pid = std::process::id();
    let endpoint = format!("http://127.{}.{}.7:7411", pid >> 8 & 0xff, pid & 0xff);
    let nowhere = tempfile::tempdir().expect("a directory");
    let status = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "corpora::aws_child", "--ignored", "--nocapture"])
        .env("AWS_ENDPOINT_URL_KMS", endpoint)
        .env("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        .env("AWS_SECRET_ACCESS_KEY", "example")
        .env("AWS_REGION", "eu-central-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("NO_PROXY", "*")
        .env("HOME", nowhere.path())
        .status()
        .expect("it runs");
    assert!(status.success(), "{status}");
}

#[test]
#[ignore = "runs within another test"]
fn aws_child() {
    explore("aws_answer", 2_000);
}

#[test]
fn every_target_has_its_corpus_and_its_program() {
    for (target, _) in crate::bodies::TARGETS {
        corpus(target);
        let program = corpora().join(format!("../fuzz_targets/{target}.rs"));
        let text = std::fs::read_to_string(program).expect("a program");
        assert!(text.contains(&format!("crate::bodies::run(\"{target}\", input)")));
    }
    let programs = std::fs::read_dir(corpora().join("../fuzz_targets")).expect("programs");
    assert_eq!(programs.count(), crate::bodies::TARGETS.len());
}
