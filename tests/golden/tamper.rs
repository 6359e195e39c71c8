//! Makes the list of ways to tamper, from the vaults: the same list each time.
//!
//! `cargo nextest run --run-ignored only --test golden -E 'test(/^tamper::/)'` writes it.

use std::fmt::Write as _;

use rusqlite::Connection;
use rusqlite::types::Value;

use crate::store::{copied, here};
use crate::support::process::Place;
use crate::tampered::{Case, apply, checked, found_by};

/// A field of a value: its name, and where it lies. Negative places count from the end.
type Field = (&'static str, i64);

const NODE: &[Field] = &[
    ("kind", 0),
    ("revision", 1),
    ("wrapped: nonce", 9),
    ("wrapped: ciphertext", 33),
    ("wrapped: tag", 80),
    ("sealed: length", 81),
    ("sealed: nonce", 89),
    ("sealed: ciphertext", 113),
    ("sealed: tag", -1),
];
const SECOND_KEY: &[Field] = &[
    ("sealed: tag", -81),
    ("second key: generation", -80),
    ("second key: nonce", -72),
    ("second key: ciphertext", -48),
    ("second key: tag", -1),
];
const ENTRY: &[Field] = &[
    ("epoch", 0),
    ("sealed: length", 4),
    ("sealed: nonce", 12),
    ("sealed: ciphertext", 36),
    ("sealed: tag", -1),
];
const VERSION: &[Field] = &[
    ("wrapped: nonce", 0),
    ("wrapped: ciphertext", 24),
    ("wrapped: tag", 71),
    ("sealed: length", 72),
    ("sealed: nonce", 80),
    ("sealed: ciphertext", 104),
    ("sealed: tag", -1),
];
const SEALED: &[Field] = &[("nonce", 0), ("ciphertext", 24), ("tag", -1)];
const HEADER: &[Field] = &[
    ("magic", 0),
    ("format", 8),
    ("minimum reader", 10),
    ("suite", 12),
    ("vault id", 14),
];

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::from("x'"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }) + "'"
}

/// A list that is being made.
pub struct List {
    pub cases: Vec<Case>,
    pub vault: &'static str,
}

impl List {
    fn database(&self) -> (Place, Connection) {
        let place = copied(self.vault);
        let database = Connection::open(place.vault().join("vault.db")).expect("a database");
        (place, database)
    }

