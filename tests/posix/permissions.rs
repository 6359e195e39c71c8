//! Who may do what: every call as a user without privileges.

use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use crate::support::tree::{ALICE, BOB, STAFF, Tree, as_user, c, errno, sys, with_umask};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("stat").mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) -> std::io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// A file of Alice's, in a directory where names are not at stake.
fn file_of_alice(dir: &Path, name: &str, mode: u32) -> std::path::PathBuf {
    let path = dir.join(name);
    fs::write(&path, "content").expect("write");
    chown(&path, Some(ALICE), Some(ALICE)).expect("chown");
    chmod(&path, mode).expect("chmod");
    path
}

#[test]
fn reading_writing_and_executing_are_each_allowed_by_their_own_bit() {
    let tree = Tree::new();
    let dir = tree.shared("d", 0o755);
    for bits in 0..8u32 {
        for (class, shift, uid, groups) in [
            ("owner", 6, ALICE, vec![]),
            ("group", 3, BOB, vec![ALICE]),
            ("other", 0, BOB, vec![STAFF]),
        ] {
            // The other classes may do what this one may not.
            let all = 0o777 & !(7 << shift) | bits << shift;
            let path = file_of_alice(&dir, &format!("{class}{bits}"), all);
            let denied = |bit: u32| if bits & bit != 0 { 0 } else { libc::EACCES };
            as_user(uid, &groups, || {
                let open = |read, write| fs::OpenOptions::new().read(read).write(write).open(&path);
                assert_eq!(errno(open(true, false)), denied(4), "{class} {bits}: read");
                assert_eq!(errno(open(false, true)), denied(2), "{class} {bits}: write");
                assert_eq!(
                    errno(open(true, true)),
                    denied(4).max(denied(2)),
                    "{class} {bits}"
                );
                let truncate = || nix::unistd::truncate(&path, 7).map_err(Into::into);
                assert_eq!(errno(truncate()), denied(2), "{class} {bits}: truncate");
                for (want, bit) in [(libc::R_OK, 4), (libc::W_OK, 2), (libc::X_OK, 1)] {
                    // SAFETY: a string that lives until the call returns.
                    let access = unsafe {
                        libc::faccessat(libc::AT_FDCWD, c(&path).as_ptr(), want, libc::AT_EACCESS)
                    };
                    assert_eq!(
                        errno(sys(access)),
                        denied(bit),
                        "{class} {bits}: access {want}"
                    );
                }
            });
        }
    }
    tree.ends_sound();
}

#[test]
fn names_are_made_and_removed_only_with_write_and_search_permission() {
    let tree = Tree::new();
    for (allowed, dir_mode) in [(false, 0o755), (false, 0o776), (true, 0o773)] {
        let dir = tree.shared(&format!("d{dir_mode:o}"), dir_mode);
        let inside = |name: &str| dir.join(name);
        fs::create_dir(inside("dir")).expect("mkdir");
        for name in ["file", "moved", "replaced", "exchanged"] {
            fs::write(inside(name), name).expect("write");
        }
        let own = tree.shared(&format!("own{dir_mode:o}"), 0o777);
        fs::write(own.join("mine"), "").expect("write");
        chmod(&own.join("mine"), 0o666).expect("chmod");
        let expected = if allowed { 0 } else { libc::EACCES };
        as_user(BOB, &[], || {
            let rename = |from: &Path, to: &Path| errno(fs::rename(from, to));
            // SAFETY: strings that live until the call returns.
            let mknod =
                |name| unsafe { libc::mknod(c(inside(name)).as_ptr(), libc::S_IFIFO | 0o600, 0) };
            assert_eq!(errno(fs::write(inside("new"), "")), expected);
            assert_eq!(errno(fs::create_dir(inside("newdir"))), expected);
            assert_eq!(errno(symlink("x", inside("newlink"))), expected);
            assert_eq!(errno(sys(mknod("newfifo"))), expected);
            assert_eq!(
                errno(fs::hard_link(own.join("mine"), inside("hard"))),
                expected
            );
            assert_eq!(rename(&inside("moved"), &own.join("out")), expected);
            assert_eq!(rename(&own.join("mine"), &inside("in")), expected);
            assert_eq!(rename(&inside("exchanged"), &inside("replaced")), expected);
            assert_eq!(errno(fs::remove_file(inside("file"))), expected);
            assert_eq!(errno(fs::remove_dir(inside("dir"))), expected);
        });
    }
    tree.ends_sound();
}

