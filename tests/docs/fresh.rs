//! README and the man pages say what the program does, and the promises name tests that exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use secretfs::config::{Kind, SETTINGS, Scope};

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn text(path: &str) -> String {
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

pub fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
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

/// Where the promises and the limits stand, and secretfs-security(7) has them from.
const PROMISES: &str = "src/cli/man/promises.txt";

/// A promise or a limit.
struct Entry {
    words: String,
    /// Why it is not promised.
    reason: Option<String>,
    /// As `file.rs::test`.
    tests: Vec<String>,
}

/// The entries below a heading.
fn entries(heading: &str) -> Vec<Entry> {
    let text = text(PROMISES);
    let heading = format!("# {heading}\n");
    let (_, after) = text.split_once(&heading).expect("the heading is there");
    let section = after.split("\n# ").next().expect("a first part");
    let blocks = section
        .split("\n\n")
        .filter(|block| !block.trim().is_empty());
    let entry = |block: &str| {
        let (tests, words): (Vec<&str>, Vec<&str>) = block
            .trim_matches('\n')
            .lines()
            .partition(|line| line.starts_with("    "));
        let words = words.join(" ");
        let (words, reason) = match words.split_once(" because ") {
            Some((words, reason)) => (words.to_owned(), Some(reason.to_owned())),
            None => (words, None),
        };
        let tests = tests.iter().map(|test| test.trim().to_owned()).collect();
        Entry {
            words,
            reason,
            tests,
        }
    };
    blocks.map(entry).collect()
}

#[test]
fn every_test_that_the_promises_name_exists() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    sources(&root().join("tests"), &mut files);
    let all = entries("Promised")
        .into_iter()
        .chain(entries("Not promised"));
    let named: BTreeSet<String> = all.flat_map(|entry| entry.tests).collect();
    assert!(named.len() > 400, "{PROMISES} names no tests: {named:?}");
    for name in named {
        let (file, test) = name.split_once("::").expect("file and test");
        assert!(file.ends_with(".rs"), "{name} is in no source");
        let exists = files
            .iter()
            .filter(|path| path.ends_with(file))
            .any(|path| has_test(&std::fs::read_to_string(path).expect("UTF-8"), test));
        assert!(exists, "{PROMISES} names `{name}`, which does not exist");
    }
}

#[test]
fn every_promise_in_the_threat_model_has_its_test() {
    let entries = entries("Promised");
    assert!(entries.len() > 70, "{}", entries.len());
    for Entry { words, tests, .. } in entries {
        assert!(
            !words.is_empty() && !tests.is_empty(),
            "no test stands behind `{words}`"
        );
    }
}

#[test]
fn every_limit_in_the_threat_model_has_a_test_that_shows_it() {
    let entries = entries("Not promised");
    assert!(entries.len() > 20, "{}", entries.len());
    for Entry {
        words,
        reason,
        tests,
    } in entries
    {
        let has_reason = reason.is_some_and(|reason| !reason.is_empty());
        assert!(has_reason && !tests.is_empty(), "nothing shows `{words}`");
    }
}

/// The page has all of them, word by word.
#[test]
fn promises_and_limits_are_in_the_manual() {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let page = words(&super::commands::plain(&text("man/secretfs-security.7")).replace(".br", " "));
    for entry in entries("Promised").iter().chain(&entries("Not promised")) {
        let said = words(&entry.words.replace('`', ""));
        assert!(page.contains(&said), "secretfs-security(7) lacks `{said}`");
        let reason = entry
            .reason
            .iter()
            .map(|reason| words(&reason.replace('`', "")));
        let lacking = entry.tests.iter().cloned().chain(reason);
        let lacking: Vec<String> = lacking
            .filter(|part| !page.contains(part.as_str()))
            .collect();
        assert!(lacking.is_empty(), "secretfs-security(7) lacks {lacking:?}");
    }
}

/// A reader reads it to its end.
#[test]
fn the_readme_is_short() {
    const MOST_LINES: usize = 250;
    const LONGEST: usize = 200;
    let readme = text("README.md");
    assert!(
        readme.lines().count() <= MOST_LINES,
        "{}",
        readme.lines().count()
    );
    for line in readme.lines() {
        assert!(line.chars().count() <= LONGEST, "{line}");
    }
}

#[test]
fn exit_codes_in_the_messages_are_those_of_the_manual() {
    let manual = text("src/cli/man/secretfs.1.in");
    let manual: Vec<&str> = manual
        .lines()
        .skip_while(|line| *line != ".SH EXIT STATUS")
        .skip(1)
        .take_while(|line| !line.starts_with(".SH"))
        .filter_map(|line| line.strip_prefix(".B "))
        .collect();
    let messages = text("src/cli/man/secretfs-messages.7.in");
    let messages = messages.lines().filter_map(|line| {
        let (code, _) = line.strip_prefix(".SH EXIT CODE ")?.split_once(':')?;
        Some(code.to_owned())
    });
    // What succeeds says nothing.
    let messages: Vec<String> = ["0".to_owned()].into_iter().chain(messages).collect();
    assert_eq!(messages, manual);
    // As src/cli/mod.rs has them.
    let code = text("src/cli/mod.rs");
    let code: BTreeSet<String> = code
        .lines()
        .skip_while(|line| !line.starts_with("fn exit_code"))
        .take_while(|line| *line != "}")
        .filter_map(|line| line.trim().split_once("=> ")?.1.strip_suffix(','))
        .map(str::to_owned)
        .collect();
    let failures: BTreeSet<String> = messages.into_iter().filter(|code| code != "0").collect();
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
        let entry = format!("\\fB{}\\fR = ", setting.name.replace('-', "\\-"));
        assert!(text("man/secretfs.toml.5").contains(&entry), "{entry}");
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
        section("Install")
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
        let exists = match target.strip_prefix('#') {
            Some(heading) => readme
                .lines()
                .filter_map(|line| line.strip_prefix("## "))
                .any(|line| line.to_lowercase().replace(' ', "-") == heading),
            None => root().join(target).exists(),
        };
        assert!(exists, "README.md links to {target}");
    }
}