    /// Rows of the vault as it is.
    pub fn rows(&self, sql: &str) -> Vec<Vec<Value>> {
        let (_place, database) = self.database();
        let mut statement = database.prepare(sql).expect(sql);
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| (0..columns).map(|at| row.get(at)).collect());
        rows.expect("rows").map(|row| row.expect("a row")).collect()
    }

    pub fn blob(&self, sql: &str) -> Vec<u8> {
        match self.rows(sql).remove(0).remove(0) {
            Value::Blob(bytes) => bytes,
            other => panic!("{sql}: {other:?}"),
        }
    }

    /// Does it to a copy, and notes what `check` makes of that.
    pub fn case(&mut self, record: &str, field: &str, how: &str, sql: &[String]) {
        let place = copied(self.vault);
        apply(&place.vault(), sql);
        let (exit, says) = checked(&place);
        let case = format!("{}: {record}, {field}, {how}", self.vault);
        assert_ne!(exit, 0, "{case} is not found: {sql:?}");
        println!("{case}: {exit} {says:?}");
        let mut checks: Vec<_> = says.iter().map(|said| found_by(said).to_owned()).collect();
        checks.sort();
        checks.dedup();
        self.cases.push(Case {
            number: self.cases.len() + 1,
            vault: self.vault.into(),
            record: record.into(),
            field: field.into(),
            how: how.into(),
            sql: sql.to_vec(),
            exit,
            found_by: checks,
            says,
        });
    }

    pub fn one(&mut self, record: &str, field: &str, how: &str, sql: &str) {
        self.case(record, field, how, &[sql.to_owned()]);
    }

    /// A bit of each field is flipped; the value is cut off and made longer.
    pub fn value(
        &mut self,
        record: &str,
        (table, column, row): (&str, &str, &str),
        fields: &[Field],
    ) {
        let value = self.blob(&format!("SELECT {column} FROM {table} WHERE {row}"));
        let set = |to: String| format!("UPDATE {table} SET {column} = {to} WHERE {row}");
        for (field, at) in fields {
            let at = (if *at < 0 {
                value.len() as i64 + at
            } else {
                *at
            }) as usize;
            let (before, flipped, after) = (at, value[at] ^ 1, at + 2);
            let to = format!(
                "CAST(substr({column}, 1, {before}) || {} || substr({column}, {after}) AS BLOB)",
                hex(&[flipped])
            );
            self.one(record, field, "flip", &set(to));
        }
        let cut = format!("substr({column}, 1, {})", value.len() - 1);
        self.one(record, "the value", "truncate", &set(cut));
        let longer = format!("CAST({column} || x'00' AS BLOB)");
        self.one(record, "the value", "extend", &set(longer));
    }

    fn settings(&mut self) {
        let mut database = |field, sql| self.one("the database", field, "set", sql);
        database("application_id", "PRAGMA application_id = 1");
        database("user_version", "PRAGMA user_version = 2");
        database(
            "schema: a table",
            "CREATE TABLE more (id INTEGER PRIMARY KEY) STRICT",
        );
        database(
            "schema: an index",
            "CREATE INDEX by_node ON chunk (node, version, idx)",
        );
        database("schema: a view", "CREATE VIEW seen AS SELECT id FROM node");
        database(
            "schema: a trigger",
            "CREATE TRIGGER t AFTER INSERT ON node BEGIN DELETE FROM node; END",
        );
        database("schema: a table less", "DROP TABLE orphan");
        database("schema: a column", "ALTER TABLE orphan ADD COLUMN why TEXT");
    }

    fn single_rows(&mut self) {
        for (name, column) in [("header", HEADER), ("state", SEALED)] {
            let record = match name {
                "state" => "the state record",
                _ => "the header",
            };
            self.value(record, (name, "value", "id = 0"), column);
            self.one(record, "the row", "delete", &format!("DELETE FROM {name}"));
            let longest = if name == "state" { 65_536 } else { 4096 };
            let huge = format!("UPDATE {name} SET value = zeroblob({})", longest + 1);
            self.one(record, "the value", "set", &huge);
        }
        self.one(
            "the keyring record",
            "the row",
            "delete",
            "DELETE FROM keyring",
        );
        let huge = "UPDATE keyring SET value = zeroblob(1048577)";
        self.one("the keyring record", "the value", "set", huge);
        let value = self.blob("SELECT value FROM keyring");
        let body = u64::from_le_bytes(value[..8].try_into().expect("8 bytes")) as i64;
        let fields = [
            ("body: length", 0),
            ("body: sequence", 8),
            ("body: check value", 36),
            ("macs: count", 8 + body),
            ("macs: generation", 16 + body),
            ("macs: mac", 24 + body),
            ("checksum", -1),
        ];
        self.value(
            "the keyring record",
            ("keyring", "value", "id = 0"),
            &fields,
        );
    }

    fn nodes(&mut self, fields: &[Field], which: &str) {
        let sql = format!("SELECT id FROM node WHERE {which} ORDER BY id");
        for row in self.rows(&sql) {
            let Value::Integer(id) = row[0] else {
                panic!("a number")
            };
            let (record, row) = (format!("node {id}"), format!("id = {id}"));
            self.value(&record, ("node", "value", &row), fields);
            let set = format!("UPDATE node SET generation = generation + 1 WHERE {row}");
            self.one(&record, "generation", "set", &set);
            self.one(
                &record,
                "the row",
                "delete",
                &format!("DELETE FROM node WHERE {row}"),
            );
        }
    }

    fn entries(&mut self, which: &str) {
        let sql = format!("SELECT directory, tag FROM entry WHERE {which} ORDER BY directory, tag");
        for row in self.rows(&sql) {
            let (Value::Integer(directory), Value::Blob(tag)) = (&row[0], &row[1]) else {
                panic!("a key");
            };
            let record = format!("an entry of directory {directory}");
            let row = format!("directory = {directory} AND tag = {}", hex(tag));
            self.value(&record, ("entry", "value", &row), ENTRY);
            let mut other = tag.clone();
            other[0] ^= 1;
            let set = |to: &str| format!("UPDATE entry SET {to} WHERE {row}");
            self.one(
                &record,
                "tag",
                "flip",
                &set(&format!("tag = {}", hex(&other))),
            );
            self.one(&record, "tag", "truncate", &set("tag = substr(tag, 1, 31)"));
            self.one(&record, "directory", "set", &set("directory = 987654"));
            self.one(
                &record,
                "the row",
                "delete",
                &format!("DELETE FROM entry WHERE {row}"),
            );
            let again = format!(
                "INSERT INTO entry SELECT directory, {}, value FROM entry WHERE {row}",
                hex(&other)
            );
            self.one(&record, "the row", "insert", &again);
        }
    }

    fn versions(&mut self, which: &str) {
        let sql = format!("SELECT node, version FROM version WHERE {which} ORDER BY node");
        for row in self.rows(&sql) {
            let (Value::Integer(node), Value::Integer(version)) = (&row[0], &row[1]) else {
                panic!("a key");
            };
            let record = format!("version {version} of node {node}");
            let row = format!("node = {node} AND version = {version}");
            self.value(&record, ("version", "value", &row), VERSION);
            for (field, to) in [
                ("generation", "generation = generation + 1"),
                ("generation", "generation = -1"),
                ("first_chunk", "first_chunk = first_chunk + 1"),
                ("first_chunk", "first_chunk = 0"),
                ("version", "version = version + 1"),
                ("node", "node = 987654"),
            ] {
                let set = format!("UPDATE version SET {to} WHERE {row}");
                self.one(&record, field, "set", &set);
            }
            self.one(
                &record,
                "the row",
                "delete",
                &format!("DELETE FROM version WHERE {row}"),
            );
        }
    }

    fn chunks(&mut self, which: &str) {
        let sql = format!("SELECT id, node, version, idx FROM chunk WHERE {which} ORDER BY id");
        for row in self.rows(&sql) {
            let numbers: Vec<i64> = row
                .iter()
                .map(|value| match value {
                    Value::Integer(number) => *number,
                    other => panic!("{other:?}"),
                })
                .collect();
            let [id, node, version, index] = numbers[..] else {
                panic!("four")
            };
            let record = format!("chunk {index} of version {version} of node {node}");
            let row = format!("id = {id}");
            self.value(&record, ("chunk", "sealed", &row), SEALED);
            for (field, to) in [
                ("id", "id = 987654"),
                ("node", "node = node + 1"),
                ("version", "version = version + 1"),
                ("idx", "idx = idx + 1"),
                ("idx", "idx = 4294967296"),
            ] {
                self.one(
                    &record,
                    field,
                    "set",
                    &format!("UPDATE chunk SET {to} WHERE {row}"),
                );
            }
            self.one(
                &record,
                "the row",
                "delete",
                &format!("DELETE FROM chunk WHERE {row}"),
            );
            let stray = format!(
                "INSERT INTO chunk SELECT 987654, node, version, idx, sealed FROM chunk WHERE {row}"
            );
            self.one(&record, "the row", "insert", &stray);
        }
    }

    /// Two rows have each other's value.
    pub fn swap(
        &mut self,
        records: &str,
        (table, column): (&str, &str),
        (one, other): (&str, &str),
    ) {
        let value = |row: &str| self.blob(&format!("SELECT {column} FROM {table} WHERE {row}"));
        let values = [(one, value(other)), (other, value(one))];
        let sql: Vec<String> = values
            .iter()
            .map(|(row, value)| format!("UPDATE {table} SET {column} = {} WHERE {row}", hex(value)))
            .collect();
        self.case(records, column, "swap", &sql);
    }
}

