//! Debug builds check the order, and locks do not poison.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

fn panics(deed: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(deed)).is_err()
}

#[test]
fn locks_are_taken_in_one_order_or_the_thread_panics() {
    let (outer, inner) = (Mutex::new(Rank::Turn, ()), RwLock::new(Rank::Keyring, ()));
    let other = Mutex::new(Rank::Turn, ());
    {
        let _outer = outer.lock();
        assert!(panics(|| drop(other.lock())), "of the same rank");
        let _inner = inner.read();
        assert!(panics(|| drop(inner.read())), "twice");
        // Nobody waits.
        assert!(other.try_lock().is_some());
        assert!(outer.try_lock().is_none());
    }
    let held = inner.write();
    assert!(panics(|| drop(outer.lock())), "upward");
    std::thread::scope(|scope| {
        scope
            .spawn(|| drop(outer.lock()))
            .join()
            .expect("another thread holds nothing");
    });
    drop(held);
    drop(outer.lock());
}

#[test]
fn what_is_let_go_first_may_be_taken_again() {
    let (outer, inner) = (Mutex::new(Rank::Turn, 1), Mutex::new(Rank::Keyring, 2));
    let first = outer.lock();
    let second = inner.lock();
    drop(first);
    assert!(panics(|| drop(outer.lock())));
    drop(second);
    assert_eq!(*outer.lock() + *inner.lock(), 3);
}

#[test]
fn a_panic_does_not_poison_and_lets_go() {
    let lock = Mutex::new(Rank::Turn, 1);
    assert!(panics(|| {
        *lock.lock() = 2;
        let _held = lock.lock();
        panic!("on purpose");
    }));
    assert_eq!(*lock.lock(), 2);
}

#[test]
fn who_waits_on_a_condition_holds_the_lock_again_afterwards() {
    let (lock, changed) = (Mutex::new(Rank::Crew, false), Condvar::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            *lock.lock() = true;
            changed.notify_all();
        });
        let mut done = lock.lock();
        while !*done {
            done = changed.wait(done);
        }
        done = changed.wait_timeout(done, Duration::from_millis(1));
        done = changed.wait_timeout_while(done, Duration::from_millis(1), |_| true);
        assert!(*done && panics(|| drop(lock.lock())));
    });
}
