//! Every way to tamper in `tampered.json` is refused, with the exit code and for the reason that stand there.

use std::path::Path;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::store::{copied, here};
use crate::support::process::Place;

/// A way to tamper with one of the vaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    pub number: usize,
    /// The vault.
    pub vault: String,
    /// The record, by its table and key; and its field, in the words of secretfs-vault(5).
    pub record: String,
    pub field: String,
    /// What is done to it: flip, set, swap, delete, insert, replay, truncate, extend, forge.
    pub how: String,
    /// Statements that do that to a copy of the vault.
    pub sql: Vec<String>,
    /// The exit code of `secretfs check`.
    pub exit: i32,
    /// The kinds of checks that find it.
    pub found_by: Vec<String>,
    /// What `secretfs check` says: the error, or the problems.
    pub says: Vec<String>,
}

/// The kinds of checks, and words in what they say.
const CHECKS: &[(&str, &[&str])] = &[
    (
        "database",
        &[
            "no vault",
            "the layout has version",
            "the schema",
            "lacks a table",
        ],
    ),
    (
        "bounds",
        &[
            "out of range",
            "bytes where",
            "bytes instead of 32",
            "not stored as",
            "chunk index",
        ],
    ),
    (
        "missing",
        &[
            "the header is missing",
            "keyring record is missing",
            "state record is missing",
            "system node is missing",
            "root directory is missing",
        ],
    ),
    (
        "header",
        &["encoded header", "as a header does", "use a newer one"],
    ),
    (
        "keyring encoding",
        &["encoded keyring record", "encoded keyring body"],
    ),
    (
        "keyring checksum",
        &["header or keyring record have been changed"],
    ),
    ("keyring generations", &["generations do not fit together"]),
    ("keyring MAC", &["does not carry the MAC"]),
    ("check value", &["wrong key: what"]),
    (
        "KMS",
        &[
            "local-kms://",
            "KMS keys that are not pinned",
            "no KMS key URI",
        ],
    ),
    ("generation", &["which is not in the keyring"]),
    ("wrapped key", &["the wrapped key of"]),
    ("sequence", &["one of them was put back"]),
    ("history", &["key-management history"]),
    (
        "encoding",
        &[
            "is not encoded as",
            "has unknown attributes",
            "has an unknown",
            "holds no name",
        ],
    ),
    ("kind", &["of another kind"]),
    ("name tag", &["is filed under another name"]),
    (
        "extent",
        &[
            "has an impossible length",
            "has another length than its node says",
        ],
    ),
    ("seal", &["does not authenticate"]),
    (
        "names",
        &[
            "names and has",
            "names a node that is missing",
            "is a directory, and says that it has",
            "in another place than it says",
        ],
    ),
    (
        "chunk",
        &["is missing", "there is another", "lacks its first chunk"],
    ),
    (
        "strays",
        &[
            "chunks belong to no version",
            "belongs to no node",
            "is no file",
            "names are in no directory",
            "is newer than its node says",
            "belongs to a file without a content",
        ],
    ),
    (
        "state",
        &["does not fit the system node", "node number was given out"],
    ),
    ("sum of the vault", &["nodes or versions were replayed"]),
    (
        "sum of a directory",
        &["names were removed, replayed or inserted"],
    ),
    ("content", &["has lost version", "has no content, and says"]),
    ("left-overs", &["left-overs", "orphan list"]),
];

/// Which check says that.
pub fn found_by(what: &str) -> &'static str {
    let says = |words: &[&str]| words.iter().any(|word| what.contains(word));
    let check = CHECKS.iter().find(|(_, words)| says(words));
    check.unwrap_or_else(|| panic!("no check says {what:?}")).0
}

/// What `secretfs check` makes of a vault: its exit code, and what it says.
pub fn checked(place: &Place) -> (i32, Vec<String>) {
    let vault = place.vault();
    let ran = place.run(["check".as_ref(), vault.as_os_str(), "--json".as_ref()]);
    let code = ran.0.status.code().expect("it ended by itself");
    let told = ran.stdout();
    let mut says: Vec<String> = match serde_json::from_str::<Value>(&told) {
        Ok(report) => {
            let problems = report["problems"].as_array().expect("a list").iter();
            let what = |problem: &Value| problem["what"].as_str().map(str::to_owned);
            problems.filter_map(what).collect()
        }
        Err(_) => vec![ran.stderr().trim_end().to_owned()],
    };
    let path = place.path().display().to_string();
    says.iter_mut()
        .for_each(|what| *what = what.replace(&path, ""));
    // Directories are looked at in no order.
    says.sort();
    (code, says)
}

/// Tampers with a vault.
pub fn apply(vault: &Path, sql: &[String]) {
    let database = Connection::open(vault.join("vault.db")).expect("a database");
    database
        .execute_batch("PRAGMA ignore_check_constraints = ON")
        .expect("set");
    for statement in sql {
        database.execute_batch(statement).expect(statement);
    }
}

pub fn cases() -> Vec<Case> {
    let list = std::fs::read(here().join("tampered.json")).expect("the list");
    serde_json::from_slice(&list).expect("JSON")
}

#[test]
fn every_tampered_vault_is_refused_for_the_reason_that_is_its_own() {
    let cases = cases();
    assert!(cases.len() >= 200);
    for case in &cases {
        let place = copied(&case.vault);
        apply(&place.vault(), &case.sql);
        let (exit, says) = checked(&place);
        let what = format!(
            "{}: {} of {}, {}",
            case.number, case.field, case.record, case.how
        );
        assert_eq!(exit, case.exit, "{what}: {says:?}");
        assert_eq!(says, case.says, "{what}");
        assert!([1, 3, 4, 6].contains(&exit), "{what}");
        for said in &says {
            assert!(
                case.found_by.iter().any(|check| check == found_by(said)),
                "{what}: {said}"
            );
        }
    }
    let every = |of: fn(&Case) -> &str, least: usize| {
        let mut different: Vec<_> = cases.iter().map(of).collect();
        different.sort_unstable();
        different.dedup();
        assert!(different.len() >= least, "{different:?}");
    };
    every(|case| &case.how, 8);
    every(|case| &case.field, 40);
    // Each check finds something that no other finds before it.
    for (check, _) in CHECKS {
        let first = |case: &Case| case.found_by.iter().any(|by| by == check);
        assert!(cases.iter().any(first), "nothing is found by: {check}");
    }
}

#[test]
fn a_repair_leaves_nothing_that_no_writer_makes() {
    let no_writer_makes = [
        ("a file without a content", "body: size"),
        ("a file without a content", "version: 0"),
        ("a directory", "links: two names"),
        ("the root", "links: a name"),
        ("the root", "the row"),
    ];
    let is_one =
        |case: &&Case| no_writer_makes.contains(&(case.record.as_str(), case.field.as_str()));
    let cases = cases();
    let cases: Vec<_> = cases.iter().filter(is_one).collect();
    assert_eq!(cases.len(), no_writer_makes.len());
    for case in cases {
        let place = copied(&case.vault);
        let vault = place.vault();
        apply(&vault, &case.sql);
        let what = format!("{}: {} of {}", case.number, case.field, case.record);
        assert_eq!(checked(&place).0, 6, "{what}");
        let ran = place.run([
            "check".as_ref(),
            "--repair".as_ref(),
            vault.as_os_str(),
            "--json".as_ref(),
        ]);
        assert_eq!(ran.0.status.code(), Some(0), "{what}: {}", ran.stdout());
        assert_eq!(checked(&place), (0, vec![]), "{what}");
    }
}
