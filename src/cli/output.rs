//! Output for people and programs. A reader that closes the pipe early causes no error.

use std::fmt::Write as _;
use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{Class, Error};
use crate::vault::{TIME_SUFFIX, time_of};

/// Writes to standard output.
pub(super) fn print(text: &str) -> Result<(), Error> {
    print_bytes(text.as_bytes())
}

/// Writes to standard output.
pub(super) fn print_bytes(bytes: &[u8]) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Error::new(
            Class::Failed,
            format!("cannot write to standard output: {e}"),
        )),
        _ => Ok(()),
    }
}

/// Writes an error to standard error, in one line.
pub(super) fn complain(program: &str, error: &Error) {
    let line = format!("{program}: {error}\n");
    // A failure here cannot be reported.
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

/// Shows a result: JSON for programs, indented lines for people.
pub(super) fn show(result: &impl Serialize, json: bool) -> Result<(), Error> {
    let value = serde_json::to_value(result)
        .map_err(|e| Error::new(Class::Internal, format!("cannot show the result: {e}")))?;
    if json {
        return print(&format!("{value:#}\n"));
    }
    let mut text = String::new();
    write_lines(&mut text, &value, 0);
    print(&text)
}

/// Shows one of many results on a line of its own.
pub(super) fn show_line(result: &impl Serialize, json: bool) -> Result<(), Error> {
    let value = serde_json::to_value(result)
        .map_err(|e| Error::new(Class::Internal, format!("cannot show the result: {e}")))?;
    let Value::Object(members) = &value else {
        return print(&format!("{value}\n"));
    };
    if json {
        return print(&format!("{value}\n"));
    }
    let shown = members
        .iter()
        .filter(|(name, _)| !is_shown_already(name, members));
    let shown = shown.map(|(name, member)| {
        let shown = moment(name, member).or_else(|| scalar(member));
        format!("{name}={}", shown.unwrap_or_else(|| member.to_string()))
    });
    print(&format!("{}\n", shown.collect::<Vec<_>>().join("  ")))
}

fn write_lines(text: &mut String, value: &Value, depth: usize) {
    write_member(text, "", value, depth);
}

fn write_member(text: &mut String, of: &str, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                if is_shown_already(name, members) {
                    continue;
                }
                // The members of `last_rotations` are times, named by kinds of rotations.
                let what = if of == "last_rotations" { "at" } else { name };
                let shown = moment(what, member).or_else(|| scalar(member));
                let key = name;
                let name = name.replace('_', " ");
                match shown {
                    Some(shown) => drop(writeln!(text, "{indent}{name}: {shown}")),
                    None => {
                        let _ = writeln!(text, "{indent}{name}:");
                        write_member(text, key, member, depth + 1);
                    }
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                match scalar(item) {
                    Some(shown) => drop(writeln!(text, "{indent}- {shown}")),
                    None => {
                        let _ = writeln!(text, "{indent}-");
                        write_lines(text, item, depth + 1);
                    }
                }
            }
        }
        other => drop(writeln!(
            text,
            "{indent}{}",
            scalar(other).unwrap_or_default()
        )),
    }
}

/// A time for people, in UTC; programs get it in seconds since 1970.
fn moment(name: &str, value: &Value) -> Option<String> {
    let time = time_of(name, value)?;
    Some(time.replace('T', " ").replace('Z', " UTC"))
}

/// Whether a member repeats the time of another, which people see as a date.
fn is_shown_already(name: &str, members: &Map<String, Value>) -> bool {
    let of = name.strip_suffix(TIME_SUFFIX);
    of.is_some_and(|of| members.contains_key(of))
}

/// A value that fits on one line; `None` for others.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some("none".to_owned()),
        Value::Bool(true) => Some("yes".to_owned()),
        Value::Bool(false) => Some("no".to_owned()),
        Value::Number(number) => Some(number.to_string()),
        // Names and paths may contain control characters, which must not reach a terminal.
        Value::String(text) => Some(
            text.chars()
                .flat_map(|c| {
                    let escaped = c.is_control();
                    let plain = (!escaped).then_some(c);
                    plain
                        .into_iter()
                        .chain(escaped.then(|| c.escape_default()).into_iter().flatten())
                })
                .collect(),
        ),
        Value::Array(items) if items.is_empty() => Some("none".to_owned()),
        Value::Object(members) if members.is_empty() => Some("none".to_owned()),
        Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates_for_people_and_shown_once() {
        let mut text = String::new();
        let value = serde_json::json!({"created": 951_827_696, "created_time": "x", "at": -1});
        write_lines(&mut text, &value, 0);
        assert_eq!(text, "at: -1\ncreated: 2000-02-29 12:34:56 UTC\n");
        assert_eq!(moment("nodes", &Value::from(1)), None);
    }

    #[test]
    fn people_get_indented_lines_and_no_control_characters() {
        let mut text = String::new();
        let value = serde_json::json!({"a_b": 1, "c": {"d": ["x\u{1b}[2J", true]}, "e": []});
        write_lines(&mut text, &value, 0);
        assert_eq!(
            text,
            "a b: 1\nc:\n  d:\n    - x\\u{1b}[2J\n    - yes\ne: none\n"
        );
    }
}
