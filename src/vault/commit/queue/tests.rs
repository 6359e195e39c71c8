use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const LARGE: u64 = 16 << 20;

fn user(uid: u32) -> Whose {
    Whose::of(uid)
}

fn large(uid: u32) -> Ticket {
    Ticket::awaited(user(uid)).with_bytes(LARGE)
}

fn small(uid: u32) -> Ticket {
    Ticket::awaited(user(uid)).with_bytes(1024)
}

#[test]
fn a_small_job_waits_for_one_large_one_of_another_user_at_most() {
    let mut queue = Queue::default();
    for _ in 0..8 {
        queue.push(large(1), "large");
    }
    assert_eq!(queue.take(), ["large"]);
    // The small one arrives while the large one is being stored.
    queue.push(small(2), "small");
    assert_eq!(queue.take(), ["small"]);
    queue.push(large(1), "large");
    queue.push(small(2), "again");
    assert_eq!(queue.take(), ["again"]);
    assert_eq!(queue.take(), ["large"]);
}

#[test]
fn nobody_waits_for_ever_for_a_user_who_always_has_another_job() {
    let mut queue = Queue::default();
    queue.push(large(1), "large");
    // The other user's share is empty in between each time, and remembers nothing.
    let mut before = 0;
    loop {
        queue.push(small(2), "small");
        let batch = queue.take();
        if batch == ["large"] {
            break;
        }
        assert_eq!(batch, ["small"]);
        before += 1;
        assert!(
            before < 100,
            "{before} small jobs came before the large one"
        );
    }
    assert!(before > 10, "only {before} small jobs came before it");
}

#[test]
fn who_comes_back_has_saved_nothing_up() {
    let mut queue = Queue::default();
    for _ in 0..100 {
        queue.push(large(1), 1);
        assert_eq!(queue.take(), [1]);
    }
    for _ in 0..4 {
        queue.push(large(1), 1);
        queue.push(large(2), 2);
    }
    let order: Vec<_> = (0..8).flat_map(|_| queue.take()).collect();
    assert_eq!(order, [1, 2, 1, 2, 1, 2, 1, 2]);
}

#[test]
fn a_batch_is_bounded_by_bytes_and_by_jobs() {
    let mut queue = Queue::default();
    for _ in 0..64 {
        let ticket = Ticket::awaited(user(1)).with_bytes(64 << 10);
        queue.push(ticket, ());
    }
    assert_eq!(queue.take().len(), 16);
    queue.drain();
    for uid in 0..2 * MAX_BATCH as u32 {
        queue.push(Ticket::quick(user(uid)), ());
    }
    assert_eq!(queue.take().len(), MAX_BATCH);
    assert_eq!(queue.take().len(), MAX_BATCH);
    assert!(queue.take().is_empty() && queue.is_empty());
}

#[test]
fn what_many_users_wait_for_goes_into_one_batch() {
    let mut queue = Queue::default();
    for uid in [3, 1, 2] {
        queue.push(small(uid), uid);
        queue.push(small(uid), uid + 10);
    }
    assert_eq!(queue.take(), [3, 1, 2, 13, 11, 12]);
}

#[test]
fn what_nobody_awaits_is_not_overtaken_by_its_user_and_is_by_others() {
    let mut queue = Queue::default();
    queue.push(Ticket::unattended(user(1)).with_bytes(LARGE), "content");
    let rename = Ticket::quick(user(1));
    assert!(!queue.may_overtake(&rename));
    queue.push(rename, "rename");
    let other = Ticket::quick(user(2));
    assert!(queue.may_overtake(&other));
    queue.push(other, "other");
    assert_eq!(queue.take_quick(), ["other"]);
    assert!(queue.has_quick() && queue.take_quick().is_empty());
    assert_eq!(queue.take(), ["content"]);
    assert_eq!(queue.take_quick(), ["rename"]);
}

#[test]
fn quick_jobs_overtake_what_is_awaited_and_not_each_other() {
    let mut queue = Queue::default();
    queue.push(small(1), "sync");
    assert!(queue.may_overtake(&Ticket::quick(user(1))));
    queue.push(Ticket::quick(user(1)), "first");
    assert!(!queue.may_overtake(&Ticket::quick(user(1))));
    queue.push(Ticket::quick(user(1)), "second");
    assert_eq!(queue.take_quick(), ["first", "second"]);
    assert_eq!(queue.take(), ["sync"]);
}

