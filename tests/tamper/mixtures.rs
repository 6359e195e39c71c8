//! Parts of an older state beside the rest of the newer one.

use crate::sample::{Found, Rows, Sample, TABLES};

/// `now` with the tables in `which` as they were.
fn mixture(now: &Rows, before: &Rows, which: u32) -> Rows {
    let old = |table: usize| which & (1 << table) != 0;
    let kept = now.iter().filter(|((table, _), _)| !old(*table));
    let back = before.iter().filter(|((table, _), _)| old(*table));
    let both = kept.chain(back);
    both.map(|(at, row)| (at.clone(), row.clone())).collect()
}

/// Whatever tables are put back: it is found, or it is a whole state.
#[test]
fn no_mixture_of_an_older_and_the_newer_state_passes() {
    let sample = Sample::new();
    let (mut found, mut whole) = (0, 0);
    for before in &sample.before {
        for which in 0..1u32 << TABLES.len() {
            let mixed = mixture(&sample.now, before, which);
            let is_whole = mixed == sample.now || mixed == *before;
            if is_whole && mixed == sample.now {
                continue;
            }
            let passes = sample.passes_for_another_state(&mixed, false);
            assert_eq!(passes, is_whole, "tables {which:#b}");
            if passes { whole += 1 } else { found += 1 }
        }
    }
    println!("mixtures: {found} found, {whole} whole");
    assert!(found > 500 && whole > 0);
    // It was all put back.
    assert_eq!(sample.find("nothing", true), Found::Never);
}
