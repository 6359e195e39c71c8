//! The promises of secretfs and its limits, from `promises.txt`, for secretfs-security(7).

use super::roff::{escaped, paragraph};

const SOURCE: &str = include_str!("promises.txt");

/// The entries under a heading of the source, as a part of a man page.
pub(super) fn section(heading: &str) -> String {
    let heading = format!("# {heading}\n");
    let after = SOURCE.split_once(&heading).map_or("", |(_, after)| after);
    let entries = after.split("\n# ").next().unwrap_or_default();
    let entries = entries.split("\n\n").map(|entry| entry.trim_matches('\n'));
    let entries = entries.filter(|entry| !entry.is_empty());
    entries.map(entry).collect()
}

/// The words of an entry, and its tests on lines of their own below.
fn entry(source: &str) -> String {
    let (tests, words): (Vec<&str>, Vec<&str>) =
        source.lines().partition(|line| line.starts_with("    "));
    let words = words.join("\n").replace("\nbecause ", "\n.br\nReason: ");
    let words = words.split("\n.br\n").map(paragraph);
    let words: Vec<String> = words.collect();
    let tests: String = tests
        .iter()
        .map(|test| format!(".br\n{}\n", escaped(test.trim_start())))
        .collect();
    format!(".PP\n{}.RS 4\n{tests}.RE\n", words.join(".br\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_its_words_its_reason_and_each_test_on_a_line() {
        let source = "Secrecy from `root`.\nbecause it reads\nmemory.\n    a.rs::b\n    c/d.rs::e";
        let expected = ".PP\nSecrecy from \\fBroot\\fR.\n.br\nReason: it reads\nmemory.\n\
                        .RS 4\n.br\na.rs::b\n.br\nc/d.rs::e\n.RE\n";
        assert_eq!(entry(source), expected);
    }

    #[test]
    fn both_sections_have_their_own_entries() {
        let (promised, not) = (section("Promised"), section("Not promised"));
        assert!(promised.matches(".PP").count() > 50 && !promised.contains("Reason: "));
        assert_eq!(not.matches(".PP").count(), not.matches("Reason: ").count());
        assert!(not.matches(".PP").count() > 10);
    }
}
