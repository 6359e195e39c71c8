use super::mark::REVISION_BITS;
use super::*;

fn record(revision: u64, generation: u64, end: u8) -> Record {
    let mut value = vec![1];
    value.extend(revision.to_le_bytes());
    value.extend([end; 200]);
    Record { generation, value }
}

/// A record sealed before, but wrapped by a later master key, is authentic and not newer.
#[test]
fn who_follows_takes_up_only_what_is_older_in_no_way() {
    let current = Current::new();
    current.begin();
    current
        .counted(&[(KeyedId::Node(5), record(6, 2, 1))])
        .expect("nothing was known");
    current.confirm(9, 6);
    let place = Place::Node(5);
    let age = |revision, generation| {
        let known = current.known(&place).expect("it is known");
        current
            .mark_of(&place, &record(revision, generation, 2))
            .age_beside(known)
    };
    assert_eq!(age(6, 2), Age::Same);
    for (revision, generation) in [(7, 2), (6, 3), (9, 9)] {
        assert_eq!(age(revision, generation), Age::Newer);
    }
    for (revision, generation) in [(5, 2), (6, 1), (1, 1)] {
        assert_eq!(age(revision, generation), Age::Older);
    }
    for (revision, generation) in [(5, 9), (9, 1)] {
        assert_eq!(age(revision, generation), Age::Neither);
    }
    current.take_up(&place, current.mark_of(&place, &record(5, 9, 2)), false);
    assert_eq!(age(6, 2), Age::Same);
    current.take_up(&place, current.mark_of(&place, &record(7, 2, 2)), false);
    assert_eq!(age(7, 2), Age::Same);
    // A mark has only part of the numbers.
    let wraps = 1 << REVISION_BITS;
    current.take_up(
        &place,
        current.mark_of(&place, &record(wraps - 1, 2, 3)),
        false,
    );
    assert_eq!(age(7, 2), Age::Same, "half of all values ahead is behind");
}

#[test]
fn what_was_committed_while_a_count_was_under_way_is_current_at_its_end() {
    let current = Current::new();
    current.begin();
    let place = Place::Node(5);
    let (old, new) = (record(1, 1, 1), record(2, 1, 2));
    let changed = |record| vec![(place, Some(current.mark_of(&place, record)))];
    // A commit that the count has seen, and one that it has not.
    current.commit(3, changed(&old));
    current.commit(4, changed(&new));
    current
        .counted(&[(KeyedId::Node(5), old)])
        .expect("nothing was known");
    current.confirm(3, 6);
    assert_eq!(
        current
            .known(&place)
            .map(|mark| mark.is(current.mark_of(&place, &new))),
        Some(true)
    );
    // After a count was given up, there are no marks.
    let other = Current::new();
    other.begin();
    other
        .counted(&[(KeyedId::Node(5), new)])
        .expect("nothing was known");
    other.give_up();
    assert!(other.known(&place).is_none() && other.is_off());
}

#[test]
fn what_a_count_does_not_find_any_more_is_forgotten() {
    let current = Current::new();
    for round in [&[5, 6][..], &[6], &[6, 7]] {
        current.begin();
        for id in round {
            current
                .counted(&[(KeyedId::Node(*id), record(1, 1, 1))])
                .expect("as before");
        }
        current.confirm(1, 8);
        for id in 5..8 {
            assert_eq!(
                current.known(&Place::Node(id)).is_some(),
                round.contains(&id)
            );
        }
        assert_eq!(current.size().1, round.len() as u64);
    }
    assert!(current.was_given_out(5) && !current.was_given_out(8));
}
