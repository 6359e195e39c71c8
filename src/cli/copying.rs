//! Words that `backup` and `restore` share.

use crate::vault::{CopyReport, NeededKey};

/// The size of a copy, in words.
pub(super) fn size(made: &CopyReport) -> String {
    let some =
        |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    format!(
        "{}, {}, {}, every record verified",
        some(made.secrets, "secret"),
        some(made.nodes, "node"),
        some(made.bytes, "byte")
    )
}

/// The keys that open `what`, each on a line of its own.
pub(super) fn keys(made: &CopyReport, what: &str) -> String {
    let mut text = match (made.kms_keys.len(), made.any_key_opens) {
        (0 | 1, _) => format!("{what} opens with one key:\n"),
        (_, true) => format!("{what} opens with any one of these keys:\n"),
        (_, false) => format!("{what} opens with these keys, and may need more than one:\n"),
    };
    for NeededKey { uri, key_file } in &made.kms_keys {
        let is_local = uri.starts_with("local-kms:");
        text.push_str(&match key_file {
            Some(file) => format!(
                "  {uri}, in {file}, which is not in {what}: keep a copy of it, apart from it\n"
            ),
            None if is_local => {
                format!("  {uri}, whose file this host does not have, and {what} neither\n")
            }
            None => format!("  {uri}\n"),
        });
    }
    text
}
