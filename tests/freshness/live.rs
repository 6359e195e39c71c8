//! What is put back, removed or moved away under a running mount is not served, is told, and stays known.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::support::damaged::World;
use crate::support::evil::{copy, database, execute};
use crate::support::layer::Layer;
use crate::support::process::{Place, Server, status, system, wait_for};
use crate::support::put_back::{
    all_as_it_was, keep, large_with_an_older_part, newest, node_as_it_was, tables_as_they_were,
    unmount, write_once,
};
use crate::support::rotating::secret;
use rusqlite::Connection;
use secretfs::fs::{Ending, Errno};
use secretfs::vault::ROOT;

const PATIENCE: Duration = Duration::from_secs(60);

/// A mount that tells systemd, and what it tells.
fn told_systemd(place: &Place, options: &str) -> (Server, UnixDatagram) {
    let path = place.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bound");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut command = place.command();
    command.env("NOTIFY_SOCKET", &path);
    command
        .arg("mount")
        .arg(place.vault())
        .arg(place.point())
        .args(["-f", options]);
    (Server::start(command), socket)
}

#[test]
fn a_vault_that_goes_back_under_a_read_only_mount_condemns_it_and_systemd_is_told() {
    let place = Place::with_vault();
    write_once(&place, "OLD");
    let kept = keep(&place);
    write_once(&place, "NEW");
    let (_server, socket) = told_systemd(&place, "-oro");
    let point = place.point();
    assert_eq!(fs::read(point.join("secret")).expect("read"), b"NEW");
    all_as_it_was(&place, &kept);
    let mut buffer = [0; 4096];
    loop {
        let length = socket.recv(&mut buffer).expect("systemd is told");
        let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if said.contains("STATUS=integrity failure") {
            break;
        }
    }
    // That one record is older may have been found, and told, before.
    wait_for("the mount to be condemned", PATIENCE, || {
        let told = status(&point);
        let why = told["integrity"].as_str().expect("text").to_owned();
        // Both are of one moment.
        let is_condemned = told["state"] == "condemned";
        assert_eq!(is_condemned, why.contains("put back"), "{told}");
        is_condemned
    });
    let error = fs::read(point.join("secret")).expect_err("it is older");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
}

#[test]
fn a_removed_secret_whose_place_in_the_list_of_left_overs_is_deleted_is_found_and_goes() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let point = place.point();
    fs::write(point.join("removed"), "a removed secret").expect("written");
    let open = fs::File::open(point.join("removed")).expect("opened");
    fs::remove_file(point.join("removed")).expect("removed");
    fs::File::open(&point)
        .expect("opened")
        .sync_all()
        .expect("synced");
    server.signal(libc::SIGKILL);
    server.ended(PATIENCE);
    drop(open);
    system("umount", &["-l".as_ref(), point.as_os_str()]);
    let nodes = || -> i64 {
        database(&place)
            .query_row("SELECT count(*) FROM node", [], |row| row.get(0))
            .expect("counted")
    };
    assert_eq!(nodes(), 3);
    execute(&place, "DELETE FROM orphan");
    place.mount(&["-overify-every=1s"]).succeeded();
    wait_for("its end", PATIENCE, || nodes() == 2);
    let told = status(&point);
    assert!(
        told["integrity"]
            .as_str()
            .expect("text")
            .contains("taken off"),
        "{told}"
    );
    unmount(&place);
    let audit = place.run([
        "audit".as_ref(),
        place.vault().as_os_str(),
        "--json".as_ref(),
    ]);
    assert!(
        audit.stdout().contains("tampering-found"),
        "{}",
        audit.stdout()
    );
}

