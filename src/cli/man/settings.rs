//! The table of settings, for secretfs.toml(5).

use crate::config::{Kind, SETTINGS, Scope, Setting};

use super::roff::{escaped, paragraph};

/// All settings, as a part of a man page.
pub(super) fn section() -> String {
    SETTINGS.iter().map(entry).collect()
}

fn entry(setting: &Setting) -> String {
    let name = escaped(setting.name);
    let value = match setting.kind {
        Kind::Switch => "true".to_owned(),
        _ => format!("\\fI{}\\fR", setting.value_name),
    };
    let origin = match setting.lasting {
        true => format!("`{}`", setting.variable()),
        false => "Only as a flag or with `-o`".to_owned(),
    };
    let facts = format!(
        "{}. {}. {origin}.",
        allowed(setting.kind),
        used_by(setting.scope)
    );
    format!(
        ".TP\n\\fB{name}\\fR = {value}\n{}.br\n{}",
        paragraph(&format!("{}.", setting.help)),
        paragraph(&facts)
    )
}

/// The allowed values.
fn allowed(kind: Kind) -> String {
    match kind {
        Kind::Switch => "true or false".to_owned(),
        Kind::Size { min, max } => format!("A size from {} to {}", size(min), size(max)),
        Kind::Duration { min_ms, max_ms } => {
            format!("A time from {} to {}", time(min_ms), time(max_ms))
        }
        Kind::Count { min, max } => format!("A number from {min} to {max}"),
        Kind::Path => "A path".to_owned(),
        Kind::Choice(words) => format!("One of {}", words.join(", ")),
        Kind::KeyUris => "One key, or a list of keys".to_owned(),
        Kind::VaultId => "32 hexadecimal digits".to_owned(),
    }
}

fn used_by(scope: Scope) -> &'static str {
    match scope {
        Scope::Vault => "For commands that open or create a vault",
        Scope::Init => "For init",
        Scope::Mount => "For mount",
        Scope::Open => "For commands that open an existing vault",
    }
}

/// A number in the largest unit that divides it.
fn in_units(number: u64, units: &[(u64, &str)]) -> String {
    let unit = units
        .iter()
        .find(|(factor, _)| number.is_multiple_of(*factor));
    unit.filter(|_| number > 0)
        .map_or(number.to_string(), |(factor, name)| {
            format!("{}{name}", number / factor)
        })
}

fn size(bytes: u64) -> String {
    in_units(bytes, &[(1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")])
}

fn time(ms: u64) -> String {
    let units = [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1000, "s"),
        (1, "ms"),
    ];
    in_units(ms, &units)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_shown_in_the_largest_unit_that_divides_them() {
        assert_eq!(
            [size(1 << 32), size(1 << 20), size(1000)],
            ["4G", "1M", "1000"]
        );
        assert_eq!([time(0), time(100), time(5000)], ["0", "100ms", "5s"]);
        assert_eq!([time(3_600_000), time(315_360_000_000)], ["1h", "3650d"]);
    }

    #[test]
    fn every_setting_has_its_name_its_help_and_its_variable() {
        let page = section();
        for setting in SETTINGS {
            assert!(page.contains(&format!("\\fB{}\\fR = ", escaped(setting.name))));
            assert!(page.contains(&escaped(setting.help)), "{}", setting.name);
            assert_eq!(
                page.contains(&setting.variable()),
                setting.lasting,
                "{}",
                setting.name
            );
        }
    }
}
