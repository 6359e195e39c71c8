//! The turn: one has it, those in line get it in order, and a panic keeps nobody from it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::Duration;

use crate::kms::{KeyUri, KmsSettings};
use crate::vault::{InitOptions, OpenOptions, Tx, Vault};

use super::super::node::ROOT;
use super::super::tests::stored::opened_in_each;
use super::waiting::Thread;
use super::*;

fn queue() -> CommitQueue {
    CommitQueue::new(State::empty(ROOT))
}

/// Returns when so many threads wait for a turn.
fn await_in_line(queue: &CommitQueue, number: usize) {
    while queue.lock().jobs.turns() < number {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn who_waits_for_a_turn_on_a_thread_of_its_own_gets_it_in_order() {
    let queue = queue();
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        let turn = queue.turn();
        for number in 0..8 {
            let (queue, sender) = (&queue, sender.clone());
            scope.spawn(move || {
                let _turn = queue.turn();
                sender.send(number).expect("awaited");
            });
            await_in_line(queue, number + 1);
        }
        drop(turn);
    });
    drop(sender);
    let order: Vec<_> = receiver.iter().collect();
    assert_eq!(order, (0..8).collect::<Vec<_>>());
}

#[test]
fn each_turn_begins_with_the_state_that_the_last_one_has_committed() {
    let queue = queue();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let mut turn = queue.turn();
                    let mut state = State::clone(&turn);
                    std::thread::yield_now();
                    state.commit += 1;
                    turn.commit(state);
                }
            });
        }
    });
    assert_eq!((queue.turn().commit, queue.seen().commit), (800, 800));
}

#[test]
fn what_was_not_committed_is_not_seen_and_who_only_looks_waits_for_nobody() {
    let queue = queue();
    let mut turn = queue.turn();
    let mut state = State::clone(&turn);
    state.commit = 7;
    assert_eq!(queue.seen().commit, 0);
    turn.commit(state);
    assert_eq!(queue.seen().commit, 7);
}

#[test]
fn nobody_has_the_turn_after_a_panic_in_it() {
    let queue = queue();
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel::<()>();
        let queue = &queue;
        let panics = scope.spawn(move || {
            catch_unwind(AssertUnwindSafe(|| {
                let mut turn = queue.turn();
                turn.commit += 1;
                sender.send(()).expect("awaited");
                await_in_line(queue, 1);
                panic!("on purpose");
            }))
        });
        receiver.recv().expect("no panic yet");
        // In line before, and after.
        drop(queue.turn());
        drop(queue.turn_to_write().expect("no job has panicked"));
        assert!(panics.join().expect("caught").is_err());
    });
    assert!(!queue.has_failed());
}

#[test]
fn nothing_is_written_after_a_panic_in_a_turn_of_the_committer() {
    let queue = queue();
    std::thread::scope(|scope| {
        let in_line = scope.spawn(|| {
            while queue.lock().thread != Thread::Busy {
                std::thread::yield_now();
            }
            queue.turn_to_write().map(drop)
        });
        assert!(queue.lock().take_if_free());
        let panics = catch_unwind(AssertUnwindSafe(|| {
            super::IS_COMMITTER.set(true);
            let _turn = queue.taken();
            queue.lock().thread = Thread::Busy;
            await_in_line(&queue, 1);
            panic!("on purpose");
        }));
        assert!(panics.is_err() && queue.has_failed());
        assert!(in_line.join().expect("no panic").is_err());
    });
    assert!(queue.turn_to_write().is_err() && queue.lock().is_closed);
    // To look is still allowed.
    assert_eq!(queue.turn().commit, 0);
}

#[test]
fn the_turn_goes_to_the_thread_that_commits_only_while_it_is_in_line() {
    let mut waiting = Waiting::default();
    assert!(waiting.take_if_free() && !waiting.take_if_free());
    waiting.jobs.push(Ticket::awaited(Whose::of(1)), job());
    let number = waiting.jobs.push_turn();
    // It waits for the disk.
    waiting.thread = Thread::Busy;
    waiting.pass_on();
    assert!(!waiting.take_if_free() && !waiting.take_if_given_to(InLine::Committer));
    assert!(waiting.take_if_given_to(InLine::Caller(number)));
    let number = waiting.jobs.push_turn();
    waiting.thread = Thread::InLine;
    waiting.pass_on();
    assert!(!waiting.take_if_free() && !waiting.take_if_given_to(InLine::Caller(number)));
    assert!(waiting.take_if_given_to(InLine::Committer));
    assert_eq!(waiting.jobs.take().len(), 1);
    waiting.thread = Thread::Busy;
    waiting.pass_on();
    assert!(waiting.take_if_given_to(InLine::Caller(number)));
    waiting.pass_on();
    assert!(waiting.take_if_free());
}

fn job() -> super::job::Job {
    super::job::Job::new(Ticket::quick(Whose::Unknown), |_| Ok(()), |_| {})
}

#[cfg(debug_assertions)]
#[test]
fn who_has_the_turn_and_asks_for_another_panics_and_does_not_wait_for_ever() {
    let queue = queue();
    let _turn = queue.turn();
    let again = catch_unwind(AssertUnwindSafe(|| drop(queue.turn())));
    assert!(again.is_err());
}

/// A vault in a directory of its own, and one in memory.
fn vaults(dir: &std::path::Path) -> [Vault; 2] {
    let kms = KmsSettings {
        local_dir: Some(dir.join("kms")),
        ..KmsSettings::default()
    };
    let init = InitOptions {
        kms_keys: vec![KeyUri::default_local()],
        uid: 0,
        gid: 0,
        kms: kms.clone(),
        anchor_dir: None,
    };
    crate::vault::init(&dir.join("v"), &init).expect("a vault");
    let open = OpenOptions {
        kms,
        ..OpenOptions::default()
    };
    opened_in_each(&dir.join("v"), &open)
}

#[test]
fn the_end_waits_for_whoever_has_the_turn() {
    let dir = tempfile::tempdir().expect("a directory");
    for vault in vaults(dir.path()) {
        let committer = vault.start_committer(|| {}).expect("started");
        let queue = vault.transactions().queue();
        // As a quick job has it on the thread of its caller.
        let turn = queue.turn();
        std::thread::scope(|scope| {
            let end = scope.spawn(|| committer.close());
            let thread = loop {
                match queue.lock().thread {
                    Thread::Resting | Thread::Asleep | Thread::Busy => {}
                    thread => break thread,
                }
                std::thread::sleep(Duration::from_millis(1));
            };
            assert!(thread == Thread::InLine);
            drop(turn);
            end.join().expect("no panic");
        });
    }
}

#[test]
fn nothing_that_was_queued_is_written_once_the_committer_has_failed() {
    let dir = tempfile::tempdir().expect("a directory");
    for vault in vaults(dir.path()) {
        let transactions = vault.transactions();
        let queue = transactions.queue();
        assert!(queue.lock().take_if_free());
        // It was taken from those who wait before the failure was noted.
        let mut turn = queue.taken();
        queue.fail(&mut queue.lock());
        let mut has_run = false;
        let mut job = |_: &mut Tx<'_>| {
            has_run = true;
            Ok(())
        };
        assert!(
            transactions
                .transact_in(&mut turn, &mut [&mut job])
                .is_err()
        );
        assert!(!has_run);
    }
}