#[test]
fn every_path_needs_search_permission_all_along() {
    let tree = Tree::new();
    let dir = tree.shared("d", 0o755);
    let deep = dir.join("a");
    fs::create_dir(&deep).expect("mkdir");
    let file = deep.join("f");
    fs::write(&file, "x").expect("write");
    chmod(&file, 0o666).expect("chmod");
    chmod(&deep, 0o766).expect("chmod");
    as_user(BOB, &[], || {
        assert_eq!(fs::read_dir(&deep).expect("may be read").count(), 1);
        assert_eq!(errno(fs::metadata(&file)), libc::EACCES);
        assert_eq!(errno(fs::read(&file)), libc::EACCES);
        assert_eq!(errno(fs::read_link(&file)), libc::EACCES);
        assert_eq!(errno(chown(&file, None, Some(BOB))), libc::EACCES);
        assert_eq!(errno(chmod(&file, 0o600)), libc::EACCES);
        assert_eq!(
            errno(nix::unistd::truncate(&file, 0).map_err(Into::into)),
            libc::EACCES
        );
    });
    chmod(&deep, 0o711).expect("chmod");
    as_user(BOB, &[], || {
        assert_eq!(errno(fs::read_dir(&deep)), libc::EACCES);
        assert_eq!(fs::read(&file).expect("may be read"), b"x");
    });
    tree.ends_sound();
}

#[test]
fn only_the_owner_changes_modes_and_times_and_only_root_gives_files_away() {
    let tree = Tree::new();
    let dir = tree.shared("d", 0o755);
    let path = file_of_alice(&dir, "f", 0o666);
    let now = [libc::timespec {
        tv_sec: 0,
        tv_nsec: libc::UTIME_NOW,
    }; 2];
    let then = [libc::timespec {
        tv_sec: 5,
        tv_nsec: 0,
    }; 2];
    let touch = |times: &[libc::timespec; 2]| {
        // SAFETY: a string and two times that live until the call returns.
        let n = unsafe { libc::utimensat(libc::AT_FDCWD, c(&path).as_ptr(), times.as_ptr(), 0) };
        errno(sys(n))
    };
    as_user(BOB, &[STAFF], || {
        assert_eq!(errno(chmod(&path, 0o600)), libc::EPERM);
        assert_eq!(touch(&then), libc::EPERM);
        assert_eq!(touch(&now), 0, "whoever may write may set the time to now");
        assert_eq!(errno(chown(&path, Some(BOB), None)), libc::EPERM);
        assert_eq!(errno(chown(&path, None, Some(STAFF))), libc::EPERM);
    });
    chmod(&path, 0o644).expect("chmod");
    as_user(BOB, &[], || assert_eq!(touch(&now), libc::EACCES));
    as_user(ALICE, &[STAFF], || {
        assert_eq!(errno(chmod(&path, 0o640)), 0);
        assert_eq!(touch(&then), 0);
        assert_eq!(errno(chown(&path, Some(BOB), None)), libc::EPERM);
        assert_eq!(
            errno(chown(&path, None, Some(BOB))),
            libc::EPERM,
            "not a group of hers"
        );
        assert_eq!(errno(chown(&path, Some(ALICE), Some(STAFF))), 0);
    });
    let meta = fs::metadata(&path).expect("stat");
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777),
        (ALICE, STAFF, 0o640)
    );
    tree.ends_sound();
}

#[test]
fn in_a_sticky_directory_names_belong_to_their_owners() {
    let tree = Tree::new();
    let dir = tree.shared("tmp", 0o1777);
    let other = tree.shared("other", 0o777);
    as_user(ALICE, &[], || {
        fs::write(dir.join("f"), "").expect("write");
        fs::create_dir(dir.join("d")).expect("mkdir");
        symlink("f", dir.join("l")).expect("symlink");
    });
    as_user(BOB, &[], || {
        fs::write(dir.join("b"), "").expect("write");
        assert_eq!(errno(fs::remove_file(dir.join("f"))), libc::EPERM);
        assert_eq!(errno(fs::remove_file(dir.join("l"))), libc::EPERM);
        assert_eq!(errno(fs::remove_dir(dir.join("d"))), libc::EPERM);
        assert_eq!(
            errno(fs::rename(dir.join("f"), other.join("f"))),
            libc::EPERM
        );
        assert_eq!(errno(fs::rename(dir.join("b"), dir.join("f"))), libc::EPERM);
        assert_eq!(errno(fs::rename(dir.join("b"), dir.join("c"))), 0);
        assert_eq!(errno(fs::remove_file(dir.join("c"))), 0);
    });
    as_user(ALICE, &[], || {
        assert_eq!(errno(fs::rename(dir.join("f"), other.join("f"))), 0);
        assert_eq!(errno(fs::remove_dir(dir.join("d"))), 0);
    });
    // The owner of the directory may remove what others put there.
    chown(&dir, Some(BOB), None).expect("chown");
    as_user(BOB, &[], || {
        assert_eq!(errno(fs::remove_file(dir.join("l"))), 0)
    });
    tree.ends_sound();
}

