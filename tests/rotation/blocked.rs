//! Records that do not open: a rotation that meets them stops and names them, and goes on once they
//! were repaired, or once somebody insists.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::damaged::{SECRETS, World, all_but, wait_until_blocked};
use crate::support::process::status;
use crate::support::rotating::{check_is_clean, command, content, secret, wait_for_the_end};
use rusqlite::Connection;
use serde_json::Value;

/// Two versions, of which one does not open and one says that it stands under another key.
fn damage_two(world: &World) -> [String; 2] {
    let (one, other) = (world.nodes[7], world.nodes[20]);
    world.flip("version", "value", &format!("node = {one}"), 30);
    world.edit(&format!(
        "UPDATE version SET generation = 77 WHERE node = {other}"
    ));
    [one, other].map(|node| format!("version 1 of node {node}"))
}

/// Found by several threads, so in no particular order.
fn records_of(blocked: &Value) -> BTreeSet<String> {
    let records = blocked["records"].as_array().expect("records");
    let text = |record: &Value| record.as_str().expect("text").to_owned();
    records.iter().map(text).collect()
}

#[test]
fn a_blocked_rotation_names_its_records_and_goes_on_after_a_repair() {
    for (what, generation) in [("rotate", 2), ("reencrypt", 2)] {
        let world = World::new();
        let point = world.place.point();
        let records = damage_two(&world);
        command(&point, what).expect("begun");
        let blocked = wait_until_blocked(&point);
        assert_eq!(records_of(&blocked), records.clone().into(), "{blocked:#}");
        assert_eq!(blocked["damaged"], 2);
        assert_eq!(
            status(&point)["generations"].as_array().map(Vec::len),
            Some(2)
        );
        // It is told to whoever asks, and both ways out with it.
        let ran = world.run(&[what, "--wait"]);
        assert_eq!(ran.0.status.code(), Some(6), "{}", ran.stderr());
        let said = ran.stderr();
        for part in [
            "blocked",
            &records[0],
            &records[1],
            "--repair",
            "--retire-despite",
        ] {
            assert!(said.contains(part), "{said}");
        }
        assert_eq!(world.in_place(), all_but(&[7, 20]));
        // Not while it is mounted.
        world
            .run(&["check", "--repair"])
            .failed(7, "is open for writing");
        world.umount();
        let checked = world.run(&["check"]);
        assert_eq!(checked.0.status.code(), Some(6));
        let said = checked.stdout();
        let named = |record: &String| said.contains(record);
        assert!(records.iter().all(named), "{said}");

        let repaired = world.run(&["check", "--repair", "--json"]).succeeded();
        let report: Value = serde_json::from_str(&repaired.stdout()).expect("JSON");
        assert_eq!(report["problem_count"], 0, "{report:#}");
        let done = report["repairs"]["done"].to_string();
        for record in &records {
            assert!(done.contains(&format!("took out {record}")), "{done}");
        }
        let taken_out = world.taken_out();
        assert_eq!(taken_out.len(), 1);
        assert_eq!(
            report["repairs"]["taken_out"],
            taken_out[0].to_str().expect("UTF-8")
        );
        let kept = std::fs::read_to_string(&taken_out[0]).expect("readable");
        let versions = kept.lines().filter(|line| line.contains("\"version\""));
        assert_eq!(versions.count(), 2, "{kept}");

        world.place.mount(&[]).succeeded();
        let after = wait_for_the_end(&point);
        assert_eq!(after["active_generation"], generation);
        assert_eq!(after["generations"].as_array().map(Vec::len), Some(1));
        assert_eq!(world.in_place(), all_but(&[7, 20]));
        let lost: Vec<String> = world.lost().into_keys().collect();
        let mut expected = [7, 20].map(|n| format!("{}-secret-{n}", world.nodes[n]));
        expected.sort();
        assert_eq!(lost, expected);
        world.umount();
        check_is_clean(&world.place);
        let events = world.events();
        let repaired = events.iter().find(|e| e["event"] == "repaired");
        let repaired = repaired.expect("an event")["done"].to_string();
        assert!(
            records.iter().all(|record| repaired.contains(record)),
            "{repaired}"
        );
        assert!(events.iter().all(|e| e["event"] != "retired-despite"));
    }
}

