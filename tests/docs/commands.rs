//! Every command in README and in the man pages is run as a reader would type it, and shows what the page
//! shows.
//!
//! Blocks of commands begin with `$ ` or `# `. A command fails unless it ends with `; echo $?`. Output that
//! a page shows is compared, without numbers, ids and dates; a line `...` stands for any lines. What cannot
//! be run like that has a mark before its block (`check: ...`), and there are no more marks than `MARKS`.

mod page;
mod session;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::process::PROGRAM;

pub use page::plain;
use page::{Block, Mark, Page};

/// How many blocks have which mark, in README and all pages.
const MARKS: &[(&str, usize)] = &[
    // Scripts that build the program: run with one that is built already.
    ("build", 1),
    // A file that other commands of the page use. Units are verified by systemd-analyze, lines of fstab by
    // the mount helper, policies by their syntax.
    ("file", 8),
    // Commands that need an account: run against the tests' own endpoint.
    ("kms", 6),
];

/// The page whose EXAMPLES are bytes, which `format.rs` compares with the vectors.
const BYTES: &str = "secretfs-vault.5";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> Page {
    let text = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    Page::of_markdown("README.md", &text)
}

/// The man pages as they are generated.
fn pages() -> Vec<Page> {
    let pages = secretfs::cli::man_pages().expect("pages");
    let pages = pages.iter().filter(|(name, _)| name != BYTES);
    pages
        .map(|(name, page)| Page::of_roff(name, std::str::from_utf8(page).expect("UTF-8")))
        .collect()
}

