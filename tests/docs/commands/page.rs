//! Blocks of code in README and in man pages.

use std::path::PathBuf;

/// Why a block is not run as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// `build`: its commands build the program.
    Build,
    /// `kms`: its commands need an account of AWS.
    Kms,
    /// `file PATH`: it is the content of a file.
    File(PathBuf),
}

impl Mark {
    fn parse(text: &str) -> Self {
        match text.trim().split_once(' ').unwrap_or((text.trim(), "")) {
            ("build", "") => Self::Build,
            ("kms", "") => Self::Kms,
            ("file", path) if !path.is_empty() => Self::File(path.into()),
            _ => panic!("there is no mark `check: {text}`"),
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Kms => "kms",
            Self::File(_) => "file",
        }
    }
}

/// A block of code.
#[derive(Debug)]
pub struct Block {
    pub mark: Option<Mark>,
    pub lines: Vec<String>,
    /// Whether each block of its section must be run or marked.
    pub in_examples: bool,
    /// Whether a reader takes it for a picture: nothing in it is run.
    is_picture: bool,
}

fn command(line: &str) -> Option<&str> {
    line.strip_prefix("$ ").or_else(|| line.strip_prefix("# "))
}

impl Block {
    pub fn commands(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().filter_map(|line| command(line))
    }

    pub fn is_run(&self) -> bool {
        let begins = self
            .lines
            .first()
            .is_some_and(|line| command(line).is_some());
        !self.is_picture && begins && !matches!(self.mark, Some(Mark::File(_)))
    }

    /// Each command with the output that the page shows.
    pub fn steps(&self) -> Vec<(&str, Vec<&str>)> {
        let mut steps: Vec<(&str, Vec<&str>)> = Vec::new();
        for line in &self.lines {
            match (command(line), steps.last_mut()) {
                (Some(command), _) => steps.push((command, Vec::new())),
                (None, Some((_, shown))) => shown.push(line),
                (None, None) => panic!("output before any command: {line}"),
            }
        }
        steps
    }
}

/// README or a man page.
#[derive(Debug)]
pub struct Page {
    pub name: String,
    pub blocks: Vec<Block>,
    /// Code in running text.
    pub quoted: Vec<String>,
}

impl Page {
    pub fn of_markdown(name: &str, text: &str) -> Self {
        let mut page = Self::empty(name);
        let (mut mark, mut open, mut is_fenced) = (None, false, false);
        for line in text.lines() {
            let code = line.strip_prefix("    ");
            if line.starts_with("```") {
                is_fenced = !is_fenced;
                open = false;
                if is_fenced {
                    page.begin(mark.take(), true, true);
                }
            } else if is_fenced {
                page.add(line);
            } else if let Some(code) = code {
                if !open {
                    page.begin(mark.take(), true, false);
                    open = true;
                }
                page.add(code);
            } else if line.is_empty() {
                // A blank line within a block belongs to it.
                if open {
                    page.add("");
                }
            } else {
                open = false;
                let inner = line.strip_prefix("<!-- check: ");
                match inner.and_then(|inner| inner.strip_suffix(" -->")) {
                    Some(inner) => mark = Some(Mark::parse(inner)),
                    None => page.quote(line.split('`').skip(1).step_by(2)),
                }
            }
        }
        assert_eq!(mark, None, "{name}: a mark without a block");
        page.end()
    }

    pub fn of_roff(name: &str, text: &str) -> Self {
        let mut page = Self::empty(name);
        let (mut mark, mut open, mut in_examples) = (None, false, false);
        for line in text.lines() {
            if let Some(inner) = line.strip_prefix(".\\\" check: ") {
                mark = Some(Mark::parse(inner));
            } else if line == ".EX" || line == ".nf" {
                page.begin(mark.take(), in_examples, false);
                open = true;
            } else if line == ".EE" || line == ".fi" {
                open = false;
            } else if open {
                page.add(&plain(line));
            } else if let Some(section) = line.strip_prefix(".SH ") {
                in_examples = section == "EXAMPLES";
            } else {
                let bold = line.split("\\fB").skip(1);
                let bold = bold.filter_map(|rest| rest.split("\\fR").next());
                let bold: Vec<String> = bold.map(plain).collect();
                page.quote(bold.iter().map(String::as_str));
            }
        }
        assert_eq!(mark, None, "{name}: a mark without a block");
        page.end()
    }

    fn empty(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            blocks: Vec::new(),
            quoted: Vec::new(),
        }
    }

    fn begin(&mut self, mark: Option<Mark>, in_examples: bool, is_picture: bool) {
        self.blocks.push(Block {
            mark,
            lines: Vec::new(),
            in_examples,
            is_picture,
        });
    }

    fn add(&mut self, line: &str) {
        let block = self.blocks.last_mut().expect("a block has begun");
        block.lines.push(line.to_owned());
    }

    fn quote<'t>(&mut self, spans: impl Iterator<Item = &'t str>) {
        self.quoted.extend(spans.map(str::to_owned));
    }

    fn end(mut self) -> Self {
        for block in &mut self.blocks {
            while block.lines.last().is_some_and(String::is_empty) {
                block.lines.pop();
            }
        }
        self
    }

    /// Blocks that a reader takes for commands, and that nobody checks.
    pub fn neither_run_nor_marked(&self) -> Vec<Vec<&str>> {
        let unchecked = self.blocks.iter().filter(|block| {
            let has_commands = block.commands().next().is_some();
            let must_be = block.in_examples && !block.is_picture || has_commands;
            must_be && !block.is_run() && block.mark.is_none()
        });
        unchecked
            .map(|block| block.lines.iter().map(String::as_str).collect())
            .collect()
    }
}

/// Roff as it is shown.
pub fn plain(roff: &str) -> String {
    let mut text = roff.to_owned();
    for (escape, shown) in [
        ("\\fB", ""),
        ("\\fI", ""),
        ("\\fR", ""),
        ("\\&", ""),
        ("\\-", "-"),
        ("\\(aq", "'"),
        ("\\(ga", "`"),
        ("\\(dq", "\""),
        ("\\e", "\\"),
    ] {
        text = text.replace(escape, shown);
    }
    text
}
