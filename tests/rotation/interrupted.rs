//! A rotation that is interrupted again and again ends, because each run begins where the last one
//! was killed.
//!
//! Here a run is killed as soon as anything of it is stored. `SECRETFS_INTERRUPTED_SECRETS=20000`
//! makes it a campaign with a vault of that size, in which every run is killed after a second.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::support::child::not_outliving_us;
use crate::support::process::{Place, detach, kill, wait_for};
use crate::support::rotating::{
    all_is_there, check_is_clean, command, fill, json, serve_with, wait_for_the_end,
};
use rusqlite::{Connection, OpenFlags};

const SECRETS: usize = 800;
const SOON: Duration = Duration::from_secs(120);
/// Every transaction of a rotation is a run of its own.
const SLOWLY: &str = "migrate-before=sleep(40)";
const KINDS: [&str; 3] = ["rotate", "reencrypt", "rewrap"];

/// A second, in the campaign.
fn every() -> Option<Duration> {
    let campaign = std::env::var_os("SECRETFS_INTERRUPTED_SECRETS").is_some();
    campaign.then_some(Duration::from_secs(1))
}

fn secrets() -> usize {
    let secrets = std::env::var("SECRETFS_INTERRUPTED_SECRETS");
    secrets.map_or(SECRETS, |secrets| secrets.parse().expect("a number"))
}

/// What is stored of a rotation: its durable state, and how many keys stand under the newest
/// generation.
#[derive(PartialEq)]
struct Stored {
    keyring: Vec<u8>,
    generation: i64,
    keys: i64,
    all: i64,
}

impl Stored {
    fn in_vault(place: &Place) -> Self {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let database = Connection::open_with_flags(place.vault().join("vault.db"), flags);
        let database = database.expect("open");
        database.busy_timeout(SOON).expect("set");
        let sql = "WITH newest(g) AS (SELECT max(generation) FROM node) SELECT keyring.value, g, \
                   (SELECT count(*) FROM node WHERE generation = g) \
                   + (SELECT count(*) FROM version WHERE generation = g), \
                   (SELECT count(*) FROM node) + (SELECT count(*) FROM version) \
                   FROM keyring, newest";
        let row = database.query_row(sql, [], |row| {
            Ok(Self {
                keyring: row.get(0)?,
                generation: row.get(1)?,
                keys: row.get(2)?,
                all: row.get(3)?,
            })
        });
        row.expect("a row")
    }

    fn is_in_the_middle(&self) -> bool {
        (1..self.all).contains(&self.keys)
    }
}

/// How many rotations have ended.
fn ended(place: &Place) -> usize {
    let vault = place.vault();
    let told = place.run(["audit".as_ref(), vault.as_os_str(), "--json".as_ref()]);
    let told = told.succeeded().stdout();
    told.matches("\"event\":\"change-finished\"").count()
}

/// Waits until something is stored that was not `before`, or for as long as a run may last.
fn let_it_come_further(place: &Place, before: &Stored, run: &mut dyn FnMut() -> bool) {
    match every() {
        Some(every) => {
            let until = Instant::now() + every;
            while run() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        None => wait_for("progress", SOON, || {
            !run() || Stored::in_vault(place) != *before
        }),
    }
}

/// Has runs killed until one rotation more has ended; how many were killed, and how many of them
/// with some keys done and some not.
fn interrupted(place: &Place, kind: &str, run: &mut dyn FnMut(&Stored, bool)) -> (usize, usize) {
    let mut in_the_middle = 0;
    let at_first = ended(place);
    let mut last = Stored::in_vault(place);
    for killed in 0.. {
        let before = Stored::in_vault(place);
        assert!(
            (before.generation, before.keys) >= (last.generation, last.keys),
            "{kind}: what was done before a kill is done"
        );
        if ended(place) > at_first {
            return (killed, in_the_middle);
        }
        assert!(killed < 10_000, "{kind} does not end");
        run(&before, killed == 0);
        in_the_middle += usize::from(Stored::in_vault(place).is_in_the_middle());
        last = before;
    }
    unreachable!()
}

/// Nobody asks for anything more: all that was begun ends, and all is as it was.
fn all_ends(place: &Place) {
    let _server = place.serve(&[]);
    let last = wait_for_the_end(&place.point());
    assert_eq!(last["generations"].as_array().map(Vec::len), Some(1));
    all_is_there(&place.point(), secrets());
    detach(&place.point());
    check_is_clean(place);
}

fn filled() -> Place {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    fill(&place.point(), secrets());
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    assert_eq!(server.ended(SOON).0, Some(0));
    place
}

/// In the suite there is a kill for every few transactions of a rotation that has many.
fn enough(kind: &str, (killed, in_the_middle): (usize, usize)) {
    println!("{kind}: ended after {killed} kills, {in_the_middle} of them with some keys done");
    let (least, in_it) = match kind {
        "rewrap" => (1, 0),
        _ if every().is_some() => (1, 0),
        _ => (8, 4),
    };
    assert!(killed >= least, "{kind} was killed {killed} times only");
    assert!(
        in_the_middle >= in_it,
        "{kind}: {in_the_middle} in its middle only"
    );
}

#[test]
fn a_rotation_whose_daemon_is_killed_again_and_again_ends() {
    let place = filled();
    for kind in KINDS {
        let killed = interrupted(&place, kind, &mut |before, first| {
            let slowly = if every().is_some() { "" } else { SLOWLY };
            let mut server = serve_with(&place, slowly);
            if first {
                command(&place.point(), kind).expect("begun");
            }
            let_it_come_further(&place, before, &mut || server.is_running());
            server.signal(libc::SIGKILL);
            server.ended(SOON);
            detach(&place.point());
        });
        enough(kind, killed);
    }
    all_ends(&place);
}

#[test]
fn a_rotation_whose_command_is_killed_again_and_again_ends() {
    let place = filled();
    for kind in KINDS {
        let killed = interrupted(&place, kind, &mut |before, _| {
            let mut child = start(&place, kind);
            let_it_come_further(&place, before, &mut || {
                child.try_wait().expect("a child").is_none()
            });
            kill(child.id() as i32, libc::SIGKILL);
            child.wait().expect("a child");
        });
        enough(kind, killed);
    }
    assert!(json(&place, "status")["active_generation"].as_u64() >= Some(3));
    all_ends(&place);
}

fn start(place: &Place, kind: &str) -> Child {
    let mut command = place.command();
    if every().is_none() {
        command.env("FAILPOINTS", SLOWLY);
    }
    command.arg(kind).arg(place.vault());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    not_outliving_us(&mut command);
    command.spawn().expect("it runs")
}
