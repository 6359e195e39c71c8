//! What a mount for reading refuses.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{names, write};
use crate::support::process::Place;
use crate::support::watching::Bind;
use nix::mount::MsFlags;

#[test]
fn a_mount_for_reading_refuses_every_call_that_writes() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let point = place.point();
    fs::create_dir(point.join("d")).expect("made");
    write(&point.join("f"), b"text");
    std::os::unix::fs::symlink("f", point.join("l")).expect("linked");
    place
        .run(["umount".as_ref(), point.as_os_str()])
        .succeeded();
    place.mount(&["-o", "ro"]).succeeded();
    refuses_every_call_that_writes(&point, true);
    // Nor does it take what the flags of a mount say.
    let bind = Bind::of(&point, place.path().join("b"), false);
    refuses_every_call_that_writes(&bind.0, false);
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    let none = None::<&str>;
    nix::mount::mount(none, &point, none, flags, none).expect("remounted");
    refuses_every_call_that_writes(&point, false);
}

fn refuses_every_call_that_writes(point: &Path, mount_refuses: bool) {
    let erofs = |what: &str, result: std::io::Result<()>| {
        let error = result.expect_err(what);
        assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{what}: {error}");
    };
    let (f, d) = (point.join("f"), point.join("d"));
    erofs("write", OpenOptions::new().write(true).open(&f).map(drop));
    erofs("append", OpenOptions::new().append(true).open(&f).map(drop));
    erofs(
        "read+write",
        OpenOptions::new().read(true).write(true).open(&f).map(drop),
    );
    erofs(
        "truncate",
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&f)
            .map(drop),
    );
    erofs("create", File::create(point.join("new")).map(drop));
    erofs("create in d", File::create(d.join("new")).map(drop));
    erofs("mkdir", fs::create_dir(point.join("new")));
    erofs("rmdir", fs::remove_dir(&d));
    erofs("unlink", fs::remove_file(&f));
    erofs("rename", fs::rename(&f, point.join("g")));
    erofs("rename over", fs::rename(&f, point.join("l")));
    erofs("link", fs::hard_link(&f, point.join("g")));
    erofs("symlink", std::os::unix::fs::symlink("f", point.join("m")));
    erofs(
        "chmod",
        fs::set_permissions(&f, fs::Permissions::from_mode(0o600)),
    );
    erofs("chown", std::os::unix::fs::chown(&f, Some(1), Some(1)));
    erofs(
        "lchown",
        std::os::unix::fs::lchown(point.join("l"), Some(1), None),
    );
    let c = |path: &Path| {
        std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))
            .expect("no NUL")
    };
    let told = |code: libc::c_int| match code {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    let (cf, new, name) = (c(&f), c(&point.join("new")), c"user.a");
    // SAFETY: all pointers are to C strings and values that live through the calls.
    unsafe {
        erofs("truncate(2)", told(libc::truncate(cf.as_ptr(), 1)));
        erofs(
            "mknod",
            told(libc::mknod(new.as_ptr(), libc::S_IFIFO | 0o600, 0)),
        );
        erofs(
            "setxattr",
            told(libc::setxattr(
                cf.as_ptr(),
                name.as_ptr(),
                b"2".as_ptr().cast(),
                1,
                0,
            )),
        );
        erofs(
            "removexattr",
            told(libc::removexattr(cf.as_ptr(), name.as_ptr())),
        );
        erofs(
            "utimensat",
            told(libc::utimensat(
                libc::AT_FDCWD,
                cf.as_ptr(),
                std::ptr::null(),
                0,
            )),
        );
        // What the flags of a mount allow the kernel answers by itself.
        if mount_refuses {
            erofs("access", told(libc::access(cf.as_ptr(), libc::W_OK)));
        }
    }
    assert_eq!(fs::read(&f).expect("read"), b"text");
    assert_eq!(names(point), ["d", "f", "l"]);
}
