//! Output to people and programs. A reader that leaves early is no fault of anybody.

use std::fmt::Write as _;
use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;

use crate::daemon::{Class, Error};

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

/// One line on standard error.
pub(super) fn complain(program: &str, error: &Error) {
    let line = format!("{program}: {error}\n");
    // There is nobody to tell that this failed.
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

fn write_lines(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let name = name.replace('_', " ");
                match scalar(member) {
                    Some(shown) => drop(writeln!(text, "{indent}{name}: {shown}")),
                    None => {
                        let _ = writeln!(text, "{indent}{name}:");
                        write_lines(text, member, depth + 1);
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

/// What fits on one line.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some("none".to_owned()),
        Value::Bool(true) => Some("yes".to_owned()),
        Value::Bool(false) => Some("no".to_owned()),
        Value::Number(number) => Some(number.to_string()),
        // Names and paths may hold anything; a terminal must not obey it.
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
