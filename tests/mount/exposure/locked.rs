//! What is in the memory of a daemon, and what of it may be swapped out.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{LOCKABLE, Mount, Secrets, Who, content};
use crate::support::memory;

const OPEN: [&str; 7] = [
    "small",
    "large",
    "old",
    "replacement",
    "edit",
    "new",
    "renamed",
];

/// All of the daemon's memory is locked, so that nothing of it can be swapped out.
#[test]
fn nothing_is_in_swappable_memory_of_a_daemon_that_may_lock_all() {
    let mount = Mount::of(Who::Root);
    assert_eq!(mount.status()["protection"]["locked"], "all");
    let locked = |stage: &str| {
        for mapping in memory::mappings(mount.server.pid()) {
            // The kernel's own pages, which every process has.
            let is_kernels = ["[vvar]", "[vdso]", "[vsyscall]", "[vvar_vclock]"]
                .contains(&mapping.name.as_str());
            assert!(is_kernels || !mapping.is_swappable(), "{stage}: {mapping}");
            assert_eq!(mapping.sizes["Swap"], 0, "{stage}: {mapping}");
            if !is_kernels {
                assert_eq!(
                    mapping.sizes["Locked"], mapping.sizes["Pss"],
                    "{stage}: {mapping}"
                );
            }
        }
        let found = mount.search();
        found.nothing_swappable(stage);
        found
    };
    locked("idle");
    let secrets = mount.with(|point| Secrets::in_use(point, 16 << 20));
    let found = locked("in use");
    // What it wraps keys with, it has in memory.
    assert!(!found.of("the key that wraps").is_empty());
    for what in OPEN {
        // So the search finds what is there, and where.
        assert!(
            !found.of(&format!("the content of {what}")).is_empty(),
            "{what}"
        );
    }
    drop(secrets);
    locked("closed");
    mount.ended();
}

/// What is written, read and called by name is locked before it is used; what is over is wiped.
#[test]
fn an_ordinary_user_who_may_lock_8_mib_has_keys_names_and_contents_of_that_size_locked() {
    let mount = Mount::of(Who::Nobody);
    let before = mount.status();
    assert_eq!(before["protection"]["locked"], "arena");
    assert_eq!(before["protection"]["lock_limit"], LOCKABLE);
    let kept = |stage: &str| {
        let mut found = mount.search();
        let listed = ["the content of link target", "the content of attribute"];
        found
            .hits
            .retain(|(what, ..)| !listed.contains(&what.as_str()));
        found.nothing_swappable(stage);
        found
    };
    kept("idle");
    let secrets = mount.with(|point| Secrets::in_use(point, 1 << 20));
    let found = kept("in use");
    assert!(!found.of("the key that wraps").is_empty());
    for what in OPEN {
        assert!(
            !found.of(&format!("the content of {what}")).is_empty(),
            "{what}"
        );
    }
    assert_eq!(mount.status()["memory"]["unlocked"], 0);
    drop(secrets);
    kept("closed");
    mount.with(|point| {
        for round in 0..3 {
            fs::write(
                point.join(format!("large {round}")),
                content("large", 2 << 20),
            )
            .expect("written");
        }
    });
    kept("after large writes");
    mount.ended();
}

/// Each thread that takes requests keeps its last one of a length: these are the longest there are, under
/// way at the same time so that every thread gets some.
fn write_over_requests(point: &Path) {
    std::thread::scope(|scope| {
        for name in ["others", "more", "still more", "the rest"] {
            let path = point.join(name);
            scope.spawn(move || {
                for _ in 0..8 {
                    fs::write(&path, vec![b'.'; 1 << 20]).expect("written");
                }
                fs::remove_file(&path).expect("removed");
            });
        }
    });
}

/// What is closed is gone from memory, but for the request that was served last.
#[test]
fn closed_contents_and_names_are_wiped_from_the_memory_of_the_daemon() {
    for who in [Who::Root, Who::Nobody] {
        let mount = Mount::of(who);
        drop(mount.with(|point| Secrets::in_use(point, 1 << 20)));
        let known = [
            "the content of link target",
            "the content of attribute",
            "the key that wraps",
        ];
        let mut rounds = 0;
        let found = loop {
            mount.with(write_over_requests);
            let mut found = mount.search();
            found
                .hits
                .retain(|(what, ..)| !known.contains(&what.as_str()));
            rounds += 1;
            // On a busy machine a thread may have got none of those requests.
            if found.hits.is_empty() || rounds == 10 {
                break found;
            }
        };
        assert!(found.hits.is_empty(), "{who:?}: {:#?}", found.hits);
        mount.ended();
    }
}

