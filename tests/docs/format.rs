//! secretfs-vault(5) shows records of the test vectors, to the byte.

use std::path::Path;

fn text(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect("a file")
}

#[test]
fn the_examples_of_the_format_are_the_vectors_that_the_program_opens() {
    let page = text("src/cli/man/secretfs-vault.5.in");
    // Long numbers are on several lines.
    let mut numbers = vec![String::new()];
    for line in page.lines() {
        match line.strip_prefix("  ") {
            Some(digits) if digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
                numbers.last_mut().expect("one").push_str(digits);
            }
            _ => numbers.push(String::new()),
        }
    }
    let vectors = text("tests/vectors/format1.txt");
    let vectors = vectors.lines().filter_map(|line| line.split_once(' '));
    let mut shown = 0;
    for (name, digits) in vectors {
        if [
            "header", "keyring", "event", "system", "root", "file", "tag", "entry", "version",
            "chunk", "state",
        ]
        .contains(&name)
        {
            assert!(numbers.iter().any(|number| number == digits), "{name}");
            shown += 1;
        }
    }
    assert_eq!(shown, 11);
}

#[test]
fn the_page_names_every_kind_of_check_that_the_golden_list_names() {
    let page = text("src/cli/man/secretfs-vault.5.in");
    let (_, table) = page.split_once(".SS Kinds of checks").expect("the table");
    let (table, _) = table.split_once(".EE").expect("its end");
    let table = table.replace('\\', "");
    let list: serde_json::Value =
        serde_json::from_str(&text("tests/golden/tampered.json")).expect("JSON");
    let cases = list.as_array().expect("a list").iter();
    let kinds = cases.flat_map(|case| case["found_by"].as_array().expect("kinds"));
    let mut kinds: Vec<_> = kinds.map(|kind| kind.as_str().expect("a name")).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert!(kinds.len() >= 27);
    for kind in kinds {
        let row = format!("{kind}  ");
        assert!(table.lines().any(|line| line.starts_with(&row)), "{kind}");
    }
}
