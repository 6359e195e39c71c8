//! The plans of statements.

use super::*;

#[test]
fn no_statement_scans_where_it_should_seek() {
    let vault = Vault::filled();
    let connection = rusqlite::Connection::open(vault.file("vault.db")).unwrap();
    for sql in [
        "SELECT directory FROM entry WHERE (directory, tag) > (1, x'00') \
         ORDER BY directory, tag LIMIT 5",
        "SELECT node FROM version WHERE (node, version) > (1, 2) ORDER BY node, version LIMIT 5",
        "SELECT 1 FROM version AS v LEFT JOIN chunk AS c ON c.id = v.first_chunk \
         WHERE v.node = 1 AND v.version = 2",
        "SELECT c.sealed FROM version AS v JOIN chunk AS c ON c.id = v.first_chunk + 3 \
         WHERE v.node = 1 AND v.version = 2 AND v.first_chunk > 0",
    ] {
        let mut statement = connection
            .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
            .unwrap();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let step: String = row.get(3).unwrap();
            assert!(step.starts_with("SEARCH"), "{sql}: {step}");
        }
    }
}
