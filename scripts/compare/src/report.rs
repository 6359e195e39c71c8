//! What was measured, as a table, as Markdown and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::Failure;
use crate::bench::{Bench, Row, Target};
use crate::kind::Kind;
use crate::stats::{deviation, median};
use crate::work::scale::{COLUMNS, Point};

/// With as many digits as mean something.
fn figure(number: f64) -> String {
    match number.abs() {
        n if n >= 1000.0 => {
            let digits = format!("{number:.0}");
            let mut grouped = String::new();
            for (place, digit) in digits.chars().enumerate() {
                if place > 0 && (digits.len() - place) % 3 == 0 {
                    grouped.push(',');
                }
                grouped.push(digit);
            }
            grouped
        }
        n if n >= 100.0 => format!("{number:.0}"),
        n if n >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

/// The targets of a row in words, with what was reached.
fn targets(row: &Row) -> Vec<(String, bool)> {
    let verdicts = row.targets.iter().filter_map(|target| {
        let (value, reached) = row.reached(*target)?;
        let text = match target {
            Target::TimesAsFast(other, least) => {
                format!("{value:.2} × {} (≥ {least})", other.name())
            }
            Target::AtMostTimes(other, most) => {
                format!("{value:.2} × the time of {} (≤ {most})", other.name())
            }
            Target::AtMost(most) => {
                format!("{} {} (≤ {most})", figure(value), row.unit.name())
            }
        };
        Some((text, reached))
    });
    verdicts.collect()
}

/// How many targets were reached and how many missed.
pub fn tally(bench: &Bench) -> String {
    let all: Vec<_> = bench.rows.iter().flat_map(targets).collect();
    let reached = all.iter().filter(|(_, reached)| *reached).count();
    format!("{reached} targets reached, {} missed", all.len() - reached)
}

/// For people at a terminal.
pub fn text(bench: &Bench) -> String {
    let mut out = String::new();
    for row in &bench.rows {
        let _ = writeln!(out, "\n{}: {} [{}]", row.name, row.what, row.unit.name());
        for (kind, samples) in &row.samples {
            let _ = write!(
                out,
                "  {:18} {:>10}  ± {:<8}",
                kind.name(),
                figure(median(samples)),
                figure(deviation(samples))
            );
            if let Some(ratio) = row.times_as_fast(*kind).filter(|_| has_ratio(row, *kind)) {
                let _ = write!(out, "  secretfs is {ratio:.2} × as fast");
            }
            out.push('\n');
        }
        for (text, reached) in targets(row) {
            let verdict = if reached { "reached" } else { "MISSED" };
            let _ = writeln!(out, "  {verdict}: {text}");
        }
    }
    out
}

fn has_ratio(row: &Row, kind: Kind) -> bool {
    use crate::bench::Unit::{Calls, Megabytes, Times};
    kind != Kind::Secretfs && !matches!(row.unit, Calls | Megabytes | Times)
}

/// For the page of results.
pub fn markdown(bench: &Bench) -> String {
    let shown: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| bench.rows.iter().any(|row| row.samples.contains_key(kind)))
        .collect();
    let mut out = String::from("| work |");
    for kind in &shown {
        let _ = write!(out, " {} |", kind.name());
    }
    out.push_str(" target, reached? |\n|---|");
    out.push_str(&"---|".repeat(shown.len() + 1));
    out.push('\n');
    for row in &bench.rows {
        let _ = write!(out, "| {}, {} |", row.what, row.unit.name());
        for kind in &shown {
            let cell = row.samples.get(kind).map(|s| figure(median(s)));
            let _ = write!(out, " {} |", cell.unwrap_or_default());
        }
        let verdicts: Vec<String> = targets(row)
            .into_iter()
            .map(|(text, reached)| format!("{}: {text}", if reached { "yes" } else { "no" }))
            .collect();
        let _ = writeln!(out, " {} |", verdicts.join("; "));
    }
    out
}

/// The growth with the number of secrets, for people and for the page of results.
pub fn scale(points: &[Point]) -> String {
    let mut out = String::from("| |");
    for point in points {
        let _ = write!(out, " {} secrets |", figure(point.secrets as f64));
    }
    out.push_str("\n|---|");
    out.push_str(&"---|".repeat(points.len()));
    out.push('\n');
    for (place, column) in COLUMNS.iter().enumerate() {
        let _ = write!(out, "| {column} |");
        for point in points {
            let _ = write!(out, " {} |", figure(point.figures[place]));
        }
        out.push('\n');
    }
    out
}

/// Every sample.
pub fn json(bench: &Bench, points: &[Point]) -> Result<Value, Failure> {
    let rows: Vec<Value> = bench
        .rows
        .iter()
        .map(|row| {
            let systems: serde_json::Map<String, Value> = row
                .samples
                .iter()
                .map(|(kind, samples)| {
                    let value = json!({
                        "median": median(samples),
                        "deviation": deviation(samples),
                        "secretfs_times_as_fast": row.times_as_fast(*kind),
                        "samples": samples,
                    });
                    (kind.name().to_owned(), value)
                })
                .collect();
            let targets: Vec<Value> = targets(row)
                .into_iter()
                .map(|(text, reached)| json!({ "target": text, "reached": reached }))
                .collect();
            json!({
                "row": row.name,
                "what": row.what,
                "unit": row.unit.name(),
                "systems": systems,
                "targets": targets,
            })
        })
        .collect();
    let scale: Vec<Value> = points
        .iter()
        .map(|point| {
            let figures: serde_json::Map<String, Value> = COLUMNS
                .iter()
                .zip(&point.figures)
                .map(|(column, figure)| ((*column).to_owned(), json!(figure)))
                .collect();
            json!({ "secrets": point.secrets, "figures": figures })
        })
        .collect();
    Ok(json!({
        "cpus": std::thread::available_parallelism()?.get(),
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        "threads": bench.setting.floor_threads,
        "rounds": bench.rounds,
        "quick": bench.quick,
        "seconds": bench.started.elapsed().as_secs_f64(),
        "noise": {
            "words": bench.noise.words()?,
            "spin_ms": bench.noise.spins,
            "ping_pong_us": bench.noise.turns,
            "stolen": bench.noise.stolen()?,
        },
        "rows": rows,
        "scale": scale,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_as_many_digits_as_mean_something() {
        assert_eq!(figure(1_000_000.0), "1,000,000");
        assert_eq!(figure(1234.5), "1,234");
        assert_eq!(figure(999.4), "999");
        assert_eq!(figure(12.34), "12.3");
        assert_eq!(figure(1.234), "1.23");
    }
}
