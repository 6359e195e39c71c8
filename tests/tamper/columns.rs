//! Numbers that stand beside the sealed bytes.

use rusqlite::types::Value;

use crate::sample::{Found, Sample, TABLES};

/// Numbers that somebody might write in the place of `value`: its neighbours, the bounds of what
/// the program and SQLite take, and those of other rows.
fn others(value: i64, of_others: &[i64]) -> Vec<i64> {
    let near = [value - 1, value + 1, value ^ (1 << 32), value + 64];
    let bounds = [0, 1, -1, i64::from(u32::MAX), (1 << 62) - 1, 1 << 62];
    let far = [i64::MIN, i64::MAX, i64::MAX - 1];
    let all = [&near[..], &bounds, &far, of_others].concat();
    let mut all: Vec<i64> = all.into_iter().filter(|other| *other != value).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[test]
fn every_number_beside_what_is_sealed_counts() {
    let sample = Sample::new();
    let mut cases = [0; 3];
    for (table, described) in TABLES.iter().enumerate() {
        let columns: Vec<&str> = described.columns().collect();
        for row in sample.of(described.name) {
            for at in 0..columns.len() {
                let Value::Integer(value) = row[at] else {
                    continue;
                };
                let numbers: Vec<i64> = sample
                    .of(described.name)
                    .filter_map(|row| match row[at] {
                        Value::Integer(number) => Some(number),
                        _ => None,
                    })
                    .collect();
                for other in others(value, &numbers) {
                    let mut forged = row.clone();
                    forged[at] = Value::Integer(other);
                    let name = described.name;
                    let what = format!("{name}, {} of {value}: {other}", columns[at]);
                    let found = sample.replace(&what, table, row, forged);
                    assert_ne!(found, Found::Never, "{what}");
                    cases[found as usize] += 1;
                }
            }
        }
    }
    println!("numbers: {cases:?}");
    assert!(cases[0] > 500 && cases[1] > 500);
}
