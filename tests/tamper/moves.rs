//! Records in the place of others: swapped, copied, removed, older ones, and removed ones.

use rusqlite::types::Value;

use crate::sample::{Found, Row, Sample, TABLES, key};

/// The row at `place` with what another one says: its bytes, or all but the key.
fn in_place_of(table: usize, place: &Row, other: &Row, with_numbers: bool) -> Row {
    let keys = TABLES[table].key.len();
    let bytes = TABLES[table].blobs.len();
    let end = if with_numbers {
        place.len()
    } else {
        keys + bytes
    };
    let mut row = place.clone();
    row[keys..end].clone_from_slice(&other[keys..end]);
    row
}

fn tally(cases: &mut [u32; 3], found: Found, what: &str) {
    assert_ne!(found, Found::Never, "{what}");
    cases[found as usize] += 1;
}

#[test]
fn a_record_in_the_place_of_another_of_its_kind_is_found() {
    let sample = Sample::new();
    let mut cases = [0; 3];
    for (table, described) in TABLES.iter().enumerate() {
        let rows: Vec<&Row> = sample.of(described.name).collect();
        for (at, one) in rows.iter().enumerate() {
            for (other_at, other) in rows.iter().enumerate().filter(|(other, _)| *other != at) {
                for with_numbers in [false, true] {
                    let copied = in_place_of(table, one, other, with_numbers);
                    // What has no bytes of its own is all key.
                    if copied == **one {
                        continue;
                    }
                    let what = format!("{}, {at} is {other_at}", described.name);
                    let found = sample.replace(&what, table, one, copied.clone());
                    tally(&mut cases, found, &what);
                    if other_at < at {
                        continue;
                    }
                    let swapped = in_place_of(table, other, one, with_numbers);
                    let what = format!("{}, {at} and {other_at} swapped", described.name);
                    let out = [(table, *one), (table, *other)];
                    let put = [(table, copied), (table, swapped)];
                    let found = sample.exchange(&what, false, &out, &put);
                    tally(&mut cases, found, &what);
                }
            }
        }
    }
    println!("copied and swapped: {cases:?}");
    assert!(cases[0] > 300 && cases[1] > 100);
}

#[test]
fn a_removed_record_is_missed() {
    let sample = Sample::new();
    let mut cases = [0; 3];
    for ((table, _), row) in &sample.now {
        let what = format!("{} removed: {:?}", TABLES[*table].name, row[0]);
        let found = sample.exchange(&what, false, &[(*table, row)], &[]);
        tally(&mut cases, found, &what);
    }
    for (table, described) in TABLES.iter().enumerate() {
        let out: Vec<_> = sample.of(described.name).map(|row| (table, row)).collect();
        let what = format!("all of {} removed", described.name);
        let found = sample.exchange(&what, false, &out, &[]);
        tally(&mut cases, found, &what);
    }
    println!("removed: {cases:?}");
}

#[test]
fn an_older_record_in_the_place_of_a_newer_one_is_found() {
    let sample = Sample::new();
    let mut cases = [0; 3];
    for before in &sample.before {
        for (at, old) in before {
            let Some(new) = sample.now.get(at).filter(|new| *new != old) else {
                continue;
            };
            let mut variants = vec![old.clone()];
            // Its bytes alone, where there are numbers beside them.
            let bytes = in_place_of(at.0, new, old, false);
            if bytes != *old && bytes != *new {
                variants.push(bytes);
            }
            for old in variants {
                let what = format!("{} {:?} put back", TABLES[at.0].name, old[0]);
                let found = sample.replace(&what, at.0, new, old);
                tally(&mut cases, found, &what);
            }
        }
    }
    println!("older: {cases:?}");
    assert!(cases[0] + cases[1] >= 20);
}

#[test]
fn a_record_that_was_removed_and_is_there_again_is_found() {
    let sample = Sample::new();
    let mut cases = [0; 3];
    for before in &sample.before {
        for (at, old) in before {
            if sample.now.contains_key(at) {
                continue;
            }
            let what = format!("{} {:?} inserted", TABLES[at.0].name, old[0]);
            let found = sample.exchange(&what, false, &[], &[(at.0, old.clone())]);
            tally(&mut cases, found, &what);
        }
    }
    // Chunks are filed by numbers that are given out again: they come back under free ones.
    let chunk = crate::sample::number("chunk");
    for (free, row) in (1000..).zip(
        sample
            .before
            .iter()
            .flatten()
            .filter(|(at, _)| at.0 == chunk),
    ) {
        let mut old = row.1.clone();
        old[0] = Value::Integer(free);
        assert!(!sample.now.contains_key(&key(chunk, &old)));
        let what = format!("chunk inserted as {free}");
        let found = sample.exchange(&what, false, &[], &[(chunk, old)]);
        tally(&mut cases, found, &what);
    }
    println!("inserted: {cases:?}");
    assert!(cases[0] + cases[1] >= 10);
}

#[test]
fn a_record_of_another_vault_is_found() {
    let (sample, other) = (Sample::new(), Sample::new());
    let mut cases = [0; 3];
    for (at, foreign) in &other.now {
        let mine = sample.now.get(at);
        if mine == Some(foreign) {
            continue;
        }
        let what = format!("{} {:?} of another vault", TABLES[at.0].name, foreign[0]);
        let out: Vec<_> = mine.iter().map(|mine| (at.0, *mine)).collect();
        let found = sample.exchange(&what, false, &out, &[(at.0, foreign.clone())]);
        tally(&mut cases, found, &what);
    }
    println!("foreign: {cases:?}");
}