#[test]
fn master_keys_are_in_memfd_secret_which_nobody_can_read() {
    for who in [Who::Root, Who::Nobody] {
        let mount = Mount::of(who);
        let found = mount.search();
        assert_eq!(mount.status()["memory"]["master_keys"], "memfd_secret");
        let secret = &found.unreadable[..];
        assert!(
            secret.len() == 1 && secret[0].name.starts_with("/secretmem"),
            "{secret:?}"
        );
        assert!(
            !secret[0].is_swappable() && secret[0].has("dd"),
            "{secret:?}"
        );
        assert!(found.of("the master key").is_empty(), "{:?}", found.hits);
        mount.ended();
    }
}

#[test]
fn without_memfd_secret_master_keys_are_in_locked_pages_that_no_core_file_has() {
    for who in [Who::Root, Who::Nobody] {
        let mount = Mount::prepared(who, |command| {
            crate::support::forbid::system_call(command, libc::SYS_memfd_secret);
        });
        let found = mount.search();
        assert_eq!(mount.status()["memory"]["master_keys"], "locked pages");
        let homes = found.of("the master key");
        // So the search would find it above.
        assert!(homes.len() == 1, "{homes:?}");
        assert!(!homes[0].is_swappable() && homes[0].has("dd"), "{homes:?}");
        mount.ended();
    }
    // Where nothing may be locked at all, that is told.
    let mount = Mount::prepared(Who::Nobody, |command| {
        crate::support::forbid::system_call(command, libc::SYS_memfd_secret);
        crate::support::forbid::system_call(command, libc::SYS_mlock2);
        crate::support::forbid::system_call(command, libc::SYS_mlock);
    });
    let status = mount.status();
    assert_eq!(
        status["memory"]["master_keys"], "pages that may be swapped out",
        "{status}"
    );
    assert!(status["memory"]["unlocked"].as_u64() > Some(0), "{status}");
    mount.ended();
}

/// The limit of it, as secretfs-security(7) has it.
#[test]
fn what_an_ordinary_user_cannot_lock_is_told() {
    let mount = Mount::of(Who::Nobody);
    let open: Vec<File> = mount.with(|point| {
        let open = |at| {
            let path = point.join(format!("large {at}"));
            fs::write(&path, content("large", 6 << 20)).expect("written");
            let draft = File::options().write(true).open(&path).expect("opened");
            draft.write_all_at(b"draft", 0).expect("written");
            draft
        };
        (0..3).map(open).collect()
    });
    let status = mount.status();
    let bytes = |name: &str| status["memory"][name].as_u64().expect("bytes");
    assert!(bytes("locked") <= LOCKABLE, "{status}");
    assert!(bytes("unlocked") >= (18 << 20) - LOCKABLE, "{status}");
    let found = mount.search();
    let large = found.of("the content of large");
    assert!(
        large.iter().any(|mapping| mapping.is_swappable()),
        "{large:?}"
    );
    drop(open);
    mount.ended();
}

/// Why root on the same machine is outside of what is promised.
#[test]
fn root_can_read_what_is_in_use_in_the_memory_of_the_daemon() {
    let mount = Mount::of(Who::Nobody);
    let secrets = mount.with(|point| Secrets::in_use(point, 1 << 20));
    let found = mount.search();
    for what in ["the content of small", "the content of edit"] {
        assert!(!found.of(what).is_empty(), "{what}");
    }
    drop(secrets);
    mount.ended();
}

/// The limit of it, as secretfs-security(7) has it: fuser's buffer is read into again, and not wiped.
#[test]
fn the_last_request_stays_in_locked_memory_until_the_next() {
    let mount = Mount::of(Who::Nobody);
    mount.with(|point| fs::write(point.join("f"), content("large", 128 << 10)).expect("written"));
    let found = mount.search();
    let left = found.of("the content of large");
    assert!(!left.is_empty());
    assert!(
        left.iter().all(|m| !m.is_swappable() && m.has("dd")),
        "{left:?}"
    );
    mount.ended();
}
