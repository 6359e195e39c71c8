//! Bytes that are changed, cut off or added.

use std::time::Instant;

use rusqlite::types::Value;

use crate::sample::{Found, Sample, TABLES, number};

/// Where bytes are changed: everywhere; of a piece of content of more than 600 bytes, which is one
/// ciphertext from its nonce to its tag, at its ends and in steps between.
fn places(length: usize) -> Vec<usize> {
    if length <= 610 {
        return (0..length).collect();
    }
    let between = (40..length - 40).step_by(length / 29);
    (0..40).chain(between).chain(length - 40..length).collect()
}

/// What is left after bytes are cut off: every length of what is short, most of the rest.
fn lengths(length: usize) -> Vec<usize> {
    match length {
        0..=64 => (0..length).collect(),
        65..=610 => (0..length)
            .filter(|at| at % 5 == 0 || at + 20 > length)
            .collect(),
        _ => places(length).into_iter().step_by(5).collect(),
    }
}

/// Every change of the bytes in every row of a table.
fn every_byte_counts(name: &str) {
    let sample = Sample::new();
    let table = number(name);
    let started = Instant::now();
    let mut cases = [0; 3];
    for row in sample.of(name) {
        // The tag of an entry is part of its key, and bytes.
        for (at, column) in TABLES[table].columns().enumerate() {
            let Value::Blob(bytes) = &row[at] else {
                continue;
            };
            let mut try_out = |how: &str, bytes: Vec<u8>| {
                let mut forged = row.clone();
                forged[at] = Value::Blob(bytes);
                let what = format!(
                    "{name} {:?}, {column} {how}",
                    &row[..TABLES[table].key.len()]
                );
                let found = sample.replace(&what, table, row, forged);
                assert_ne!(found, Found::Never, "{what}");
                cases[found as usize] += 1;
            };
            for place in places(bytes.len()) {
                let mut forged = bytes.clone();
                forged[place] ^= 1 << (place % 8);
                try_out(&format!("flipped at {place}"), forged);
            }
            for length in lengths(bytes.len()) {
                try_out(&format!("cut to {length}"), bytes[..length].to_vec());
            }
            for more in [1, 16, 300] {
                let longer = [&bytes[..], &vec![0; more]].concat();
                try_out(&format!("with {more} bytes more"), longer);
            }
        }
    }
    println!("{name}: {cases:?} in {:?}", started.elapsed());
    assert!(cases[0] + cases[1] > 60);
}

#[test]
fn every_byte_of_the_header_counts() {
    every_byte_counts("header");
}

#[test]
fn every_byte_of_the_keyring_counts() {
    every_byte_counts("keyring");
}

#[test]
fn every_byte_of_the_state_counts() {
    every_byte_counts("state");
}

#[test]
fn every_byte_of_a_node_counts() {
    every_byte_counts("node");
}

#[test]
fn every_byte_of_an_entry_counts() {
    every_byte_counts("entry");
}

#[test]
fn every_byte_of_a_version_counts() {
    every_byte_counts("version");
}

#[test]
fn every_byte_of_a_chunk_counts() {
    every_byte_counts("chunk");
}

#[test]
fn every_byte_of_an_event_counts() {
    every_byte_counts("event");
}