#[test]
fn a_record_that_is_restored_lets_a_blocked_rotation_end() {
    for what in ["rotate", "reencrypt"] {
        let world = World::new();
        let point = world.place.point();
        let (one, other) = (world.nodes[7], world.nodes[20]);
        // The sealed attributes, and the sealed length: of both the wrapped keys open.
        let change = || {
            world.flip("node", "value", &format!("id = {one}"), 150);
            world.flip("version", "value", &format!("node = {other}"), 110);
        };
        change();
        command(&point, what).expect("begun");
        let blocked = wait_until_blocked(&point);
        let records = [format!("node {one}"), format!("version 1 of node {other}")];
        assert_eq!(records_of(&blocked), records.clone().into(), "{blocked:#}");
        world.umount();
        change();
        world.place.mount(&[]).succeeded();
        let after = wait_for_the_end(&point);
        assert_eq!(after["generations"].as_array().map(Vec::len), Some(1));
        assert_eq!(world.in_place(), all_but(&[]));
        world.umount();
        check_is_clean(&world.place);
    }
}

#[test]
fn who_insists_has_the_old_key_removed_and_the_history_says_what_was_given_up() {
    for what in ["rotate", "reencrypt"] {
        let world = World::new();
        let point = world.place.point();
        let records = damage_two(&world);
        command(&point, what).expect("begun");
        wait_until_blocked(&point);
        // The other one is not what is under way.
        let other = if what == "rotate" {
            "reencrypt"
        } else {
            "rotate"
        };
        let ran = world.run(&[other, "--retire-despite"]);
        assert_eq!(ran.0.status.code(), Some(7), "{}", ran.stderr());
        let ran = world.run(&[what, "--retire-despite", "--wait"]);
        assert!(ran.0.status.success(), "{}", ran.stderr());
        let after = status(&point);
        assert!(after["rotation"].is_null(), "{after:#}");
        assert_eq!(after["generations"].as_array().map(Vec::len), Some(1));
        assert_eq!(after["retired_generations"][0]["generation"], 1);
        assert_eq!(world.in_place(), all_but(&[7, 20]));
        world.umount();
        let events = world.events();
        let despite = events.iter().find(|e| e["event"] == "retired-despite");
        let despite = despite.expect("an event");
        for record in &records {
            assert!(
                despite["records"].to_string().contains(record),
                "{despite:#}"
            );
        }
        // What is damaged is as damaged as it was.
        let checked = world.run(&["check"]);
        assert_eq!(checked.0.status.code(), Some(6));
        let said = checked.stdout();
        assert!(records.iter().all(|record| said.contains(record)), "{said}");
        let mounted = world.place.mount(&[]);
        assert_eq!(mounted.0.status.code(), Some(6), "{}", mounted.stderr());
        world.run(&["check", "--repair"]).succeeded();
        world.place.mount(&[]).succeeded();
        assert_eq!(world.in_place(), all_but(&[7, 20]));
        world.umount();
        check_is_clean(&world.place);
        // The next one meets nothing.
        let ran = world.run(&[what]);
        assert!(ran.0.status.success(), "{}", ran.stderr());
    }
}

#[test]
fn a_vault_that_nobody_has_mounted_is_rotated_despite_damage_only_if_somebody_insists() {
    for what in ["rotate", "reencrypt"] {
        let world = World::unmounted();
        let [one, other] = [world.directories[1], world.nodes[50]];
        damage_two(&world);
        world.flip("chunk", "sealed", &format!("node = {other} AND idx = 1"), 5);
        let first = format!("directory = {one} ORDER BY tag LIMIT 1");
        let tag = format!("tag = (SELECT tag FROM entry WHERE {first})");
        world.flip("entry", "value", &tag, 40);
        let before = world.events().len();
        let ran = world.run(&[what]);
        assert_eq!(ran.0.status.code(), Some(6), "{}", ran.stderr());
        let ran = world.run(&[what, "--retire-despite"]);
        assert!(ran.0.status.success(), "{}", ran.stderr());
        assert_eq!(ran.stdout(), crate::support::rotating::done(what));
        let events = world.events();
        assert_eq!(events.len(), before + 4);
        assert_eq!(events[before + 2]["event"], "retired-despite");
        world.run(&["check", "--repair"]).succeeded();
        check_is_clean(&world.place);
        world.place.mount(&[]).succeeded();
        let left = world.in_place();
        // The name of one is lost, too; what it holds is not.
        assert_eq!(left.len(), SECRETS - 4, "{left:?}");
        let lost = world.lost();
        let nameless: Vec<_> = lost.keys().filter(|name| !name.contains('-')).collect();
        assert_eq!(nameless.len(), 1, "{:?}", lost.keys());
        let held = &lost[nameless[0]];
        assert!((0..SECRETS).any(|n| *held == content(n)));
        assert_eq!(status(&world.place.point())["active_generation"], 2);
    }
}

