//! The progress of a rotation, for people.

use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::vault::BLOCKED;

/// Interval between two readings of the progress.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Describes what blocks a rotation, and what the operator can do.
pub(super) fn blocked(
    change: impl std::fmt::Display,
    trouble: impl std::fmt::Display,
    count: u64,
    records: &[String],
) -> String {
    const SHOWN: usize = 10;
    let named = records[..records.len().min(SHOWN)].join(", ");
    let more = match count.saturating_sub(SHOWN as u64) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let records = match count {
        0 => String::new(),
        _ => format!(" (in the way: {named}{more})"),
    };
    format!("{change} is blocked: {trouble}{records}; {BLOCKED}")
}

/// Shows progress: a bar on a terminal, otherwise a line for each phase.
pub(super) struct Shown {
    bar: Option<ProgressBar>,
    name: &'static str,
    last: String,
}

impl Shown {
    pub(super) fn new(name: &'static str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = "{prefix} {msg} [{bar:30}] {human_pos}/{human_len} {eta}";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar.set_prefix(name);
            bar
        });
        Self {
            bar,
            name,
            last: String::new(),
        }
    }

    pub(super) fn update(&mut self, phase: &str, done: u64, total: u64) {
        match &self.bar {
            Some(bar) => {
                // A bar of unknown length would be drawn full.
                if total > 0 {
                    bar.set_length(total);
                }
                bar.set_position(done);
                bar.set_message(phase.to_owned());
            }
            None => self.say(phase),
        }
    }

    /// Prints a line, unless it repeats the last one.
    pub(super) fn say(&mut self, words: &str) {
        if self.last == words {
            return;
        }
        words.clone_into(&mut self.last);
        match &self.bar {
            Some(bar) => bar.println(words),
            // A failure here cannot be reported.
            None => drop(writeln!(std::io::stderr(), "{}: {words}", self.name)),
        }
    }

    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