#[test]
fn one_node_is_published_in_the_order_of_submission_whoever_writes_it() {
    let mut queue = Queue::default();
    queue.push(large(1), "other node");
    queue.push(large(1).on(7), "older");
    queue.push(small(2).on(7), "newer");
    queue.push(small(2).on(8), "beside");
    assert!(!queue.may_overtake(&Ticket::quick(user(3)).on(7)));
    queue.push(Ticket::quick(user(3)).on(7), "times");
    assert!(queue.take_quick().is_empty());
    // A job that waits for the older one does not block other jobs of its user.
    assert_eq!(queue.take(), ["beside"]);
    assert_eq!(queue.take(), ["other node"]);
    assert_eq!(queue.take(), ["older"]);
    assert_eq!(queue.take(), ["newer", "times"]);
    assert!(queue.is_empty() && queue.nodes.is_empty());
}

#[test]
fn others_come_between_the_steps_of_a_job_but_not_on_its_node() {
    let mut queue = Queue::default();
    let ticket = large(1).with_bytes(MAX_BYTES).in_steps(3).on(7);
    queue.push(ticket, "pieces");
    queue.push(small(1), "the same user's");
    queue.push(small(2).on(7), "newer");
    queue.push(Ticket::quick(user(3)).on(7), "times");
    queue.push(small(2), "beside");
    assert_eq!(queue.take(), ["beside"]);
    assert_eq!(queue.take(), ["pieces"]);
    assert!(!queue.may_overtake(&Ticket::quick(user(4)).on(7)));
    let ticket = ticket.next_step().expect("two steps are left");
    queue.resume(ticket, "pieces");
    queue.push(small(2), "another");
    assert_eq!(queue.take(), ["another"]);
    assert!(queue.take_quick().is_empty());
    assert_eq!(queue.take(), ["pieces"]);
    let ticket = ticket.next_step().expect("one step is left");
    assert_eq!(ticket.next_step(), None);
    queue.resume(ticket, "pieces");
    assert_eq!(queue.take(), ["pieces"]);
    let mut rest = queue.take();
    rest.sort_unstable();
    assert_eq!(rest, ["newer", "the same user's", "times"]);
    assert!(queue.is_empty() && queue.nodes.is_empty() && queue.shares.is_empty());
}

#[test]
fn a_job_that_fails_between_its_steps_keeps_nobody_from_its_node() {
    let mut queue = Queue::default();
    let ticket = large(1).in_steps(2).on(7);
    queue.push(ticket, "pieces");
    queue.push(small(2).on(7), "newer");
    assert_eq!(queue.take(), ["pieces"]);
    queue.give_up(&ticket);
    assert_eq!(queue.take(), ["newer"]);
    assert!(queue.is_empty() && queue.nodes.is_empty());
}

#[test]
fn those_who_are_not_known_have_one_share_together() {
    let mut queue = Queue::default();
    for _ in 0..3 {
        queue.push(large(u32::MAX), "unknown");
    }
    queue.push(large(1), "known");
    let order: Vec<_> = (0..4).flat_map(|_| queue.take()).collect();
    assert_eq!(order, ["unknown", "known", "unknown", "unknown"]);
}

/// Jobs by user, node, kind, size and steps.
fn tickets() -> impl Strategy<Value = Vec<Ticket>> {
    let ticket = (0..4_u32, 0..5_u64, 0..3, 0..3_u64, 1..4_u32);
    let ticket = ticket.prop_map(|(uid, node, kind, size, steps)| {
        let whose = user(uid);
        let ticket = match kind {
            0 => Ticket::quick(whose),
            1 => Ticket::awaited(whose),
            _ => Ticket::unattended(whose),
        };
        let ticket = ticket.with_bytes(size * MAX_BYTES / 2);
        match node {
            0 => ticket,
            node if kind > 0 => ticket.on(node).in_steps(steps),
            node => ticket.on(node),
        }
    });
    proptest::collection::vec(ticket, 1..60)
}

