//! Makes the vaults, with the program as it is. They are of format 1, whatever it writes by then: what is
//! committed is kept, and made anew only when vaults of another kind are added.
//!
//! `cargo nextest run --run-ignored only --test golden -E 'test(/^make::/)'` makes those that are missing.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Read;
use std::ops::ControlFlow;
use std::time::Duration;

use rusqlite::Connection;
use secretfs::codec;
use secretfs::keyring::{Event, EventKind, RotationKind};
use secretfs::kms::KmsSettings;
use secretfs::kms::local::LocalKms;
use secretfs::vault::{OpenOptions, Request, Vault};

use crate::store::{VAULTS, keep, of, python, unmount};
use crate::support::forge::Hand;
use crate::support::process::{Place, Server, detach};
use crate::support::rotating::reencrypt;

fn kms(place: &Place) -> KmsSettings {
    KmsSettings {
        local_dir: Some(place.path().join("kms")),
        ..KmsSettings::default()
    }
}

fn opened(place: &Place) -> Vault {
    let options = OpenOptions {
        kms: kms(place),
        anchor_dir: Some(place.path().join("anchors")),
        ..OpenOptions::default()
    };
    Vault::open(&place.vault(), &options).expect("opened")
}

fn to_the_end(vault: &Vault, request: &Request) {
    vault.begin(request).expect("begun");
    vault.drive(&|| ControlFlow::Continue(())).expect("driven");
}

/// Fills a new vault in a mount.
fn filled(fill: impl FnOnce(&Place)) -> Place {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    fill(&place);
    unmount(&place);
    place
}

/// A few files in some directories.
fn few() -> Place {
    filled(|place| {
        for directory in 0..3 {
            let directory = place.point().join(format!("d{directory}"));
            fs::create_dir(&directory).expect("made");
            fs::create_dir(directory.join("sub")).expect("made");
            for file in 0..4 {
                let content = format!("the content of file {file} ").repeat(1 + file * 20);
                fs::write(directory.join(format!("f{file}")), content).expect("written");
            }
        }
    })
}

fn count(place: &Place, sql: &str) -> i64 {
    let database = Connection::open(place.vault().join("vault.db")).expect("a database");
    database.query_row(sql, [], |row| row.get(0)).expect(sql)
}

/// Kills a server, with what is in its log as it is.
fn killed(place: &Place, server: Server) {
    server.signal(libc::SIGKILL);
    let _ = server.ended(Duration::from_secs(20));
    detach(&place.point());
}

fn new() {
    keep(&Place::with_vault(), "new", true);
}

fn tree() {
    let place = filled(|place| drop(python(place, "tree.py", &["early"])));
    keep(&place, "early", true);
    place.mount(&[]).succeeded();
    python(&place, "tree.py", &["late"]);
    unmount(&place);
    keep(&place, "tree", true);
}

fn left_overs() {
    let place = few();
    let mut command = place.command();
    command.env("FAILPOINTS", "dies-between-steps=return");
    command
        .arg("mount")
        .arg(place.vault())
        .arg(place.point())
        .arg("-f");
    let server = Server::start(command);
    let at = |name: &str| place.point().join(name);
    let begun = |name: &str| {
        let mut file = File::open(at(name)).expect("open");
        file.read_exact(&mut [0; 4]).expect("read");
        file
    };
    let replaced = begun("d0/f1");
    fs::write(at("d0/f1"), "the content after that").expect("replaced");
    let removed = begun("d1/f2");
    fs::remove_file(at("d1/f2")).expect("removed");
    let directory = File::open(at("d2/sub")).expect("open");
    fs::remove_dir(at("d2/sub")).expect("removed");
    // In several transactions, and the daemon dies after the first.
    let _ = fs::write(at("d0/f3"), vec![b'x'; 3 << 20]);
    let _ = server.ended(Duration::from_secs(20));
    drop((replaced, removed, directory));
    detach(&place.point());
    assert_eq!(count(&place, "SELECT count(*) FROM orphan"), 4);
    // That left a MiB of a begun version. The first of its chunks show the same.
    let database = Connection::open(place.vault().join("vault.db")).expect("a database");
    let fewer = "DELETE FROM chunk WHERE idx > 0 AND node = \
                 (SELECT node FROM chunk GROUP BY node, version HAVING count(*) = 16)";
    assert_eq!(database.execute(fewer, []).expect("deleted"), 15);
    drop(database);
    keep(&place, "left-overs", true);
}

fn in_the_log() {
    let place = few();
    let server = place.serve(&[]);
    let at = |name: &str| place.point().join(name);
    fs::write(at("d0/f0"), "what is in the log alone").expect("written");
    fs::rename(at("d1/f1"), at("d1/renamed")).expect("renamed");
    File::open(at("d1"))
        .expect("open")
        .sync_all()
        .expect("synced");
    killed(&place, server);
    keep(&place, "killed", false);
    assert!(of("killed").join("vault/vault.db-wal").exists());
}

