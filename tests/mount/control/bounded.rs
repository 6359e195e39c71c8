//! What the control files may take, and that nobody waits for others.

use std::fs::{self, File};
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use super::{SOON, ended, file, shared};
use crate::support::layer::{Layer, caller_as};
use crate::support::process::{OnFailure, Place, wait_for};
use crate::support::rotating::{command, serve_with, wait_for_the_end};
use crate::support::tree::{ALICE, BOB, as_user, errno};

/// What is the same for a while.
fn settled(figure: &dyn Fn() -> u64) -> u64 {
    let mut last = (figure(), 0);
    while last.1 < 20 {
        std::thread::sleep(Duration::from_millis(10));
        let now = figure();
        last = (now, if now == last.0 { last.1 + 1 } else { 0 });
    }
    last.0
}

#[test]
fn control_files_are_bounded_for_each_user_and_nobody_else_is_refused() {
    let place = Place::with_vault();
    let server = shared(&place, &[]);
    let memory = || {
        let text = fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("alive");
        let line = text.lines().find(|line| line.starts_with("VmRSS:"));
        let digits = line.expect("told").split_ascii_whitespace().nth(1);
        digits.expect("a number").parse::<u64>().expect("a number") << 10
    };
    let open = |name: &str| File::open(file(&place, name));
    let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
    let (_, most) = nix::sys::resource::getrlimit(limit).expect("a limit");
    nix::sys::resource::setrlimit(limit, most, most).expect("raised");
    for (uid, name, many) in [
        (0, "status", 1_500),
        (0, "audit", 20_000),
        (0, "control", 20_000),
        (BOB, "status", 20_000),
    ] {
        // What the daemon maps once, as the stack of a thread that it starts meanwhile, is in memory as a
        // whole, and does not grow with what is open: before the second time, it is there.
        let few: Vec<_> = (0..100)
            .map(|_| open(name).expect("one of a few"))
            .collect();
        drop(few);
        let before = settled(&memory);
        let as_them = |call: &(dyn Fn() -> Vec<i32> + Sync)| match uid {
            0 => call(),
            uid => as_user(uid, &[], call),
        };
        let held = std::sync::Mutex::new(Vec::new());
        let refused = as_them(&|| {
            let mut held = held.lock().expect("whole");
            let mut refused = Vec::new();
            for _ in 0..many {
                match open(name) {
                    Ok(file) => held.push(file),
                    Err(error) => refused.push(error.raw_os_error().expect("an errno")),
                }
            }
            refused
        });
        assert_eq!(refused.len(), many - 1024, "{name} by {uid}");
        assert!(refused.iter().all(|errno| *errno == libc::EMFILE));
        let grown = memory().saturating_sub(before);
        assert!(grown < 2 << 20, "{grown} bytes for {name} by {uid}");
        // Somebody else.
        as_user(ALICE, &[], || drop(open("status").expect("not refused")));
        if uid != 0 {
            command(&place.point(), "rotate").expect("not refused");
            wait_for_the_end(&place.point());
        }
        held.into_inner().expect("whole").clear();
        crate::support::process::wait_for("what was closed to be gone", SOON, || {
            let opened = as_them(&|| vec![errno(open(name))]);
            opened == [0]
        });
    }
    let log = ended(server);
    let told = "has as many open as one user may";
    assert!(log.contains(told), "{log}");
}

/// A history grows for as long as there is a vault. Here less is let in than it usually is.
#[test]
fn a_history_that_is_longer_than_all_texts_may_be_is_told_of_and_read_whatever_else_is_open() {
    const MOST: u64 = 6000;
    let place = Place::with_vault();
    let server = serve_with(&place, &format!("control-bytes=return({MOST})"));
    let (point, audit) = (place.point(), file(&place, "audit"));
    let length = || fs::metadata(&audit).expect("stat").len();
    let rewrap = || {
        command(&point, "rewrap").expect("begun");
        wait_for_the_end(&point);
    };
    while length() <= MOST {
        rewrap();
    }
    let held = File::open(file(&place, "status")).expect("opened");
    let told = length();
    assert!(told > MOST);
    let mut open = File::open(&audit).expect("opened beside another");
    assert_eq!(open.metadata().expect("fstat").len(), told);
    let mut text = String::new();
    open.read_to_string(&mut text).expect("readable");
    assert_eq!(text.len() as u64, told);
    // Two long ones are too many for one user, which is told as programs know it.
    rewrap();
    assert!(length() > told);
    assert_eq!(errno(File::open(&audit)), libc::EMFILE);
    drop(open);
    wait_for("what was closed to be gone", SOON, || {
        File::open(&audit).is_ok()
    });
    drop(held);
    let log = ended(server);
    assert!(log.contains("has as many open as one user may"), "{log}");
}

/// Where a fail point holds whoever comes there.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    somebody_is_there: bool,
    is_open: bool,
}

impl Gate {
    fn wait(&self) {
        let mut state = self.state.lock().expect("whole");
        state.somebody_is_there = true;
        while !state.is_open {
            state = self.changed.wait(state).expect("whole");
        }
    }

    fn open(&self) {
        self.state.lock().expect("whole").is_open = true;
        self.changed.notify_all();
    }
}

/// While the anchor is stored, which is two syncs, `status` waits for what it is going to be.
#[test]
fn who_looks_at_status_while_the_anchor_is_stored_keeps_nobody_else_waiting() {
    // Fail points are those of the whole process.
    let scenario = fail::FailScenario::setup();
    let layer = Layer::new();
    let fs = layer.open();
    let gate = Arc::new(Gate::default());
    let _let_go = OnFailure(|| gate.open());
    let held = Arc::clone(&gate);
    fail::cfg_callback("anchor-stores", move || held.wait()).expect("a fail point");
    // Something to be remembered.
    let (_, fh) = fs.create(1, b"f", 0o644);
    fs.write(fh, 0, b"s3cret").expect("written");
    fs.fsync(fh).expect("stored");
    wait_for("the anchor to be stored", SOON, || {
        gate.state.lock().expect("whole").somebody_is_there
    });
    let (tell, told) = mpsc::channel();
    let (root, bob) = (caller_as(1, 0), caller_as(2, BOB));
    let asked = Arc::clone(&fs.0);
    // All of them come to one thread, as requests do.
    let requests = std::thread::spawn(move || {
        for (who, by, directory, name) in [
            ("root's status", root, 1 << 63, &b"status"[..]),
            ("root's history", root, 1 << 63, b"audit"),
            ("bob's status", bob, 1 << 63, b"status"),
            ("bob's secret", bob, 1, b"f"),
        ] {
            let tell = tell.clone();
            let done: secretfs::fs::Done<secretfs::fs::Attr> = Box::new(move |attr| {
                let size = attr.expect("there").size;
                tell.send((who, size)).expect("heard");
            });
            asked.lookup_for(by, directory, name, done);
        }
    });
    let next = || {
        told.recv_timeout(Duration::from_secs(20))
            .expect("answered")
    };
    let mut answered = [next().0, next().0];
    answered.sort_unstable();
    assert_eq!(answered, ["bob's secret", "bob's status"]);
    requests.join().expect("nothing keeps it");
    gate.open();
    let (who, size) = next();
    assert_eq!((who, size > 1000), ("root's status", true));
    assert_eq!(next().0, "root's history");
    fail::remove("anchor-stores");
    fs.release(fh);
    fs.finish();
    scenario.teardown();
}
