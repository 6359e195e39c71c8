//! The page of results, `RESULTS.md`: each table stands between two comments, and is replaced with its origin.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::Failure;
use crate::bench::Bench;

/// The page that is committed.
pub const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/RESULTS.md");

const END: &str = "<!-- end -->";

/// Replaces the part `name` of the page.
pub fn replace(page: &Path, name: &str, origin: &str, table: &str) -> Result<(), Failure> {
    let text = fs::read_to_string(page)
        .map_err(|e| Failure(format!("cannot read {}: {e}", page.display())))?;
    let text = replaced(&text, name, &format!("{origin}\n\n{table}")).ok_or_else(|| {
        Failure(format!(
            "{} has no part `<!-- {name}: ... -->` that ends with `{END}`",
            page.display()
        ))
    })?;
    Ok(fs::write(page, text)?)
}

fn replaced(text: &str, name: &str, part: &str) -> Option<String> {
    let start = text.find(&format!("<!-- {name}: "))?;
    let start = start + text[start..].find('\n')? + 1;
    let end = start + text[start..].find(END)?;
    Some(format!("{}{part}{}", &text[..start], &text[end..]))
}

/// What was measured, when, and on which machine.
pub fn origin(bench: &Bench, program: &Path) -> Result<String, Failure> {
    let version = Command::new(program).arg("--version").output()?;
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let model = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("processors of unknown make", |(_, model)| model);
    let today = SystemTime::now().duration_since(UNIX_EPOCH);
    let today = today.map_or(0, |since| since.as_secs() / 86_400);
    Ok(format!(
        "Origin: {version}, {}; {} rounds of each row, interleaved; {} × {model}; Linux {}.\n{}",
        date(today),
        bench.rounds,
        std::thread::available_parallelism()?,
        kernel.trim(),
        bench.noise.words()?
    ))
}

/// A number of days since 1970 as a date (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn date(days: u64) -> String {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_part_of_a_page_is_replaced_and_the_rest_stays() {
        let page =
            "a\n<!-- table: x -->\nold\n<!-- end -->\nb\n<!-- growth: y -->\nold\n<!-- end -->\n";
        let new = replaced(page, "growth", "new\n").expect("the part is there");
        assert_eq!(new, page.replacen("y -->\nold", "y -->\nnew", 1));
        assert_eq!(replaced(page, "other", "new"), None);
        assert_eq!(replaced("<!-- table: x -->\n", "table", "new"), None);
    }

    #[test]
    fn the_committed_page_has_both_parts() {
        let page = fs::read_to_string(PAGE).expect("RESULTS.md");
        for name in ["table", "growth"] {
            assert!(replaced(&page, name, "").is_some(), "{name}");
        }
    }

    #[test]
    fn days_are_shown_as_dates() {
        let shown = [0, 59, 11_016, 20_787].map(date);
        assert_eq!(
            shown,
            ["1970-01-01", "1970-03-01", "2000-02-29", "2026-11-30"]
        );
    }
}
