//! Parses values as people write them: sizes, time spans, switches.

use std::time::Duration;

/// Bytes: a whole number, followed by `K`, `M`, `G` or `T`, with or without `iB`, in powers of
/// 1024.
pub(super) fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let unit = unit.to_ascii_lowercase();
    let shift = match unit.strip_suffix("ib").unwrap_or(&unit) {
        "" if unit.is_empty() => 0,
        "b" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    number.checked_mul(1u64 << shift)
}

/// A time span: a whole number, followed by `ms`, `s` (the default), `m`, `h` or `d`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let seconds = |n: u64| number.checked_mul(n).map(Duration::from_secs);
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "" | "s" => seconds(1),
        "m" | "min" => seconds(60),
        "h" => seconds(3600),
        "d" => seconds(86_400),
        _ => None,
    }
}

/// `true` or `false`, or a common word for either.
pub(super) fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_powers_of_1024() {
        assert_eq!(size("16M"), Some(16 << 20));
        assert_eq!(size("64MiB"), Some(64 << 20));
        assert_eq!(size("64 KiB"), Some(64 << 10));
        assert_eq!(size("7"), Some(7));
        assert_eq!(size("7B"), Some(7));
        for bad in ["", "M", "1.5M", "-1", "16X", "16iB", "99999999999T", "1MB"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_bare_number_is_seconds() {
        assert_eq!(duration("10"), Some(Duration::from_secs(10)));
        assert_eq!(duration("2m"), Some(Duration::from_secs(120)));
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        for bad in ["", "s", "1.5", "-1", "10w", "99999999999999999999"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