/// Runs pages, and tells of all faults together.
fn run(pages: &[Page]) {
    let faults = pages.iter().flat_map(|page| {
        let faults = session::run(page).into_iter();
        faults.map(|fault| format!("{}: {fault}", page.name))
    });
    let faults: Vec<String> = faults.collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The pages in sections 5 and 7, or the others.
fn pages_in(concepts_and_files: bool) -> Vec<Page> {
    let mut pages = pages();
    pages.retain(|page| page.name.ends_with(['5', '7']) == concepts_and_files);
    assert!(pages.len() > 5, "{}", pages.len());
    pages
}

#[test]
fn every_command_of_the_readme_does_what_it_shows() {
    run(&[readme()]);
}

#[test]
fn every_command_of_the_pages_about_commands_does_what_it_shows() {
    run(&pages_in(false));
}

#[test]
fn every_command_of_the_pages_about_concepts_and_files_does_what_it_shows() {
    run(&pages_in(true));
}

#[test]
fn every_page_has_examples_and_each_of_them_is_run_or_marked() {
    for page in pages() {
        let examples = page.blocks.iter().filter(|block| block.in_examples);
        assert!(examples.count() > 0, "{} has no EXAMPLES", page.name);
    }
    for page in pages().into_iter().chain([readme()]) {
        let neither = page.neither_run_nor_marked();
        assert!(neither.is_empty(), "{}: {neither:#?}", page.name);
    }
}

#[test]
fn no_more_blocks_are_marked_than_were_agreed_on() {
    let mut found = BTreeMap::new();
    for page in pages().into_iter().chain([readme()]) {
        for mark in page.blocks.iter().filter_map(|block| block.mark.as_ref()) {
            *found.entry(mark.name()).or_insert(0) += 1;
        }
    }
    assert_eq!(found, MARKS.iter().copied().collect());
}

#[test]
fn the_scripts_that_the_readme_names_work() {
    let readme = readme();
    let blocks = readme.blocks.iter();
    let lines: Vec<&str> = blocks
        .filter(|block| block.mark == Some(Mark::Build))
        .flat_map(Block::commands)
        .collect();
    assert_eq!(lines, ["scripts/quickstart", "scripts/install"]);
    let place = tempfile::tempdir().expect("a directory");
    let run = |command: &mut Command| {
        let ran = command
            .env("TMPDIR", place.path())
            .output()
            .expect("it runs");
        assert!(
            ran.status.success(),
            "{command:?}: {}{}",
            String::from_utf8_lossy(&ran.stdout),
            String::from_utf8_lossy(&ran.stderr)
        );
        String::from_utf8_lossy(&ran.stdout).into_owned()
    };
    let said = run(Command::new(root().join("scripts/quickstart")).arg(PROGRAM));
    assert!(said.contains(" reads, 0 of them torn"), "{said}");
    // A program for tests is larger than one that is installed may be; most of it is for debuggers.
    let program = place.path().join("program");
    run(Command::new("objcopy")
        .arg("--strip-all")
        .arg(PROGRAM)
        .arg(&program));
    let prefix = place.path().join("prefix");
    run(Command::new(root().join("scripts/install"))
        .arg(&prefix)
        .arg(&program)
        .env("INSTALL_MOST_BYTES", "100000000"));
    let pages = secretfs::cli::man_pages().expect("pages");
    for (name, page) in pages {
        let section = name.rsplit('.').next().expect("a section");
        let installed = prefix.join(format!("share/man/man{section}")).join(&name);
        let installed = std::fs::read(&installed).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(installed == page, "{name}");
    }
}

/// Words that name a command of secretfs in running text, with their place.
fn mentioned(page: &Page) -> Vec<Vec<String>> {
    let spans = page
        .quoted
        .iter()
        .filter(|span| span.starts_with("secretfs "));
    spans
        .map(|span| span.split_whitespace().skip(1).map(str::to_owned).collect())
        .collect()
}

/// What a mention of a command names that does not exist.
fn unknown(words: &[String], manual: &BTreeMap<String, String>) -> Option<String> {
    let [command, arguments @ ..] = words else {
        return None;
    };
    if command.starts_with('-') {
        let has = manual["secretfs.1"].contains(command);
        return (!has).then(|| command.clone());
    }
    let Some(page) = manual.get(&format!("secretfs-{command}.1")) else {
        return Some(command.clone());
    };
    let flags = arguments.iter().filter_map(|word| {
        let flag = word.split('=').next()?;
        flag.starts_with("--").then(|| flag.to_owned())
    });
    let mut flags = flags.filter(|flag| !page.contains(flag.as_str()));
    flags.next()
}

fn manual() -> BTreeMap<String, String> {
    let pages = secretfs::cli::man_pages().expect("pages").into_iter();
    pages
        .map(|(name, page)| (name, plain(&String::from_utf8_lossy(&page))))
        .collect()
}

#[test]
fn commands_that_running_text_names_exist_with_their_flags() {
    let manual = manual();
    let mut seen = 0;
    for page in pages().into_iter().chain([readme()]) {
        for words in mentioned(&page) {
            seen += 1;
            let unknown = unknown(&words, &manual);
            assert_eq!(unknown, None, "{}: secretfs {}", page.name, words.join(" "));
        }
    }
    assert!(seen > 10, "the reader sees too little: {seen}");
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    assert!(unknown(&words("mount --nonsense"), &manual).is_some());
    assert!(unknown(&words("frobnicate"), &manual).is_some());
}

#[test]
fn a_wrong_command_a_wrong_output_and_a_wrong_unit_are_seen() {
    let page = |text: &str| Page::of_markdown("planted", text);
    for (planted, fault) in [
        ("    $ secretfs init vault --nonsense\n", "ends with 2"),
        (
            "    $ secretfs init vault\n    vault is an old vault\n",
            "shows",
        ),
        (
            "    $ secretfs status none; echo $?\n    ...\n    4\n",
            "shows",
        ),
        ("    $ true\n    and something besides\n", "shows"),
        (
            "<!-- check: file /etc/systemd/system/a.service -->\n    [Service]\n    ExecStart=/none\n",
            "ends with 1",
        ),
        (
            "<!-- check: file /etc/fstab -->\n    /srv/vault /run/secrets secretfs nonsense 0 0\n",
            "ends with 1",
        ),
        (
            "<!-- check: file a.json -->\n    {\"a\": }\n",
            "ends with 1",
        ),
    ] {
        let faults = session::run(&page(planted));
        assert!(
            faults.len() == 1 && faults[0].contains(fault),
            "{planted}: {faults:?}"
        );
    }
    let right = "    $ secretfs init vault\n    vault is a new vault, id 0123456789abcdef0123456789abcdef\n    ...\n";
    assert_eq!(session::run(&page(right)), [""; 0]);
    let forgotten = page("# A\n\n    secretfs mount vault mnt --nonsense\n");
    assert_eq!(forgotten.neither_run_nor_marked().len(), 1);
    let hidden = page("```\n$ secretfs mount\n```\n");
    assert_eq!(hidden.neither_run_nor_marked().len(), 1);
    let roff = Page::of_roff("planted.7", ".SH EXAMPLES\n.EX\nsecretfs a\\-b\n.EE\n");
    assert_eq!(roff.neither_run_nor_marked(), [vec!["secretfs a-b"]]);
    let elsewhere = Page::of_roff("planted.7", ".SH A\n.EX\na picture\n.EE\n");
    assert_eq!(elsewhere.neither_run_nor_marked().len(), 0);
}

/// Where a file of a page is written to.
fn absolute(path: &Path) -> PathBuf {
    Path::new(session::HOME).join(path)
}
