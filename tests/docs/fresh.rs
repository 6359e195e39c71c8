//! The README and the man pages say what the program does, and name tests that exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use secretfs::config::{Kind, SETTINGS, Scope};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The lines of README.md below this heading, up to the next one of any depth.
fn section(heading: &str) -> Vec<String> {
    let readme = text("README.md");
    let lines: Vec<String> = readme
        .lines()
        .skip_while(|line| line.trim_start_matches('#').trim() != heading || !line.starts_with('#'))
        .skip(1)
        .take_while(|line| !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    assert!(!lines.is_empty(), "README.md has no section `{heading}`");
    lines
}

/// The cells of the tables in a section, without their heads.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let rows: Vec<Vec<String>> = section(heading)
        .iter()
        .filter(|line| line.starts_with('|') && !line.starts_with("|--"))
        .skip(1)
        .map(|line| {
            let cells = line.trim_matches('|').split(" | ");
            cells.map(|cell| cell.trim().to_owned()).collect()
        })
        .collect();
    assert!(!rows.is_empty(), "README.md has no table in `{heading}`");
    rows
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Whether a source has a test of this name, which is not merely a function.
fn has_test(source: &str, name: &str) -> bool {
    let definition = format!("fn {name}(");
    let lines: Vec<&str> = source.lines().map(str::trim_start).collect();
    let is_test = |at: usize| {
        let mut above = lines[..at].iter().rev();
        above
            .find(|line| !line.starts_with("#[") || **line == "#[test]")
            .is_some_and(|line| *line == "#[test]")
    };
    // A test that runs over each store is defined once, and listed for a macro that makes two of it.
    let mut listed = source.split("for_each_store! {").skip(1);
    let is_listed = listed.next().and_then(|rest| rest.split('}').next());
    let is_listed = is_listed.is_some_and(|list| {
        let entry = format!("{name},");
        list.lines().any(|line| line.trim() == entry)
    });
    (0..lines.len()).any(|at| lines[at].starts_with(&definition) && (is_listed || is_test(at)))
}

#[test]
fn every_test_that_the_readme_names_exists() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    sources(&root().join("tests"), &mut files);
    let readme = text("README.md");
    let named: BTreeSet<(String, String)> = quoted(&readme)
        .iter()
        .filter_map(|name| name.split_once("::"))
        .filter(|(file, _)| file.ends_with(".rs"))
        .map(|(file, test)| (file.to_owned(), test.to_owned()))
        .collect();
    assert!(named.len() > 10, "README.md names no tests: {named:?}");
    for (file, test) in named {
        let exists = files
            .iter()
            .filter(|path| path.ends_with(&file))
            .any(|path| has_test(&std::fs::read_to_string(path).expect("UTF-8"), &test));
        assert!(
            exists,
            "README.md names `{file}::{test}`, which does not exist"
        );
    }
}

/// Tests are named like `file.rs::test`.
fn names_a_test(cell: &str) -> bool {
    quoted(cell).iter().any(|name| name.contains(".rs::"))
}

#[test]
fn every_promise_in_the_threat_model_has_its_test() {
    for row in rows("Promised") {
        let [promise, tests] = row.as_slice() else {
            panic!("not two cells: {row:?}");
        };
        assert!(names_a_test(tests), "no test stands behind `{promise}`");
    }
}

#[test]
fn every_limit_in_the_threat_model_has_a_test_that_shows_it() {
    for row in rows("Not promised") {
        let [limit, why, tests] = row.as_slice() else {
            panic!("not three cells: {row:?}");
        };
        assert!(
            !why.is_empty() && names_a_test(tests),
            "nothing shows `{limit}`"
        );
    }
}

#[test]
fn exit_codes_in_the_readme_are_those_of_the_manual() {
    let manual = text("src/cli/man/secretfs.1.in");
    let manual: Vec<&str> = manual
        .lines()
        .skip_while(|line| *line != ".SH EXIT STATUS")
        .skip(1)
        .take_while(|line| !line.starts_with(".SH"))
        .filter_map(|line| line.strip_prefix(".B "))
        .collect();
    let readme: Vec<String> = rows("Exit codes")
        .into_iter()
        .map(|row| row[0].clone())
        .collect();
    assert_eq!(readme, manual);
    // As src/cli/mod.rs has them.
    let code = text("src/cli/mod.rs");
    let code: BTreeSet<String> = code
        .lines()
        .skip_while(|line| !line.starts_with("fn exit_code"))
        .take_while(|line| *line != "}")
        .filter_map(|line| line.trim().split_once("=> ")?.1.strip_suffix(','))
        .map(str::to_owned)
        .collect();
    let failures: BTreeSet<String> = readme.into_iter().filter(|code| code != "0").collect();
    assert_eq!(failures, code);
}

#[test]
fn settings_in_the_readme_exist_with_these_defaults() {
    for row in rows("Settings") {
        let name = row[0].trim_matches('`');
        let setting = SETTINGS
            .iter()
            .find(|s| s.name == name)
            .unwrap_or_else(|| panic!("README.md names the setting `{name}`, which is none"));
        let default = row[1].trim_matches('`');
        if setting.kind == Kind::Switch {
            assert_eq!(default, "off", "{name}");
        } else {
            assert!(
                setting.help.contains(&format!("efault {default}")),
                "{name}: {default} is not in `{}`",
                setting.help
            );
        }
    }
}

#[test]
fn every_setting_is_in_the_manual() {
    for setting in SETTINGS {
        let page = match setting.scope {
            Scope::Init => "man/secretfs-init.1",
            Scope::Vault | Scope::Mount | Scope::Open => "man/secretfs-mount.1",
        };
        let flag = format!("\\fB\\-\\-{}\\fR", setting.name.replace('-', "\\-"));
        assert!(text(page).contains(&flag), "{page} lacks {}", setting.name);
    }
    // Those of init alone are explained for mount, too, since fstab may pass them.
    assert!(text("man/secretfs-mount.1").contains("uid= UID"));
}

#[test]
fn the_readme_names_the_version_of_rust_that_is_needed() {
    let manifest = text("Cargo.toml");
    let needed = manifest
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = "))
        .expect("rust-version")
        .trim_matches('"');
    assert!(
        section("Try it")
            .join(" ")
            .contains(&format!("Rust {needed} or later"))
    );
}

/// What is shipped is what a user finds at the top, and nothing else.
#[test]
fn files_that_the_readme_links_to_exist() {
    let readme = text("README.md");
    for target in readme
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
    {
        assert!(root().join(target).exists(), "README.md links to {target}");
    }
}