#[test]
fn what_was_found_under_a_mount_stays_in_status_and_goes_into_the_history_when_there_is_one_to_write()
 {
    for mode in ["rw", "ro"] {
        let place = Place::with_vault();
        write_once(&place, "OLD");
        let kept = keep(&place);
        write_once(&place, "NEW");
        let whole = place.path().join("whole");
        copy(&place.vault(), &whole);
        place.mount(&["-o", mode]).succeeded();
        let secret = place.point().join("secret");
        node_as_it_was(&place, &kept, 2);
        let error = fs::read(&secret).expect_err("it is older");
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{mode}");
        node_as_it_was(&place, &whole, 2);
        assert_eq!(
            fs::read(&secret).expect("it is right again"),
            b"NEW",
            "{mode}"
        );
        let told = status(&place.point());
        let integrity = told["integrity"].as_str().expect("text");
        assert!(
            integrity.starts_with("failed: node 2 "),
            "{mode}: {integrity}"
        );
        assert!(
            told["findings"]["count"].as_u64().expect("a number") >= 1,
            "{mode}"
        );
        assert!(
            told["findings"]["listed"][0]["at"].as_i64().is_some(),
            "{mode}"
        );
        let audit = || {
            let ran = place.run([
                "audit".as_ref(),
                place.vault().as_os_str(),
                "--json".as_ref(),
            ]);
            ran.succeeded().stdout()
        };
        let found = || audit().contains("tampering-found");
        match mode {
            "rw" => wait_for("the history", PATIENCE, found),
            _ => assert!(!found()),
        }
        unmount(&place);
        assert_eq!(found(), mode == "rw");
        place
            .run(["check".as_ref(), place.vault().as_os_str()])
            .succeeded();
    }
}

#[test]
fn what_is_put_in_by_writing_pages_is_not_served() {
    for mode in ["rw", "ro"] {
        let place = Place::with_vault();
        place.mount(&[]).succeeded();
        fs::write(place.point().join("secret"), "OLD").expect("written");
        // Each fills a page of its own: more than SQLite keeps.
        let others = || (0..700).map(|n| place.point().join(n.to_string()));
        for other in others() {
            fs::write(other, [7; 3500]).expect("written");
        }
        unmount(&place);
        // All in the database, and of the same pages.
        let old = fs::read(place.vault().join("vault.db")).expect("read");
        write_once(&place, "NEW");
        place.mount(&["-o", mode]).succeeded();
        // What it has read while the vault was counted is forgotten.
        for other in others() {
            assert_eq!(fs::read(other).expect("read").len(), 3500);
        }
        let file = fs::File::options()
            .write(true)
            .open(place.vault().join("vault.db"))
            .expect("opened");
        std::os::unix::fs::FileExt::write_all_at(&file, &old, 0).expect("written");
        match fs::read(place.point().join("secret")) {
            // From pages that it has all the same.
            Ok(read) => assert_eq!(read, b"NEW", "{mode}"),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "{mode}"),
        }
        // Caches go.
        for _ in 0..3 {
            execute(&place, "PRAGMA wal_checkpoint");
            match fs::read(place.point().join("secret")) {
                Ok(read) => assert_eq!(read, b"NEW", "{mode}"),
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "{mode}"),
            }
        }
        place.run(["umount".as_ref(), place.point().as_os_str()]);
        wait_for("the end of the mount", PATIENCE, || !place.is_mounted());
    }
}

#[test]
fn a_keyring_or_a_state_that_is_put_back_under_a_mount_is_found_and_made_good_by_who_writes() {
    for mode in ["rw", "ro"] {
        let place = Place::with_vault();
        write_once(&place, "OLD");
        let kept = keep(&place);
        let run = |name: &str| {
            let ran = place.run([name.as_ref(), place.vault().as_os_str(), "--wait".as_ref()]);
            assert!(ran.0.status.success(), "{}", ran.stderr());
        };
        run("rotate");
        write_once(&place, "NEW");
        for table in ["keyring", "state"] {
            place.mount(&["-o", mode]).succeeded();
            tables_as_they_were(&place, &kept, &[table]);
            let point = place.point();
            let integrity = || {
                status(&point)["integrity"]
                    .as_str()
                    .expect("text")
                    .to_owned()
            };
            wait_for("a finding", PATIENCE, || {
                integrity().starts_with("failed: ")
            });
            if mode == "rw" {
                let secret = point.join("secret");
                assert_eq!(fs::read(&secret).expect("read"), b"NEW", "{table}");
                fs::write(&secret, "NEW").expect("written");
            }
            place.run(["umount".as_ref(), point.as_os_str()]);
            wait_for("the end of the mount", PATIENCE, || {
                place.daemons().is_empty()
            });
            if mode == "ro" {
                break;
            }
            place
                .run(["check".as_ref(), place.vault().as_os_str()])
                .succeeded();
        }
    }
}

