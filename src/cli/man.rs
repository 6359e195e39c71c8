//! `secretfs man`: generates the man pages from the command line, the table of settings and the list
//! of promises. The same input gives the same bytes: the pages are committed, and a test compares them.

use std::path::PathBuf;

use crate::error::{Class, Error};

use super::output;

mod promises;
mod roff;
mod settings;

/// The date of the release, not of the build.
const DATE: &str = "2026-11-22";
const MANUAL: &str = "secretfs manual";

/// The parts of pages of commands that the command line does not know. Every command has at least
/// EXAMPLES.
const SECTIONS: &[(&str, &str)] = &[
    ("secretfs", include_str!("man/secretfs.1.in")),
    ("audit", include_str!("man/secretfs-audit.1.in")),
    ("backup", include_str!("man/secretfs-backup.1.in")),
    ("check", include_str!("man/secretfs-check.1.in")),
    ("completions", include_str!("man/secretfs-completions.1.in")),
    ("init", include_str!("man/secretfs-init.1.in")),
    ("mount", include_str!("man/secretfs-mount.1.in")),
    ("reencrypt", include_str!("man/secretfs-reencrypt.1.in")),
    ("restore", include_str!("man/secretfs-restore.1.in")),
    ("rewrap", include_str!("man/secretfs-rewrap.1.in")),
    ("rotate", include_str!("man/secretfs-rotate.1.in")),
    ("status", include_str!("man/secretfs-status.1.in")),
    ("umount", include_str!("man/secretfs-umount.1.in")),
];

/// Pages that are no command's, whole.
const PAGES: &[(&str, &str)] = &[
    ("mount.secretfs.8", include_str!("man/mount.secretfs.8.in")),
    ("secretfs-kms.7", include_str!("man/secretfs-kms.7.in")),
    (
        "secretfs-messages.7",
        include_str!("man/secretfs-messages.7.in"),
    ),
    (
        "secretfs-rotation.7",
        include_str!("man/secretfs-rotation.7.in"),
    ),
    (
        "secretfs-security.7",
        include_str!("man/secretfs-security.7.in"),
    ),
    ("secretfs-vault.5", include_str!("man/secretfs-vault.5.in")),
    ("secretfs.7", include_str!("man/secretfs.7.in")),
    ("secretfs.toml.5", include_str!("man/secretfs.toml.5.in")),
];

/// Write the man pages
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(super) struct Man {
    /// Write all pages into this directory; without it, secretfs(1) goes to standard output
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Man {
    /// `command` is the whole command line.
    pub(super) fn run(self, command: clap::Command) -> Result<(), Error> {
        let fail = |e| Error::new(Class::Failed, format!("cannot write the man pages: {e}"));
        for (name, page) in pages(command).map_err(fail)? {
            match &self.dir {
                Some(dir) => std::fs::write(dir.join(name), page).map_err(fail)?,
                None if name == "secretfs.1" => output::print_bytes(&page)?,
                None => {}
            }
        }
        Ok(())
    }
}

/// All pages, with their file names.
pub(super) fn pages(mut command: clap::Command) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    command.build();
    let mut pages = vec![(
        "secretfs.1".to_owned(),
        render(command.clone(), "secretfs")?,
    )];
    for sub in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        let name = format!("secretfs-{}.1", sub.get_name());
        pages.push((name, render(sub.clone(), sub.get_name())?));
    }
    for (name, page) in PAGES {
        pages.push(((*name).to_owned(), filled_in(page).into_bytes()));
    }
    Ok(pages)
}

/// The synopsis, without the many options, which are listed below it.
fn synopsis(command: &clap::Command) -> String {
    let name = command.get_bin_name().unwrap_or("secretfs");
    let mut text = format!(".SH SYNOPSIS\n\\fB{name}\\fR [\\fIOPTION\\fR]...");
    for argument in command.get_positionals() {
        for value in argument.get_value_names().unwrap_or_default() {
            text.push_str(&format!(" \\fI{value}\\fR"));
        }
    }
    if command.has_subcommands() {
        text.push_str(" \\fICOMMAND\\fR [\\fIARGUMENT\\fR]...");
    }
    text.push('\n');
    text
}

/// The page of a command; `name` finds its sections.
fn render(command: clap::Command, name: &str) -> std::io::Result<Vec<u8>> {
    let synopsis = synopsis(&command);
    let page = clap_mangen::Man::new(command)
        .date(DATE)
        .manual(MANUAL)
        .source(format!("secretfs {}", env!("CARGO_PKG_VERSION")));
    let mut bytes = Vec::new();
    page.render_title(&mut bytes)?;
    page.render_name_section(&mut bytes)?;
    bytes.extend_from_slice(synopsis.as_bytes());
    page.render_description_section(&mut bytes)?;
    page.render_options_section(&mut bytes)?;
    let is_whole = name == "secretfs";
    if is_whole {
        page.render_subcommands_section(&mut bytes)?;
    }
    let sections = SECTIONS.iter().filter(|(of, _)| *of == name);
    for (_, sections) in sections {
        bytes.extend_from_slice(filled_in(sections).as_bytes());
    }
    if !is_whole {
        bytes.extend_from_slice(b".SH SEE ALSO\n.BR secretfs (1)\n");
    }
    Ok(bytes)
}

fn filled_in(text: &str) -> String {
    text.replace("@DATE@", DATE)
        .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
        .replace("@SETTINGS@\n", &settings::section())
        .replace("@PROMISED@\n", &promises::section("Promised"))
        .replace("@NOT_PROMISED@\n", &promises::section("Not promised"))
}