fn history() {
    let place = Place::new();
    let vault = place.vault();
    let keys = [
        "--kms-key",
        "local-kms://default",
        "--kms-key",
        "local-kms://second",
    ];
    let args = ["init".as_ref(), vault.as_os_str()];
    place
        .run(args.into_iter().chain(keys.map(AsRef::as_ref)))
        .succeeded();
    place.mount(&[]).succeeded();
    fs::write(place.point().join("password"), "s3cret").expect("written");
    unmount(&place);
    let vault = opened(&place);
    to_the_end(&vault, &Request::Rotate);
    let local = LocalKms::new(&kms(&place)).expect("a KMS");
    local.rotate("default").expect("a second version");
    let (to, leave_aws) = (vec![], false);
    to_the_end(&vault, &Request::Rewrap { to, leave_aws });
    to_the_end(&vault, &Request::Reencrypt);
    drop(vault);
    // What takes damage or a broken KMS to happen; and what later programs may write.
    let hand = Hand::of(&place.vault(), &place.path().join("kms"));
    let rare = [
        EventKind::RollbackAccepted {
            seen_keyring: 9,
            accepted_keyring: 7,
            seen_commit: 80,
            accepted_commit: 70,
        },
        EventKind::ChangeAbandoned {
            change: RotationKind::Rotate,
            generation: 4,
        },
        EventKind::RetiredDespite {
            generation: 2,
            count: 1,
            records: vec!["node 7".into()],
        },
        EventKind::Repaired {
            count: 2,
            done: vec!["node 7 was removed".into(), "an entry was removed".into()],
        },
        EventKind::TamperingFound {
            count: 1,
            what: vec!["node 7 does not authenticate".into()],
        },
    ];
    for (at, kind) in (1_700_000_000..).zip(rare) {
        let late = at % 2 == 0;
        hand.append_event(&place, &codec::encode(&Event { at, late, kind }));
    }
    let unknown = [
        &1_800_000_000i64.to_le_bytes()[..],
        &[1],
        &[57, 0, 0, 0],
        b"more",
    ]
    .concat();
    let longer = [&unknown[..9], &[3, 0, 0, 0], &[4, 0, 0, 0, 0, 0, 0, 0, 9]].concat();
    for event in [&unknown[..], &longer, b"none", b""] {
        hand.append_event(&place, event);
    }
    keep(&place, "history", true);
}

fn prepared() {
    let place = few();
    opened(&place).begin(&Request::Rotate).expect("begun");
    keep(&place, "prepared", true);
}

fn rewrap() {
    let place = few();
    let (to, leave_aws) = (vec![], false);
    let request = Request::Rewrap { to, leave_aws };
    opened(&place).begin(&request).expect("begun");
    keep(&place, "rewrap", true);
}

fn rotate() {
    let place = few();
    let both = |table: &str| {
        count(
            &place,
            &format!("SELECT count(DISTINCT generation) FROM {table}"),
        ) == 2
    };
    let vault = opened(&place);
    vault.begin(&Request::Rotate).expect("begun");
    while !both("node") {
        let steps = Cell::new(0);
        let go_on = || match vault.progress().is_some_and(|p| p.done > 0) && steps.replace(1) > 0 {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        vault.drive(&go_on).expect("driven");
    }
    drop(vault);
    keep(&place, "rotate", true);
}

fn two_keys(place: &Place, which: &str) -> i64 {
    // Kind, revision, a wrapped key, the length, what is sealed: more than that is a second key.
    let sql =
        format!("SELECT count(*) FROM node WHERE {which} AND (length(value) - 89 - 40) % 256 = 80");
    count(place, &sql)
}

fn renewed(place: &Place, is_there: &dyn Fn(&Place) -> bool) {
    let vault = opened(place);
    // Each run looks at a directory from its first name on, and gets a little further.
    for steps in 3..200 {
        reencrypt(&vault, steps);
        assert!(vault.is_rotating(), "it ended");
        if is_there(place) {
            return;
        }
    }
    panic!("it never came to that");
}

fn under_way() {
    let place = few();
    renewed(&place, &|place| {
        let epochs = "SELECT max(n) FROM (SELECT count(DISTINCT substr(value, 1, 4)) AS n \
                      FROM entry GROUP BY directory HAVING count(*) > 4)";
        two_keys(place, "id > 1") > 0 && count(place, epochs) == 2
    });
    keep(&place, "reencrypt", true);
    renewed(&place, &|place| two_keys(place, "id = 0") == 1);
    keep(&place, "sums", true);
}

/// Vaults, and what makes them.
type Maker = (&'static [&'static str], fn());

#[test]
#[ignore = "makes vaults that are committed"]
fn vaults_that_are_missing() {
    let makers: [Maker; 9] = [
        (&["new"], new),
        (&["early", "tree"], tree),
        (&["left-overs"], left_overs),
        (&["killed"], in_the_log),
        (&["history"], history),
        (&["prepared"], prepared),
        (&["rewrap"], rewrap),
        (&["rotate"], rotate),
        (&["reencrypt", "sums"], under_way),
    ];
    for (names, make) in makers {
        assert!(
            names
                .iter()
                .all(|name| VAULTS.iter().any(|(known, _)| known == name))
        );
        if names
            .iter()
            .any(|name| !of(name).join("expected.json").exists())
        {
            println!("{names:?}");
            make();
        }
    }
}
