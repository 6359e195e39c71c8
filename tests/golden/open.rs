//! Today's program opens the vaults, and finds in them what was found when they were made.

use serde_json::Value;

use crate::store::{VAULTS, copied, found_in, of};

fn opens(name: &str) {
    let expected = std::fs::read(of(name).join("expected.json")).expect("it is there");
    let expected: Value = serde_json::from_slice(&expected).expect("JSON");
    let found = found_in(&copied(name));
    for (part, expected) in expected.as_object().expect("an object") {
        assert_eq!(&found[part], expected, "{name}: {part}");
    }
    let parts = |value: &Value| value.as_object().map(serde_json::Map::len);
    assert_eq!(parts(&found), parts(&expected), "{name}");
}

#[test]
fn every_vault_of_format_1_opens_and_has_in_it_what_it_had() {
    for (name, what) in VAULTS {
        println!("{name}: {what}");
        opens(name);
    }
}

#[test]
fn no_vault_is_there_that_nobody_opens() {
    let vaults = std::fs::read_dir(crate::store::here().join("vaults")).expect("vaults");
    let mut found: Vec<_> = vaults
        .map(|vault| {
            vault
                .expect("a vault")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .collect();
    found.sort();
    let mut known: Vec<_> = VAULTS.iter().map(|(name, _)| name.to_string()).collect();
    known.sort();
    assert_eq!(found, known);
}
