//! The turn to write: a rotation and programs both go on, however much each asks for; and after a panic
//! of the thread that commits, nothing more is written, and everybody is told.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::fairness::alone;
use crate::support::layer::{Layer, Served, new_node};
use crate::support::process::wait_for;
use secretfs::fs::Errno;
use secretfs::store::Durability;
use secretfs::vault::{Kind, Outcome, Phase, Request, Tx, VaultError};

const SOON: Duration = Duration::from_secs(120);
const ROOT: u64 = 1;
const FILES: usize = 40;

fn is_migrating(served: &Served) -> bool {
    let progress = served.0.vault().progress();
    progress.is_some_and(|progress| progress.phase == Phase::Migrating)
}

#[test]
fn a_rotation_and_programs_that_always_have_more_to_write_both_go_on() {
    let _alone = alone();
    let layer = Layer::in_memory();
    let served = layer.open();
    for n in 0..FILES {
        let (_, fh) = served.create(ROOT, format!("s{n}").as_bytes(), 0o600);
        served.write(fh, 0, b"content").expect("written");
        served.release(fh);
    }
    served.barrier();
    // One name in each transaction, so that there are many.
    fail::cfg("names-at-a-time", "return(1)").expect("a point");
    fail::cfg("offer", "return").expect("a point");
    let vault = served.0.vault();
    vault.begin(&Request::Reencrypt).expect("begun");
    let (ends, stored) = (AtomicBool::new(false), AtomicUsize::new(0));
    let steps = Cell::new(0);
    let outcome = std::thread::scope(|scope| {
        for user in 0..3 {
            let (served, ends, stored) = (&served, &ends, &stored);
            scope.spawn(move || {
                let (_, fh) = served.create(ROOT, format!("busy-{user}").as_bytes(), 0o600);
                while !ends.load(Ordering::Relaxed) {
                    served.write(fh, 0, b"again").expect("written");
                    served.fsync(fh).expect("stored");
                    stored.fetch_add(1, Ordering::Relaxed);
                }
                served.release(fh);
            });
        }
        wait_for("the programs", SOON, || stored.load(Ordering::Relaxed) > 3);
        let mut before = None;
        let go_on = || {
            if is_migrating(&served) {
                steps.set(steps.get() + 1);
            }
            ControlFlow::Continue(())
        };
        // What has the vault mounted drives it, too, but one at a time.
        let outcome = loop {
            before.get_or_insert_with(|| stored.load(Ordering::Relaxed));
            match vault.drive(&go_on) {
                Err(VaultError::Busy(_)) => std::thread::sleep(Duration::from_millis(1)),
                other => break other,
            }
        };
        let meanwhile = stored.load(Ordering::Relaxed) - before.unwrap_or(0);
        ends.store(true, Ordering::Relaxed);
        (outcome, meanwhile)
    });
    fail::remove("names-at-a-time");
    fail::remove("offer");
    let (outcome, meanwhile) = outcome;
    assert_eq!(outcome.expect("driven"), Outcome::Done);
    assert!(!vault.is_rotating());
    assert!(
        meanwhile > 0,
        "nothing was stored during {} steps",
        steps.get()
    );
    served.finish();
    assert_eq!(layer.check().problem_count, 0);
}

#[test]
fn nothing_is_written_after_a_panic_of_the_thread_that_commits_and_everybody_is_told() {
    let _alone = alone();
    let layer = Layer::in_memory();
    let served = layer.open();
    let (ino, fh) = served.create(ROOT, b"secret", 0o600);
    served.write(fh, 0, b"stored").expect("written");
    served.fsync(fh).expect("stored");
    let vault = served.0.vault();
    let commit = vault.state().commit;
    assert!(!vault.has_stopped_writing());
    fail::cfg("writer-commits", "panic").expect("a point");
    served.write(fh, 0, b"lost__").expect("written");
    let (sender, receiver) = mpsc::channel();
    let told = move |outcome| sender.send(outcome).expect("awaited");
    served.0.fsync(fh, Box::new(told));
    // It is in the batch that is cut off.
    let outcome = receiver.recv_timeout(SOON).expect("told");
    assert_eq!(outcome, Err(Errno(libc::EIO)));
    fail::remove("writer-commits");
    assert!(vault.has_stopped_writing());
    assert!(served.fsync(fh).is_err());
    assert!(served.make(ROOT, b"directory", Kind::Directory).is_err());
    let again = served.open(ino, libc::O_WRONLY | libc::O_TRUNC);
    assert_eq!(again, Err(Errno(libc::EIO)));
    let mut job = |tx: &mut Tx<'_>| {
        tx.create(ROOT, b"beside", &new_node(Kind::Directory, 0o755))
            .map(drop)
    };
    let refused = vault.transact(Durability::Soon, &mut [&mut job]);
    assert!(refused.is_err());
    assert!(vault.begin(&Request::Rotate).is_err());
    assert_eq!(vault.state().commit, commit);
    assert_eq!(served.read_all(ino).expect("readable"), b"stored");
    served.abort();
    let served = layer.open();
    assert_eq!(served.read_all(ino).expect("readable"), b"stored");
    served.finish();
    assert_eq!(layer.check().problem_count, 0);
}