#[test]
fn a_generation_number_that_was_forged_is_named() {
    let world = World::unmounted();
    let node = world.nodes[9];
    world.edit(&format!("UPDATE node SET generation = 5 WHERE id = {node}"));
    let checked = world.run(&["check"]);
    assert_eq!(checked.0.status.code(), Some(6));
    let expected = format!(
        "the wrapped key of node {node} is under master key generation 5, which is not in the keyring"
    );
    assert!(checked.stdout().contains(&expected), "{}", checked.stdout());
}

// --- repairs -------------------------------------------------------------------------------------

/// Has the vault damaged and repaired: `check` finds it before, and nothing afterwards. Which
/// secrets are not in their places, and what is in `lost+found`.
fn repaired(damage: &dyn Fn(&World)) -> (World, Vec<usize>, BTreeMap<String, Vec<u8>>) {
    let world = World::unmounted();
    damage(&world);
    let checked = world.run(&["check"]);
    assert_eq!(checked.0.status.code(), Some(6), "{}", checked.stdout());
    world.run(&["check", "--repair"]).succeeded();
    check_is_clean(&world.place);
    world.place.mount(&[]).succeeded();
    let left = world.in_place();
    let gone = (0..SECRETS).filter(|n| !left.contains(n)).collect();
    let lost = world.lost();
    // It is as good as any other.
    command(&world.place.point(), "reencrypt").expect("begun");
    wait_for_the_end(&world.place.point());
    assert_eq!(world.in_place(), left);
    assert_eq!(world.lost(), lost);
    world.umount();
    check_is_clean(&world.place);
    (world, gone, lost)
}

#[test]
fn what_is_left_of_a_content_is_kept_and_nothing_else_is_shown_in_its_place() {
    let of = |world: &World, n: usize| world.nodes[n];
    let (world, gone, lost) = repaired(&|w| {
        w.flip(
            "chunk",
            "sealed",
            &format!("node = {} AND idx = 1", of(w, 50)),
            99,
        );
    });
    assert_eq!(gone, [50]);
    let left = &lost[&format!("{}-secret-50", of(&world, 50))];
    let mut expected = content(50);
    expected[64 << 10..128 << 10].fill(0);
    assert!(
        *left == expected,
        "the chunk that is lost, and no other, is zeros"
    );

    let (world, gone, lost) = repaired(&|w| {
        w.edit(&format!("DELETE FROM version WHERE node = {}", of(w, 11)));
    });
    assert_eq!(gone, [11]);
    assert_eq!(lost[&format!("{}-secret-11", of(&world, 11))], b"");

    // Chunks that are there, and only hard to find.
    let (_, gone, lost) = repaired(&|w| {
        w.edit(&format!(
            "UPDATE version SET first_chunk = first_chunk + 1 WHERE node = {}",
            of(w, 50)
        ));
    });
    assert!(gone.is_empty() && lost.is_empty(), "{gone:?}");

    // More chunks than there should be.
    let (_, gone, lost) = repaired(&|w| {
        w.edit(&format!(
            "INSERT INTO chunk SELECT (SELECT max(id) + 1 FROM chunk), node, version, 9, sealed \
             FROM chunk WHERE node = {} AND idx = 0",
            of(w, 50)
        ));
    });
    assert!(gone.is_empty() && lost.is_empty(), "{gone:?}");
}

