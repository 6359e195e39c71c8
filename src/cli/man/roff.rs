//! Text as roff.

/// `text` with what roff would take for its own escaped. Words in backticks become bold.
pub(super) fn escaped(text: &str) -> String {
    let mut roff = String::new();
    for (place, part) in text.split('`').enumerate() {
        if place > 0 {
            // Every second part stands between backticks.
            roff.push_str(if place % 2 == 1 { "\\fB" } else { "\\fR" });
        }
        roff.push_str(&part.replace('\\', "\\e").replace('-', "\\-"));
    }
    roff
}

/// A paragraph, on lines that no control character begins.
pub(super) fn paragraph(text: &str) -> String {
    let lines = escaped(text);
    let lines = lines
        .lines()
        .map(|line| match line.starts_with(['.', '\'']) {
            true => format!("\\&{line}\n"),
            false => format!("{line}\n"),
        });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_taken_for_roff() {
        assert_eq!(escaped(r"a-b \n `-o ro` c"), r"a\-b \en \fB\-o ro\fR c");
        assert_eq!(paragraph(".SH\n'x\ny."), "\\&.SH\n\\&'x\ny.\n");
    }
}
