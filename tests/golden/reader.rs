//! `tests/reader`, a reader in Python that was written from secretfs-vault(5) alone, reads the same vaults.

use std::path::Path;
use std::process::Command;

use crate::store::here;
use crate::support::venv;
use crate::tampered::cases;

/// One package a line, all pinned.
const PACKAGES: &str = include_str!("../reader/requirements.txt");

/// More would not show that a reader is a small program.
const MOST_LINES: usize = 600;

#[test]
fn a_reader_that_was_written_from_the_page_opens_the_vaults_and_refuses_the_tampered_ones() {
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reader");
    let packages: Vec<_> = PACKAGES.lines().collect();
    let ran = Command::new(venv::python("reader", &packages))
        .arg("-B")
        .arg(reader.join("test_reader.py"))
        .arg(here())
        .output()
        .expect("Python runs");
    let told = String::from_utf8_lossy(&ran.stdout);
    let failed = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{told}{failed}");
    let vaults = std::fs::read_dir(here().join("vaults")).expect("the vaults");
    let all = format!("{} opened, {} refused", vaults.count(), cases().len());
    assert_eq!(all, "11 opened, 446 refused");
    assert_eq!(told.lines().next_back(), Some(&*all), "{failed}");
}

#[test]
fn the_reader_that_was_written_from_the_page_is_a_small_program() {
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reader");
    let of_file = |name| {
        let text = std::fs::read_to_string(reader.join(name)).expect(name);
        assert!(text.lines().all(|line| line.len() <= 100), "{name}");
        text.lines().count()
    };
    let lines: usize = ["notation.py", "reader.py", "records.py"]
        .map(of_file)
        .iter()
        .sum();
    assert!((1..=MOST_LINES).contains(&lines), "{lines}");
}
