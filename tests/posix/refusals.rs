//! What cannot be done is refused, with the error that says so.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::support::tree::{Tree, c, errno, needs, sys};

#[test]
fn a_read_only_mount_refuses_every_change() {
    let tree = Tree::new();
    let dir = tree.shared("d", 0o777);
    fs::write(dir.join("f"), "content").expect("write");
    symlink("f", dir.join("l")).expect("symlink");
    tree.remount_with("ro,allow_other");
    let file = dir.join("f");
    let now = [libc::timespec {
        tv_sec: 0,
        tv_nsec: libc::UTIME_NOW,
    }; 2];
    // SAFETY: strings, times and bytes that live until the call returns.
    let (fifo, times, xattr) = unsafe {
        (
            errno(sys(libc::mkfifo(c(dir.join("p")).as_ptr(), 0o600))),
            errno(sys(libc::utimensat(
                libc::AT_FDCWD,
                c(&file).as_ptr(),
                now.as_ptr(),
                0,
            ))),
            errno(sys(libc::setxattr(
                c(&file).as_ptr(),
                c"user.a".as_ptr(),
                b"v".as_ptr().cast(),
                1,
                0,
            ))),
        )
    };
    let refused = [
        ("mkfifo", fifo),
        ("utimensat", times),
        ("setxattr", xattr),
        ("create", errno(fs::write(dir.join("new"), ""))),
        (
            "write",
            errno(fs::OpenOptions::new().append(true).open(&file)),
        ),
        ("open and truncate", errno(fs::File::create(&file))),
        (
            "truncate",
            errno(nix::unistd::truncate(&file, 0).map_err(Into::into)),
        ),
        ("mkdir", errno(fs::create_dir(dir.join("new")))),
        ("symlink", errno(symlink("x", dir.join("new")))),
        ("link", errno(fs::hard_link(&file, dir.join("new")))),
        ("rename", errno(fs::rename(&file, dir.join("new")))),
        ("unlink", errno(fs::remove_file(&file))),
        ("rmdir", errno(fs::remove_dir(&dir))),
        (
            "chmod",
            errno(fs::set_permissions(
                &file,
                fs::Permissions::from_mode(0o600),
            )),
        ),
        (
            "chown",
            errno(std::os::unix::fs::chown(&file, Some(1), None)),
        ),
    ];
    for (call, number) in refused {
        assert_eq!(number, libc::EROFS, "{call}");
    }
    assert_eq!(fs::read_to_string(dir.join("l")).expect("read"), "content");
    assert_eq!(fs::read_dir(&dir).expect("readdir").count(), 2);
    tree.ends_sound();
}

#[test]
fn what_there_is_not_is_not_pretended() {
    needs(&["setfacl"]);
    let tree = Tree::new();
    fs::write(tree.at("f"), "content").expect("write");
    // SAFETY: a string that lives until the call returns.
    let unnamed = unsafe {
        libc::open(
            c(tree.root()).as_ptr(),
            libc::O_TMPFILE | libc::O_RDWR,
            0o600,
        )
    };
    assert_eq!(errno(sys(unnamed)), libc::EOPNOTSUPP);
    tree.bash("! setfacl -m u:4001:r f 2>$BESIDE/said; grep -q 'not supported' $BESIDE/said");
    tree.bash("test \"$(stat -c %a f)\" = 644; cp --preserve=all f g; test \"$(cat g)\" = content");
    tree.ends_sound();
}

/// Declared in secretfs(7).
#[test]
fn whiteouts_flags_of_files_and_birth_times_are_not_there() {
    let tree = Tree::new();
    let (from, to) = (c(tree.at("f")), c(tree.at("g")));
    fs::write(tree.at("f"), "content").expect("written");
    let file = fs::File::open(tree.at("f")).expect("opened");
    let mut flags: libc::c_long = 0;
    // SAFETY: strings, a number and a structure of numbers that live through the calls.
    let (renamed, asked, told) = unsafe {
        let mut found: libc::statx = std::mem::zeroed();
        let wanted = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
        let told = sys(libc::statx(
            libc::AT_FDCWD,
            from.as_ptr(),
            0,
            wanted,
            &mut found,
        ));
        (
            sys(libc::syscall(
                libc::SYS_renameat2,
                libc::AT_FDCWD,
                from.as_ptr(),
                libc::AT_FDCWD,
                to.as_ptr(),
                libc::RENAME_WHITEOUT,
            )),
            sys(libc::ioctl(
                file.as_raw_fd(),
                libc::FS_IOC_GETFLAGS,
                &mut flags,
            )),
            told.map(|_| found.stx_mask),
        )
    };
    assert_eq!(errno(renamed), libc::EINVAL);
    assert_eq!(errno(asked), libc::ENOTTY);
    let told = told.expect("statx");
    assert_eq!(told & libc::STATX_BASIC_STATS, libc::STATX_BASIC_STATS);
    assert_eq!(told & libc::STATX_BTIME, 0);
    drop(file);
    tree.ends_sound();
}
