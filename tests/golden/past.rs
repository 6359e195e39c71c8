//! Tampering with the past: events of the history, and rows of an earlier copy in the place of newer ones.

use rusqlite::Connection;
use rusqlite::types::Value;

use crate::store::copied;
use crate::tamper::{List, hex};

impl List {
    pub fn events(&mut self) {
        let whole = [("at", 0), ("late", 8), ("kind", 9), ("the last field", -1)];
        for (sequence, what, fields) in [
            (1, "created", &whole[..]),
            (2, "change-started", &whole),
            (3, "activated", &whole[3..]),
            (4, "retired", &whole[3..]),
            (5, "change-finished", &whole[3..]),
            (6, "rewrapped", &whole[3..]),
            (12, "rollback-accepted", &whole[3..]),
            (13, "change-abandoned", &whole[3..]),
            (14, "retired-despite", &whole[3..]),
            (15, "repaired", &whole[3..]),
            (16, "tampering-found", &whole[3..]),
            (17, "of an unknown kind", &whole[3..]),
        ] {
            let record = format!("event {sequence}, {what}");
            let row = format!("sequence = {sequence}");
            self.value(&record, ("event", "value", &row), fields);
            let delete = format!("DELETE FROM event WHERE {row}");
            self.one(&record, "the row", "delete", &delete);
            let later = format!("UPDATE event SET sequence = 1000 WHERE {row}");
            self.one(&record, "sequence", "set", &later);
        }
        let last = "sequence = (SELECT max(sequence) FROM event)";
        self.one(
            "the last event",
            "the row",
            "delete",
            &format!("DELETE FROM event WHERE {last}"),
        );
        let again = format!("INSERT INTO event SELECT sequence + 1, value FROM event WHERE {last}");
        self.one("the last event", "the row", "insert", &again);
        self.swap(
            "events 2 and 3",
            ("event", "value"),
            ("sequence = 2", "sequence = 3"),
        );
        self.one("all events", "the rows", "delete", "DELETE FROM event");
    }

    /// Rows of an earlier copy of the vault in the place of the newer ones.
    pub fn replays(&mut self) {
        let columns = [
            ("keyring", "id", "value"),
            ("state", "id", "value"),
            ("node", "id", "value"),
            ("entry", "hex(tag)", "value"),
            ("version", "node", "value"),
        ];
        for (table, key, value) in columns {
            let mut done = 0;
            for (key_is, old) in earlier(table, key, value) {
                let row = format!("{key} = {key_is}");
                let sql = format!("SELECT {value} FROM {table} WHERE {row}");
                let is_other = |row: &Vec<Value>| row[0] != Value::Blob(old.clone());
                if done < 3 && self.rows(&sql).first().is_some_and(is_other) {
                    done += 1;
                    let put = format!("UPDATE {table} SET {value} = {} WHERE {row}", hex(&old));
                    let record = format!("{table} {}", key_is.trim_matches('\''));
                    self.one(&record, value, "replay", &put);
                }
            }
        }
    }
}

/// The rows of a table in the earlier copy: their keys as SQL, and a value of each.
fn earlier(table: &str, key: &str, value: &str) -> Vec<(String, Vec<u8>)> {
    let place = copied("early");
    let early = Connection::open(place.vault().join("vault.db")).expect("a database");
    let sql = format!("SELECT quote({key}), {value} FROM {table} ORDER BY 1");
    let mut statement = early.prepare(&sql).expect(&sql);
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.expect("rows").map(|row| row.expect("a row")).collect()
}
