//! `secretfs man`: generates the man pages from the command line and the table of settings. The
//! same input gives the same bytes: the pages are committed, and a test compares them.

use std::path::PathBuf;

use crate::error::{Class, Error};

use super::output;

/// The date of the release, not of the build.
const DATE: &str = "2026-11-22";
const MANUAL: &str = "secretfs manual";

const SECTIONS: &str = include_str!("man/secretfs.1.in");
const MOUNT_SECTIONS: &str = include_str!("man/secretfs-mount.1.in");
const STATUS_SECTIONS: &str = include_str!("man/secretfs-status.1.in");
const MOUNT_HELPER: &str = include_str!("man/mount.secretfs.8.in");
const VAULT_FORMAT: &str = include_str!("man/secretfs-vault.5.in");

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
    let mut pages = vec![("secretfs.1".to_owned(), render(command.clone(), SECTIONS)?)];
    for sub in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        let name = format!("secretfs-{}", sub.get_name());
        let sections = match sub.get_name() {
            "mount" => MOUNT_SECTIONS,
            "status" => STATUS_SECTIONS,
            _ => "",
        };
        let page = render(sub.clone(), sections)?;
        pages.push((format!("{name}.1"), page));
    }
    for (name, page) in [
        ("mount.secretfs.8", MOUNT_HELPER),
        ("secretfs-vault.5", VAULT_FORMAT),
    ] {
        pages.push((name.to_owned(), filled_in(page).into_bytes()));
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

fn render(command: clap::Command, sections: &str) -> std::io::Result<Vec<u8>> {
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
    if sections == SECTIONS {
        page.render_subcommands_section(&mut bytes)?;
    }
    bytes.extend_from_slice(filled_in(sections).as_bytes());
    if sections != SECTIONS {
        bytes.extend_from_slice(b".SH SEE ALSO\n.BR secretfs (1)\n");
    }
    Ok(bytes)
}

fn filled_in(text: &str) -> String {
    text.replace("@DATE@", DATE)
        .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
}
