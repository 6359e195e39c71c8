//! The threads that replace keys step back behind all others, but not while others wait for what they
//! hold: on a busy machine, whoever writes would wait for as long as they do not get a processor.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use secretfs::os::nice;
use secretfs::vault::Request;

use crate::support::layer::Layer;
use crate::support::process::wait_for;

/// How nice a thread is that has stepped back.
const BACK: i32 = 10;
/// Places at which the thread that replaces keys holds nothing that others wait for.
const FREE: [&str; 2] = ["migrate-before", "scrub-before"];
/// Places at which it does.
const HOLDING: [&str; 4] = [
    "migrate-within",
    "system-within",
    "keyring-uncommitted",
    "keyring-stored",
];

/// A thread's name, and how nice it is.
fn thread(task: &str) -> Option<(String, i32)> {
    let name = fs::read_to_string(format!("{task}/comm")).ok()?;
    let stat = fs::read_to_string(format!("{task}/stat")).ok()?;
    // The fields begin with the third, behind the name in brackets; this is the nineteenth.
    let nice = stat.rsplit(") ").next()?.split(' ').nth(16)?.parse().ok()?;
    Some((name.trim_end().to_owned(), nice))
}

fn own_niceness() -> i32 {
    thread("/proc/thread-self").expect("a thread").1
}

fn crew_has_stepped_back(back: i32) -> bool {
    let tasks = fs::read_dir("/proc/self/task").expect("tasks").flatten();
    let mut threads = tasks.filter_map(|task| thread(task.path().to_str()?));
    threads.all(|(name, nice)| name != "crew" || nice == back)
}

/// Replaces the master key, and tells how nice the thread that did so was at each of the places.
fn rotate() -> BTreeMap<&'static str, BTreeSet<i32>> {
    let back = own_niceness().max(BACK);
    let layer = Layer::in_memory();
    let served = layer.open_with(1 << 20, 64 << 20);
    for n in 0..40 {
        let (_, fh) = served.create(1, format!("s{n}").as_bytes(), 0o600);
        served.write(fh, 0, b"content").expect("written");
        served.release(fh);
    }
    served.finish();
    let served = layer.open_with(1 << 20, 64 << 20);
    served.0.vault().begin(&Request::Rotate).expect("begun");
    // What it leaves is gone on with by the thread of the next one.
    served.finish();

    let seen: Arc<Mutex<BTreeMap<&str, BTreeSet<i32>>>> = Arc::default();
    for place in FREE.into_iter().chain(HOLDING) {
        let seen = Arc::clone(&seen);
        let note = move || {
            let (name, nice) = thread("/proc/thread-self").expect("a thread");
            if name == "keys" {
                seen.lock().unwrap().entry(place).or_default().insert(nice);
                let what = "those that work for it to step back";
                wait_for(what, Duration::from_secs(60), || {
                    crew_has_stepped_back(back)
                });
            }
        };
        fail::cfg_callback(place, note).expect("a fail point");
    }
    let served = layer.open_with(1 << 20, 64 << 20);
    wait_for("the end of the rotation", Duration::from_secs(60), || {
        !served.0.vault().is_rotating()
    });
    served.finish();
    for place in FREE.into_iter().chain(HOLDING) {
        fail::remove(place);
    }
    std::mem::take(&mut *seen.lock().unwrap())
}

fn thread_id() -> String {
    nix::unistd::gettid().to_string()
}

/// Whether a thread that has stepped back may come forward again.
fn may_come_forward() -> bool {
    let own = own_niceness();
    let tried = std::thread::spawn(move || {
        nice::lower_priority();
        // Refused, or done.
        let _ = Command::new("renice")
            .args(["-n", &own.to_string(), "-p", &thread_id()])
            .output();
        own_niceness() == own
    });
    tried.join().expect("it has tried")
}

#[track_caller]
fn expect(seen: &BTreeMap<&str, BTreeSet<i32>>, free: i32, holding: i32) {
    for (places, nice) in [(&FREE[..], free), (&HOLDING[..], holding)] {
        for place in places {
            assert_eq!(seen.get(place), Some(&BTreeSet::from([nice])), "{place}");
        }
    }
}

#[test]
fn who_replaces_keys_steps_back_but_never_while_others_wait_for_it() {
    let own = own_niceness();
    let free = match may_come_forward() {
        true => own.max(BACK),
        false => own,
    };
    expect(&rotate(), free, own);
}

/// Without the right to, nobody comes forward again.
#[test]
fn who_may_not_come_forward_again_holds_nothing_in_the_back() {
    const WITHOUT: &str = "SECRETFS_TEST_WITHOUT_SYS_NICE";
    if std::env::var_os(WITHOUT).is_none() {
        let name = "who_may_not_come_forward_again_holds_nothing_in_the_back";
        let ran = Command::new("setpriv")
            .args(["--bounding-set=-sys_nice", "--inh-caps=-sys_nice"])
            .args(["prlimit", "--nice=0:0"])
            .arg(std::env::current_exe().expect("this program"))
            .args(["--exact", name])
            .env(WITHOUT, "1")
            .status();
        assert!(ran.expect("setpriv runs").success());
        return;
    }
    let own = own_niceness();
    assert!(!may_come_forward());
    expect(&rotate(), own, own);
}