#[test]
#[ignore = "makes a list that is committed"]
fn the_list_of_ways_to_tamper() {
    let mut list = List {
        cases: Vec::new(),
        vault: "tree",
    };
    list.settings();
    list.single_rows();
    list.nodes(
        NODE,
        "id IN (SELECT min(id) FROM node GROUP BY substr(value, 1, 1))",
    );
    let few = "tag IN (SELECT min(tag) FROM entry GROUP BY directory ORDER BY directory LIMIT 2)";
    list.entries(few);
    list.versions("node IN (SELECT min(node) FROM chunk GROUP BY length(sealed) < 60000)");
    list.chunks("node = (SELECT min(node) FROM chunk WHERE length(sealed) > 60000)");
    list.replays();
    let node = |at: u32| format!("id = (SELECT id FROM node ORDER BY id LIMIT 1 OFFSET {at})");
    list.swap("two nodes", ("node", "value"), (&node(2), &node(3)));
    list.swap(
        "system node and root",
        ("node", "value"),
        (&node(0), &node(1)),
    );
    let entry = |at: u32| format!("tag = (SELECT tag FROM entry ORDER BY tag LIMIT 1 OFFSET {at})");
    list.swap("two entries", ("entry", "value"), (&entry(0), &entry(1)));
    let version =
        |at: u32| format!("node = (SELECT node FROM version ORDER BY node LIMIT 1 OFFSET {at})");
    list.swap(
        "two versions",
        ("version", "value"),
        (&version(0), &version(1)),
    );
    let large = "node = (SELECT min(node) FROM chunk WHERE length(sealed) > 60000)";
    let chunk = |index: u32| format!("{large} AND idx = {index}");
    list.swap(
        "two chunks of a version",
        ("chunk", "sealed"),
        (&chunk(0), &chunk(1)),
    );
    list.forged_nodes();
    list.forged_entries();
    list.forged_versions();
    list.forged_state();
    list.forged_keyrings();
    list.vault = "history";
    list.events();
    list.vault = "reencrypt";
    let two_keys = "(length(value) - 89 - 40) % 256 = 80";
    list.nodes(SECOND_KEY, two_keys);
    list.vault = "sums";
    list.nodes(SECOND_KEY, "id = 0");
    list.value("the state record", ("state", "value", "id = 0"), SEALED);
    list.vault = "rotate";
    list.nodes(
        &[],
        "id IN (SELECT min(id) FROM node WHERE id > 1 GROUP BY generation)",
    );
    list.vault = "left-overs";
    list.one(
        "orphans",
        "the row",
        "insert",
        "INSERT INTO orphan VALUES (987654)",
    );
    list.one(
        "orphans",
        "id",
        "set",
        "UPDATE orphan SET id = -1 WHERE id = (SELECT min(id) FROM orphan)",
    );
    for at in 0..4 {
        let row = format!("id = (SELECT id FROM orphan ORDER BY id LIMIT 1 OFFSET {at})");
        list.one(
            "orphans",
            "the row",
            "delete",
            &format!("DELETE FROM orphan WHERE {row}"),
        );
    }
    list.vault = "tree";
    list.forged_places();
    list.vault = "new";
    list.forged_root();
    let cases = serde_json::to_string_pretty(&list.cases).expect("JSON");
    std::fs::write(here().join("tampered.json"), cases + "\n").expect("written");
    println!("{} cases", list.cases.len());
}
