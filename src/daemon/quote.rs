//! Names that others have chosen, quoted for messages: they cannot control a terminal, and pasted
//! into a shell they are one word.

use std::ffi::OsStr;

/// The name unchanged if it has no special character; otherwise in quotes, with control characters
/// escaped.
pub(crate) fn quoted(name: impl AsRef<OsStr>) -> String {
    let name = name.as_ref().to_string_lossy();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+:@%,=".contains(c);
    if !name.is_empty() && name.chars().all(is_plain) {
        return name.into_owned();
    }
    let mut text = String::from("'");
    for c in name.chars() {
        match c {
            // Close the quotes, add an escaped quote, and open them again.
            '\'' => text.push_str("'\\''"),
            // Inside quotes, these stand for themselves.
            '"' | '\\' => text.push(c),
            c => text.extend(c.escape_debug()),
        }
    }
    text.push('\'');
    text
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_name_is_one_word_of_a_shell_and_steers_no_terminal() {
        assert_eq!(quoted("/mnt/a-b_1.2"), "/mnt/a-b_1.2");
        assert_eq!(quoted("/mnt/é"), "/mnt/é");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("/a b"), "'/a b'");
        assert_eq!(quoted("/a`id`$(id);\"\\"), "'/a`id`$(id);\"\\'");
        assert_eq!(quoted("/a';id;'"), "'/a'\\'';id;'\\'''");
        assert_eq!(quoted("a\n\u{1b}[2J\u{202e}"), "'a\\n\\u{1b}[2J\\u{202e}'");
        let mut shell = std::process::Command::new("sh");
        let hostile = "/a';echo \"x\" `id` $(id) \\ #'";
        shell.args(["-c", &format!("printf %s {}", quoted(hostile))]);
        let said = shell.output().expect("sh runs").stdout;
        assert_eq!(String::from_utf8_lossy(&said), hostile);
    }
}