#[test]
fn what_a_condemned_mount_has_found_goes_into_the_history_once_the_vault_is_right_again() {
    let place = large_with_an_older_part();
    let damaged = newest(&place);
    place
        .mount(&["-overify=background,verify-every=1s"])
        .succeeded();
    let point = place.point();
    wait_for("the end of the count", PATIENCE, || {
        status(&point)["state"] == "condemned"
    });
    let audit = || {
        let ran = place.run([
            "audit".as_ref(),
            place.vault().as_os_str(),
            "--json".as_ref(),
        ]);
        ran.stdout().contains("tampering-found")
    };
    assert!(!audit());
    node_as_it_was(&place, &place.path().join("whole"), damaged);
    wait_for("the history", PATIENCE, audit);
    // It stays condemned.
    assert_eq!(status(&point)["state"], "condemned");
    fs::read(point.join("secret")).expect_err("nothing is served");
    place.run(["umount".as_ref(), point.as_os_str()]);
    wait_for("the end of the mount", PATIENCE, || {
        place.daemons().is_empty()
    });
    place
        .run(["check".as_ref(), place.vault().as_os_str()])
        .succeeded();
}

#[test]
fn a_mount_whose_vault_was_moved_away_does_not_say_that_it_is_verified() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    fs::rename(place.vault(), place.path().join("elsewhere")).expect("moved");
    let told = status(&place.point());
    let integrity = told["integrity"].as_str().expect("text");
    assert!(
        integrity.starts_with("failed: ") && integrity.contains("moved"),
        "{integrity}"
    );
    place.run(["umount".as_ref(), place.point().as_os_str()]);
}

#[test]
fn damage_to_a_content_is_a_finding_and_whoever_reads_it_again_and_again_fills_no_log() {
    for mode in ["rw", "ro"] {
        let world = World::unmounted();
        let (place, node) = (&world.place, world.nodes[3]);
        let log = place.path().join("log");
        let options = format!("{mode},log-file={}", log.display());
        place.mount(&["-o", &options]).succeeded();
        let point = place.point();
        world.flip("chunk", "sealed", &format!("node = {node}"), 30);
        for _ in 0..200 {
            let read = fs::read(secret(&point, 3)).expect_err("damaged");
            assert_eq!(read.raw_os_error(), Some(libc::EIO));
        }
        let told = status(&point);
        assert_eq!(told["findings"]["count"], 200, "{told:#}");
        let listed = told["findings"]["listed"].as_array().expect("a list");
        assert_eq!(listed.len(), 1, "{told:#}");
        let what = listed[0]["what"].as_str().expect("text");
        let is_named =
            what.contains("chunk 0 of version") && what.contains(&format!("node {node} "));
        assert!(is_named, "{what}");
        unmount(place);
        let logged = fs::read_to_string(&log).expect("a log");
        let lines = logged.lines().filter(|line| line.contains("authenticate"));
        assert!((1..10).contains(&lines.count()), "{logged}");
        let audit = world.run(&["audit"]).succeeded().stdout();
        assert_eq!(audit.contains("tampering-found"), mode == "rw", "{audit}");
    }
}

