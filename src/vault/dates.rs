//! Times for people and other programs. Records and JSON members have seconds since 1970; beside
//! each such member another has the time in RFC 3339.

use serde_json::{Map, Value};

/// Names of members that are times.
const TIMES: [&str; 6] = [
    "at",
    "created",
    "since",
    "started",
    "retired",
    "integrity_since",
];
/// The name of a member whose members are all times.
const TIMES_BY_NAME: &str = "last_rotations";
/// The ending of the member that repeats a time in RFC 3339.
pub const SUFFIX: &str = "_time";

/// `seconds` since 1970 in RFC 3339, in UTC. `None` for implausible numbers: records may contain
/// any.
pub fn rfc3339(seconds: i64) -> Option<String> {
    let days = seconds.div_euclid(86_400);
    if !(0..100_000).contains(&days) {
        return None;
    }
    let (year, month, day) = date(days);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    Some(format!(
        "{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
    ))
}

/// The time in a member of this name, if the member is a time.
pub fn time_of(name: &str, value: &Value) -> Option<String> {
    TIMES
        .contains(&name)
        .then(|| value.as_i64())
        .flatten()
        .and_then(rfc3339)
}

/// Adds times in RFC 3339 to all objects in `value`: `at_time` beside `at`, and so on.
pub fn with_times(mut value: Value) -> Value {
    add_times(&mut value);
    value
}

fn add_times(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.values_mut().for_each(add_times);
            let mut more = Map::new();
            for (name, member) in members.iter() {
                if let Some(time) = time_of(name, member) {
                    more.insert(format!("{name}{SUFFIX}"), time.into());
                }
                if name == TIMES_BY_NAME
                    && let Value::Object(times) = member
                {
                    let shown = times.iter().filter_map(|(name, time)| {
                        Some((name.clone(), time.as_i64().and_then(rfc3339)?.into()))
                    });
                    more.insert(format!("{name}{SUFFIX}"), Value::Object(shown.collect()));
                }
            }
            members.extend(more);
        }
        Value::Array(items) => items.iter_mut().for_each(add_times),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Year, month and day of a day since 1970 (H. Hinnant, "chrono-compatible low-level date
/// algorithms"). Years begin in March here, so the leap day is the last.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, january) = (day - (153 * month + 2) / 5 + 1, month >= 10);
    let month = if january { month - 9 } else { month + 3 };
    (era * 400 + year + i64::from(january), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates_in_utc() {
        let shown = |seconds: i64| time_of("created", &Value::from(seconds));
        assert_eq!(shown(0).as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(shown(951_827_696).as_deref(), Some("2000-02-29T12:34:56Z"));
        assert_eq!(
            shown(4_107_542_399).as_deref(),
            Some("2100-02-28T23:59:59Z")
        );
        assert_eq!(shown(-1), None);
        assert_eq!(shown(i64::MAX), None);
        assert_eq!(time_of("nodes", &Value::from(1)), None);
    }

    #[test]
    fn every_time_gets_a_date_beside_it_and_nothing_else_changes() {
        let value = serde_json::json!({
            "list": [{"at": 0, "what": "x"}],
            "last_rotations": {"rotate": 0},
            "since": null,
        });
        let with = serde_json::json!({
            "list": [{"at": 0, "at_time": "1970-01-01T00:00:00Z", "what": "x"}],
            "last_rotations": {"rotate": 0},
            "last_rotations_time": {"rotate": "1970-01-01T00:00:00Z"},
            "since": null,
        });
        assert_eq!(with_times(value), with);
    }
}
