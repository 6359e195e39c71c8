//! What cannot be found, as secretfs-security(7) says.

use rusqlite::types::Value;

use crate::sample::{Found, Sample, number};

#[test]
fn a_whole_older_state_passes_where_nobody_has_seen_the_newer_one() {
    let sample = Sample::new();
    for before in &sample.before {
        assert!(sample.passes_for_another_state(before, false));
        assert!(!sample.passes_for_another_state(before, true));
    }
}

/// Where the pieces of a content lie is not authenticated, only what they are.
#[test]
fn pieces_of_contents_may_lie_anywhere_and_read_as_they_were_written() {
    let sample = Sample::new();
    let (chunks, versions) = (number("chunk"), number("version"));
    let moved = |value: &Value| match value {
        Value::Integer(number) => Value::Integer(number + 5000),
        other => panic!("{other:?} is no number"),
    };
    let (mut out, mut put) = (Vec::new(), Vec::new());
    for row in sample.of("chunk") {
        let mut new = row.clone();
        new[0] = moved(&row[0]);
        out.push((chunks, row));
        put.push((chunks, new));
    }
    for row in sample.of("version") {
        let mut new = row.clone();
        // Node, version, value, generation, and then the row of the first chunk.
        new[4] = moved(&row[4]);
        out.push((versions, row));
        put.push((versions, new));
    }
    assert!(put.len() > 10);
    let found = sample.exchange("all contents moved", true, &out, &put);
    assert_eq!(found, Found::Never);
}

/// The list of what is to be reaped is not authenticated: nodes are asked themselves.
#[test]
fn too_long_a_list_of_what_is_to_be_reaped_reaps_nothing_that_is_in_use() {
    let mut sample = Sample::new();
    let table = number("orphan");
    let nodes: Vec<_> = sample.of("node").map(|row| vec![row[0].clone()]).collect();
    for row in &nodes {
        let found = sample.exchange("an orphan more", true, &[], &[(table, row.clone())]);
        assert_eq!(found, Found::Never);
    }
    let planted: Vec<_> = nodes.into_iter().map(|row| (table, row)).collect();
    sample.plant(&planted);
    sample.settle();
    // All is there, and the list is empty.
    assert_eq!(sample.find("all orphans", true), Found::Never);
    assert_eq!(sample.of("orphan").count(), 0);
}

/// Rows that the program never reads: a second header, keyring or state.
#[test]
fn what_nobody_reads_nobody_misses() {
    let sample = Sample::new();
    for name in ["header", "keyring", "state"] {
        let row = sample.of(name).next().expect("a row");
        let mut second = row.clone();
        second[0] = Value::Integer(7);
        let found = sample.exchange(name, true, &[], &[(number(name), second)]);
        assert_eq!(found, Found::Never);
    }
}