/// Without a kernel, and without a thread that looks for what watchers are told of.
#[test]
fn one_look_up_of_a_damaged_name_is_one_finding() {
    const DAMAGES: [(&str, &str, usize); 4] = [
        ("entry", "directory = ROOT", 60),
        ("", "DELETE FROM entry WHERE directory = ROOT", 0),
        ("node", "id = FILE", 150),
        ("node", "id = ROOT", 150),
    ];
    for (is_beside, (table, which, at)) in DAMAGES.iter().flat_map(|of| [(true, of), (false, of)]) {
        let layer = Layer::new();
        let writer = layer.open();
        let (file, fh) = writer.create(ROOT, b"secret", 0o600);
        writer.release(fh);
        writer.finish();
        let served = match is_beside {
            true => layer.open_beside(),
            false => layer.open(),
        };
        let database = Connection::open(layer.vault().join("vault.db")).expect("open");
        let which = which.replace("ROOT", &ROOT.to_string());
        let which = which.replace("FILE", &file.to_string());
        if table.is_empty() {
            database.execute(&which, []).expect("deleted");
        } else {
            let select = format!("SELECT value FROM {table} WHERE {which}");
            let value = database.query_row(&select, [], |row| row.get(0));
            let mut value: Vec<u8> = value.expect("one");
            value[*at] ^= 1;
            let update = format!("UPDATE {table} SET value = ?1 WHERE {which}");
            database.execute(&update, [value]).expect("changed");
        }
        let found = served.lookup_for(7, ROOT, b"secret").err();
        assert_eq!(
            found,
            Some(Errno(libc::EIO)),
            "{is_beside}: {table} {which}"
        );
        let findings = served.0.vault().findings();
        assert_eq!(
            findings.count, 1,
            "{is_beside}: {table} {which}: {findings:#?}"
        );
        // The writer may find the damage again.
        let _ = served.0.finish(Ending::Aborted);
    }
}

#[test]
fn a_chunk_that_is_cut_out_under_a_mount_is_a_finding() {
    for (mode, chunk) in [("rw", 0), ("rw", 1), ("ro", 0), ("ro", 1)] {
        let place = Place::with_vault();
        write_once(&place, &"large".repeat(50_000));
        let node = newest(&place);
        place.mount(&["-o", mode]).succeeded();
        let point = place.point();
        execute(
            &place,
            &format!("DELETE FROM chunk WHERE node = {node} AND idx = {chunk}"),
        );
        let read = fs::read(point.join("secret")).expect_err("it is not whole");
        assert_eq!(read.raw_os_error(), Some(libc::EIO));
        let listed = status(&point)["findings"]["listed"].to_string();
        let is_named = listed.contains(&format!("of node {node} "));
        assert!(is_named, "{mode}, chunk {chunk}: {listed}");
        unmount(&place);
    }
}

/// As `cp` writes over them: the files stay the same ones.
#[test]
fn a_writer_whose_files_are_overwritten_with_older_ones_serves_nothing_older_and_says_what_it_found()
 {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let point = place.point();
    let write = |text: &str| {
        for n in 0..50 {
            fs::write(point.join(format!("secret-{n}")), text.repeat(200)).expect("written");
        }
    };
    write("OLD");
    let files = ["vault.db", "vault.db-wal"];
    let kept = place.path().join("kept");
    fs::create_dir(&kept).expect("made");
    for file in files {
        fs::copy(place.vault().join(file), kept.join(file)).expect("kept");
    }
    write("NEWER");
    for file in files {
        fs::copy(kept.join(file), place.vault().join(file)).expect("overwritten");
    }
    let mut refused = 0;
    for n in 0..50 {
        match fs::read(point.join(format!("secret-{n}"))) {
            Ok(text) => assert_eq!(text, "NEWER".repeat(200).as_bytes()),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO));
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "all was still in memory");
    let told = status(&point);
    let findings = told["findings"]["listed"].as_array().expect("a list");
    assert!(!findings.is_empty(), "{told:#}");
    let integrity = told["integrity"].as_str().expect("text");
    assert!(integrity.starts_with("failed: "), "{integrity}");
    place.run(["umount".as_ref(), point.as_os_str()]);
}