#[test]
fn the_content_of_a_node_that_is_lost_is_kept_and_so_is_what_was_below_a_lost_directory() {
    for lost_how in ["flipped", "deleted"] {
        let damage = |w: &World, id: u64| match lost_how {
            "flipped" => w.flip("node", "value", &format!("id = {id}"), 100),
            _ => assert_eq!(w.edit(&format!("DELETE FROM node WHERE id = {id}")), 1),
        };
        let (world, gone, lost) = repaired(&|w| damage(w, w.nodes[13]));
        assert_eq!(gone, [13]);
        let name = format!("{}-version-1-secret-13", world.nodes[13]);
        assert!(lost[&name] == content(13), "{:?}", lost.keys());

        let (world, gone, lost) = repaired(&|w| damage(w, w.directories[2]));
        let below: Vec<usize> = (0..SECRETS).filter(|n| n % 4 == 2).collect();
        assert_eq!(gone, below);
        for n in below {
            assert!(lost[&world.nodes[n].to_string()] == content(n), "{n}");
        }
        // All of the tree.
        let (world, gone, _) = repaired(&|w| damage(w, 1));
        assert_eq!(gone.len(), SECRETS);
        world.place.mount(&[]).succeeded();
        let below = world.place.point().join("lost+found");
        for n in 0..SECRETS {
            let directory = world.directories[n % 4].to_string();
            let found = std::fs::read(below.join(directory).join(format!("secret-{n}")));
            assert!(found.expect("readable") == content(n), "{n}");
        }
    }
}

#[test]
fn a_node_whose_name_is_lost_is_found_by_its_number() {
    for lost_how in ["flipped", "deleted"] {
        let (world, gone, lost) = repaired(&|w| {
            let which = format!(
                "tag = (SELECT tag FROM entry WHERE directory = {} ORDER BY tag LIMIT 1)",
                w.directories[3]
            );
            match lost_how {
                "flipped" => w.flip("entry", "value", &which, 50),
                _ => drop(w.edit(&format!("DELETE FROM entry WHERE {which}"))),
            }
        });
        assert_eq!(gone.len(), 1);
        let n = gone[0];
        assert!(
            lost[&world.nodes[n].to_string()] == content(n),
            "{:?}",
            lost.keys()
        );
    }
}

#[test]
fn a_repair_of_what_was_put_back_takes_the_vault_as_it_is_and_says_so() {
    let world = World::unmounted();
    let node = world.nodes[5];
    let database = || Connection::open(world.place.vault().join("vault.db")).expect("open");
    let read = format!("SELECT value FROM node WHERE id = {node}");
    let old: Vec<u8> = database()
        .query_row(&read, [], |row| row.get(0))
        .expect("a node");
    world.place.mount(&[]).succeeded();
    let path = secret(&world.place.point(), 5);
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640))
        .expect("set");
    world.umount();
    let sql = format!("UPDATE node SET value = ?1 WHERE id = {node}");
    assert_eq!(database().execute(&sql, [old]).expect("put back"), 1);
    assert_eq!(world.run(&["check"]).0.status.code(), Some(6));
    let said = world.run(&["check", "--repair"]).succeeded().stdout();
    assert!(said.contains("set the sums to what is there"), "{said}");
    assert!(said.contains("which cannot be told"), "{said}");
    check_is_clean(&world.place);
    world.place.mount(&[]).succeeded();
    assert_eq!(world.in_place().len(), SECRETS);
}

#[test]
fn a_vault_that_is_whole_is_left_as_it_is_by_a_repair() {
    let world = World::unmounted();
    let before = world.events().len();
    let sequence = |world: &World| {
        let status = world.run(&["status", "--json"]).succeeded().stdout();
        serde_json::from_str::<Value>(&status).expect("JSON")["commit_sequence"].clone()
    };
    let commits = sequence(&world);
    let said = world.run(&["check", "--repair", "--json"]).succeeded();
    let report: Value = serde_json::from_str(&said.stdout()).expect("JSON");
    assert_eq!(report["repairs"]["count"], 0, "{report:#}");
    assert_eq!(world.events().len(), before);
    assert_eq!(sequence(&world), commits);
    assert!(world.taken_out().is_empty());
}
