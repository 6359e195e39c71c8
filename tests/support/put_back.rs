//! Vaults, and rows of them, as they were in a copy: what somebody does who has an older one at hand.

use std::fs;
use std::path::{Path, PathBuf};

use super::evil::{copy, database, execute};
use super::process::Place;

pub fn unmount(place: &Place) -> String {
    let point = place.point();
    let ran = place.run(["umount".as_ref(), point.as_os_str()]);
    ran.succeeded().stdout()
}

/// Writes one secret in a mount of its own.
pub fn write_once(place: &Place, text: &str) {
    place.mount(&[]).succeeded();
    fs::write(place.point().join("secret"), text).expect("written");
    unmount(place);
}

/// Puts the copy in the vault's place.
pub fn put_back(place: &Place, kept: &Path) {
    fs::remove_dir_all(place.vault()).expect("removed");
    copy(kept, &place.vault());
}

pub fn keep(place: &Place) -> PathBuf {
    let kept = place.path().join("kept");
    copy(&place.vault(), &kept);
    kept
}

/// All rows as they were in `kept`.
pub fn all_as_it_was(place: &Place, kept: &Path) {
    let tables = [
        "header", "keyring", "state", "node", "entry", "version", "chunk", "orphan", "event",
    ];
    tables_as_they_were(place, kept, &tables);
}

/// All rows of these tables as they were in `kept`.
pub fn tables_as_they_were(place: &Place, kept: &Path, tables: &[&str]) {
    let all = tables.iter().map(|table| rows_as_they_were(table, "true"));
    from(place, kept, &all.collect::<String>());
}

/// The rows of one node as they were in `kept`.
pub fn node_as_it_was(place: &Place, kept: &Path, id: u64) {
    let keys = [("node", "id"), ("version", "node"), ("chunk", "node")];
    let rows = keys.map(|(table, key)| rows_as_they_were(table, &format!("{key} = {id}")));
    from(place, kept, &rows.concat());
}

fn rows_as_they_were(table: &str, which: &str) -> String {
    format!(
        "DELETE FROM main.{table} WHERE {which}; \
         INSERT INTO main.{table} SELECT * FROM old.{table} WHERE {which};"
    )
}

/// Runs `changes`, one transaction, beside the copy under the name `old`.
fn from(place: &Place, kept: &Path, changes: &str) {
    let old = kept.join("vault.db");
    let attach = format!("ATTACH '{}' AS old; BEGIN; ", old.display());
    execute(place, &format!("{attach}{changes} COMMIT;"));
}

/// The id of the node that was made last.
pub fn newest(place: &Place) -> u64 {
    let sql = "SELECT max(id) FROM node";
    let id: i64 = database(place)
        .query_row(sql, [], |row| row.get(0))
        .expect("a node");
    id.unsigned_abs()
}

/// A vault of some thousand records, of which one secret is as it was before.
pub fn large_with_an_older_part() -> Place {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let point = place.point();
    for at in 0..1200 {
        fs::write(point.join(format!("{at}")), "a secret").expect("written");
    }
    fs::write(point.join("secret"), "OLD").expect("written");
    unmount(&place);
    let kept = keep(&place);
    write_once(&place, "NEW");
    copy(&place.vault(), &place.path().join("whole"));
    node_as_it_was(&place, &kept, newest(&place));
    let records: i64 = database(&place)
        .query_row(
            "SELECT (SELECT count(*) FROM node) + (SELECT count(*) FROM version)",
            [],
            |row| row.get(0),
        )
        .expect("counted");
    assert!(records > 2000);
    place
}