proptest! {
    /// Every job comes out once, in an order that keeps the module's rules, however they are taken.
    #[test]
    fn every_job_is_taken_once_in_an_order_that_programs_may_see(
        tickets in tickets(),
        takes in proptest::collection::vec(0..4, 60),
    ) {
        let mut queue = Queue::default();
        let mut order = Vec::new();
        let mut left = tickets.clone();
        // Returns taken jobs to the queue as long as they have further steps.
        let mut step = |queue: &mut Queue<usize>, batch: Vec<usize>| {
            for number in &batch {
                if let Some(next) = left[*number].next_step() {
                    left[*number] = next;
                    queue.resume(next, *number);
                }
            }
            order.extend(batch);
        };
        for (number, ticket) in tickets.iter().enumerate() {
            queue.push(*ticket, number);
            match takes[number] {
                0 => {
                    let batch = queue.take();
                    step(&mut queue, batch);
                }
                1 => {
                    let quick = queue.take_quick();
                    prop_assert!(quick.iter().all(|n| tickets[*n].is_quick()));
                    step(&mut queue, quick);
                }
                _ => {}
            }
        }
        while !queue.is_empty() {
            let batch = queue.take();
            prop_assert!(!batch.is_empty(), "something waits for ever");
            let bytes: u64 = batch.iter().map(|n| tickets[*n].bytes).sum();
            prop_assert!(batch.len() == 1 || bytes <= MAX_BYTES);
            step(&mut queue, batch);
        }
        prop_assert!(!queue.has_quick() && queue.nodes.is_empty() && queue.shares.is_empty());
        // The places at which each begins and ends.
        let mut places: HashMap<usize, Vec<usize>> = HashMap::new();
        for (at, number) in order.iter().enumerate() {
            places.entry(*number).or_default().push(at);
        }
        for (number, ticket) in tickets.iter().enumerate() {
            prop_assert_eq!(places[&number].len(), 1 + ticket.more as usize);
        }
        for (later, after) in tickets.iter().enumerate() {
            for (earlier, before) in tickets[..later].iter().enumerate() {
                let one_node = before.node.is_some() && before.node == after.node;
                let one_user = before.whose == after.whose
                    && (before.is_unattended() || before.is_quick() && after.is_quick());
                if one_node || one_user {
                    prop_assert!(
                        places[&earlier].last() < places[&later].first(),
                        "{later} overtook {earlier}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_rotation_and_users_who_always_want_more_both_go_on() {
    for users in [1, 2, 16] {
        let mut queue = Queue::default();
        let mut jobs = vec![0; users];
        let mut turns = 0;
        (0..users).for_each(|one| queue.push(small(one as u32), one));
        queue.push_turn();
        for _ in 0..1000 {
            if queue.is_turn_next() {
                assert!(queue.take_turn().is_some());
                turns += 1;
                queue.push_turn();
                continue;
            }
            for one in queue.take() {
                jobs[one] += 1;
                queue.push(small(one as u32), one);
            }
        }
        // A turn costs about as much as four of the jobs, of which a batch has one of each user.
        assert!((150..=250).contains(&turns), "{turns} turns");
        let expected = turns * 3..=turns * 5;
        assert!(jobs.iter().all(|n| expected.contains(n)), "{jobs:?}");
    }
}

#[test]
fn a_user_who_comes_waits_for_one_turn_at_most() {
    let mut queue = Queue::default();
    for _ in 0..100 {
        queue.push_turn();
        assert!(queue.is_turn_next() && queue.take_turn().is_some());
    }
    // While the last one is under way, more of them come, and a user.
    queue.push_turn();
    queue.push_turn();
    queue.push(small(1), "small");
    assert!(!queue.is_turn_next());
    assert_eq!(queue.take(), ["small"]);
    assert!(queue.is_turn_next());
}

#[test]
fn threads_have_their_turns_in_the_order_in_which_they_came_whoever_waits() {
    let mut queue = Queue::default();
    let first = queue.push_turn();
    queue.push(large(1), ());
    let second = queue.push_turn();
    // Nobody is there to take the job.
    assert_eq!(queue.take_turn(), Some(first));
    assert_eq!(queue.take_turn(), Some(second));
    assert_eq!(queue.take_turn(), None);
    assert_eq!(queue.drain().len(), 1);
}

#[test]
fn what_nobody_waits_for_goes_along_with_as_many_jobs_and_one_and_fills_a_batch_alone() {
    let mut queue = Queue::default();
    (0..6).for_each(|_| queue.push_later("later"));
    assert!(queue.is_empty() && queue.later() == 6);
    queue.push(small(1), "job");
    assert_eq!(queue.take(), ["job", "later", "later"]);
    assert_eq!(queue.take(), ["later"; 4]);
    (0..MAX_BATCH).for_each(|_| queue.push_later("later"));
    queue.push(small(1), "job");
    // By now there are too many of them.
    assert_eq!(queue.take().len(), MAX_BATCH);
    assert_eq!(queue.later(), 1);
    let turn = queue.push_turn();
    // Its turn, but for the one that came before.
    assert!(!queue.is_turn_next());
    assert_eq!(queue.take(), ["later"]);
    assert!(queue.is_turn_next());
    assert_eq!(queue.take_turn(), Some(turn));
}

/// Turns that were had while the committer was at the disk are nothing that a user could owe.
#[test]
fn turns_before_waiting_jobs_put_nobody_who_comes_behind_all_of_those() {
    let mut queue = Queue::default();
    for _ in 0..4 {
        queue.push(large(1), "large");
    }
    for _ in 0..50 {
        queue.push_turn();
        assert!(queue.take_turn().is_some());
    }
    queue.push(small(2), "small");
    assert_eq!(queue.take(), ["large"]);
    assert_eq!(queue.take(), ["small"]);
}