#[test]
fn what_is_made_has_the_mode_asked_for_less_the_umask_and_its_makers_ids() {
    let tree = Tree::new();
    let dir = tree.shared("d", 0o777);
    for mask in [0, 0o022, 0o077, 0o777] {
        for wanted in [0, 0o111, 0o640, 0o751, 0o777, 0o1777, 0o4711, 0o6555] {
            for uid in [0, ALICE] {
                let at = |what: &str| dir.join(format!("{what}{mask:o}-{wanted:o}-{uid}"));
                let make = || {
                    with_umask(mask, || {
                        let file = fs::OpenOptions::new()
                            .write(true)
                            .create_new(true)
                            .mode(wanted)
                            .open(at("f"));
                        file.expect("a file");
                        // SAFETY: strings that live until the call returns.
                        unsafe {
                            assert_eq!(libc::mkdir(c(at("d")).as_ptr(), wanted), 0);
                            assert_eq!(libc::mkfifo(c(at("p")).as_ptr(), wanted), 0);
                        }
                        symlink("x", at("l")).expect("symlink");
                    });
                };
                match uid {
                    0 => make(),
                    _ => as_user(uid, &[], make),
                }
                for what in ["f", "d", "p", "l"] {
                    let meta = fs::symlink_metadata(at(what)).expect("stat");
                    let expected = match what {
                        "l" => 0o777,
                        // As on Linux: mkdir(2) honours the sticky bit and no other above these.
                        "d" => wanted & 0o1777 & !mask,
                        _ => wanted & !mask,
                    };
                    assert_eq!(meta.mode() & 0o7777, expected, "{what} {wanted:o} {mask:o}");
                    assert_eq!((meta.uid(), meta.gid()), (uid, uid), "{what}");
                }
            }
        }
    }
    tree.ends_sound();
}

#[test]
fn a_file_made_without_permissions_can_be_written_by_its_maker() {
    let tree = Tree::new();
    let dir = tree.shared("d", 0o777);
    as_user(ALICE, &[], || {
        let path = dir.join("f");
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o000)
            .open(&path);
        std::io::Write::write_all(&mut file.expect("opened"), b"secret").expect("write");
        assert_eq!(errno(fs::read(&path)), libc::EACCES);
        chmod(&path, 0o400).expect("chmod");
        assert_eq!(fs::read(&path).expect("read"), b"secret");
    });
    tree.ends_sound();
}

#[test]
fn symbolic_links_are_owned_but_their_modes_do_not_matter() {
    let tree = Tree::new();
    let dir = tree.shared("d", 0o777);
    let link = dir.join("l");
    symlink("/etc/hostname", &link).expect("symlink");
    lchown(&link, Some(ALICE), Some(BOB)).expect("lchown");
    let meta = fs::symlink_metadata(&link).expect("stat");
    assert_eq!((meta.uid(), meta.gid(), mode(&link)), (ALICE, BOB, 0o777));
    as_user(BOB, &[], || {
        assert_eq!(
            fs::read_link(&link).expect("readlink"),
            Path::new("/etc/hostname")
        );
    });
    tree.ends_sound();
}

#[test]
fn without_allow_other_nobody_else_gets_in() {
    let tree = Tree::with_options("exec");
    fs::write(tree.at("f"), "x").expect("write");
    chmod(&tree.at("f"), 0o666).expect("chmod");
    chmod(&tree.root(), 0o777).expect("chmod");
    as_user(ALICE, &[], || {
        assert_eq!(errno(fs::read(tree.at("f"))), libc::EACCES);
        assert_eq!(errno(fs::metadata(tree.root())), libc::EACCES);
    });
    tree.ends_sound();
}

#[test]
fn extended_attributes_follow_the_modes_of_their_files() {
    let tree = Tree::new();
    let dir = tree.shared("d", 0o755);
    let path = file_of_alice(&dir, "f", 0o644);
    let set = |name: &std::ffi::CStr| {
        // SAFETY: strings and bytes that live until the call returns.
        let n =
            unsafe { libc::setxattr(c(&path).as_ptr(), name.as_ptr(), b"v".as_ptr().cast(), 1, 0) };
        errno(sys(n))
    };
    let get = || {
        // SAFETY: nothing is written where the size is 0.
        let n = unsafe {
            libc::getxattr(
                c(&path).as_ptr(),
                c"user.a".as_ptr(),
                std::ptr::null_mut(),
                0,
            )
        };
        sys(n as i64)
    };
    as_user(ALICE, &[], || assert_eq!(set(c"user.a"), 0));
    as_user(BOB, &[], || {
        assert_eq!(set(c"user.a"), libc::EACCES);
        assert_eq!(get().expect("may be read"), 1);
    });
    chmod(&path, 0o600).expect("chmod");
    as_user(BOB, &[], || assert_eq!(errno(get()), libc::EACCES));
    assert_eq!(set(c"security.x"), libc::EOPNOTSUPP);
    assert_eq!(set(c"user.secretfs.version"), libc::EPERM);
    tree.ends_sound();
}
