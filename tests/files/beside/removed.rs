//! What the writer replaces and removes, for those who come to it or have it open.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Done, Five, SEEN, content, write};
use crate::support::process::{Place, apart, root_of, wait_for};

#[test]
fn a_file_open_for_reading_stays_readable_after_the_writer_replaced_or_removed_it() {
    let five = Five::start();
    let written = five.written();
    let (small, large) = (content(1), vec![b'x'; 700_000]);
    for (name, text) in [("small", &small), ("large", &large)] {
        write(&written.join(name), text);
        write(&written.join(format!("{name}2")), text);
    }
    for read in five.reads() {
        wait_for("the files", SEEN, || read.join("large2").exists());
    }
    let mut open: Vec<(File, &Vec<u8>)> = five
        .reads()
        .iter()
        .flat_map(|read| {
            [
                ("small", &small),
                ("small2", &small),
                ("large", &large),
                ("large2", &large),
            ]
            .map(|(name, text)| (File::open(read.join(name)).expect("opened"), text))
        })
        .collect();
    // Every version read from before, so that which one is open is settled.
    for (file, _) in &mut open {
        let mut first = [0; 8];
        file.read_exact(&mut first).expect("read");
    }
    for name in ["small", "large"] {
        fs::remove_file(written.join(name)).expect("removed");
        let path = written.join(format!("{name}2"));
        write(&written.join("new"), b"replaced");
        fs::rename(written.join("new"), &path).expect("renamed");
    }
    for read in five.reads() {
        wait_for("the end of the names", SEEN, || {
            !read.join("small").exists()
        });
        wait_for("the new content", SEEN, || {
            fs::read(read.join("large2")).is_ok_and(|text| text == b"replaced")
        });
    }
    for (file, text) in &mut open {
        file.seek(SeekFrom::Start(8)).expect("sought");
        let mut rest = Vec::new();
        file.read_to_end(&mut rest).expect("read on");
        assert!(
            rest == text[8..],
            "{} of {} bytes",
            rest.len() + 8,
            text.len()
        );
    }
    drop(open);
    five.check().succeeded();
}

/// Everything that comes to a file by its name, and then asks for it by its number.
fn come_to(path: &Path, link: &Path) -> Vec<(&'static str, std::io::Result<()>)> {
    let c = |path: &Path| {
        std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))
            .expect("no NUL")
    };
    let (file, name) = (c(path), c"user.secretfs.version");
    // SAFETY: the pointers are to C strings that live through the call; no value is asked for.
    let got = unsafe { libc::getxattr(file.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) };
    let got = match got {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    };
    vec![
        ("read", fs::read(path).map(drop)),
        ("stat", fs::metadata(path).map(drop)),
        (
            "fstat",
            File::open(path).and_then(|file| file.metadata()).map(drop),
        ),
        ("getxattr", got),
        ("readlink", fs::read_link(link).map(drop)),
        ("read through a link", fs::read(link).map(drop)),
    ]
}

#[test]
fn a_name_is_never_stale_beside_a_writer_that_replaces_and_removes_what_has_it() {
    const ROUNDS: u32 = 150;
    let place = Place::with_vault();
    let writer = apart(&place, "w", "rw");
    let written = root_of(&place, &writer, "w");
    write(&written.join("always"), b"0");
    std::os::unix::fs::symlink("always", written.join("link")).expect("linked");
    let readers = ["ttl=1s", "ttl=0s"].map(|ttl| apart(&place, ttl, &format!("ro,{ttl}")));
    let reads = ["ttl=1s", "ttl=0s"].map(|ttl| {
        let at = usize::from(ttl == "ttl=0s");
        root_of(&place, &readers[at], ttl)
    });
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _done = Done(&done);
        for read in &reads {
            let done = &done;
            scope.spawn(move || {
                let link = read.join("link");
                while !done.load(Ordering::Relaxed) {
                    for (what, told) in come_to(&read.join("always"), &link) {
                        told.unwrap_or_else(|error| panic!("{what}: {error}"));
                    }
                    let fleeting = [("fleeting", "fleeting"), ("d/fleeting", "d/fleeting")];
                    let fleeting = fleeting.map(|(a, b)| come_to(&read.join(a), &read.join(b)));
                    for (what, told) in fleeting.into_iter().flatten() {
                        let errno = told.map_err(|error| error.raw_os_error().unwrap_or(0));
                        // What is no link cannot be read as one.
                        let fine = match errno {
                            Ok(()) | Err(libc::ENOENT) => true,
                            Err(errno) => errno == libc::EINVAL && what == "readlink",
                        };
                        assert!(fine, "{what} of what comes and goes: {errno:?}");
                    }
                }
            });
        }
        for round in 0..ROUNDS {
            write(&written.join("new"), &content(u64::from(round)));
            fs::rename(written.join("new"), written.join("always")).expect("renamed");
            std::os::unix::fs::symlink("always", written.join("newer")).expect("linked");
            fs::rename(written.join("newer"), written.join("link")).expect("renamed");
            fs::create_dir(written.join("d")).expect("made");
            for name in ["fleeting", "d/fleeting"] {
                write(&written.join(name), b"here");
                fs::remove_file(written.join(name)).expect("removed");
            }
            fs::remove_dir(written.join("d")).expect("removed");
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn what_the_writer_has_removed_keeps_its_attributes_for_who_has_it_open() {
    let five = Five::start();
    let (written, read) = (five.written(), five.read(0));
    write(&written.join("f"), b"content");
    fs::create_dir(written.join("d")).expect("made");
    wait_for("the files", SEEN, || read.join("d").exists());
    let file = File::open(read.join("f")).expect("opened");
    let directory = File::open(read.join("d")).expect("opened");
    fs::remove_file(written.join("f")).expect("removed");
    fs::remove_dir(written.join("d")).expect("removed");
    // What the kernel remembers is out of date after a second.
    for open in [&file, &directory] {
        let links = || std::os::unix::fs::MetadataExt::nlink(&open.metadata().expect("fstat"));
        wait_for("the removal to be seen", SEEN, || links() == 0);
    }
    assert_eq!(file.metadata().expect("fstat").len(), 7);
    assert_eq!(std::io::read_to_string(file).expect("read"), "content");
}

/// Without a kernel, so that what happens between a look-up and what follows is certain.
#[test]
fn what_is_looked_up_anew_is_opened_whatever_the_writer_has_done_since() {
    use crate::support::layer::{Layer, Served, caller_as};
    use secretfs::fs::Errno;
    use secretfs::vault::{Kind, ROOT, RenameMode};
    const STALE: Errno = Errno(libc::ESTALE);
    const ABSENT: Errno = Errno(libc::ENOENT);
    let layer = Layer::new();
    let writer = layer.open();
    let put = |name: &[u8], text: &[u8]| {
        let (ino, fh) = writer.create(ROOT, name, 0o600);
        writer.write(fh, 0, text).expect("written");
        writer.flush(fh).expect("closed");
        writer.release(fh);
        ino
    };
    let replace = |text: &[u8]| {
        let ino = put(b"new", text);
        let renamed = writer.rename((ROOT, b"new"), (ROOT, b"f"), RenameMode::Replace);
        renamed.expect("renamed");
        ino
    };
    let open = |fs: &Served, thread: u32, ino: u64| {
        let opened = fs.open_as(caller_as(thread, 0), ino, libc::O_RDONLY);
        opened.map_err(|error| fs.0.gone_for(thread, ino, error))
    };
    let find = |fs: &Served, thread: u32, name: &[u8]| fs.lookup_for(thread, ROOT, name);
    replace(b"first");
    let reader = layer.open_beside();
    // Threads that can be seen, and one that cannot.
    for thread in [7, 8, 0] {
        let first = find(&reader, thread, b"f").expect("found").ino;
        replace(b"second");
        assert_eq!(open(&reader, thread, first), Err(STALE), "looked up before");
        let second = find(&reader, thread, b"f").expect("found").ino;
        replace(b"third");
        // Others look it up anew themselves.
        assert_eq!(open(&reader, 9, second), Err(STALE));
        let attr = reader.getattr(second, None).expect("held");
        assert_eq!((attr.links, attr.size), (0, 6));
        let fh = open(&reader, thread, second).expect("what was looked up");
        replace(b"fourth");
        assert_eq!(reader.read(fh, 0, 99).expect("read"), b"second");
        assert_eq!(reader.getattr(second, Some(fh)).expect("open").size, 6);
        // Whoever is content is looked after no longer.
        let third = find(&reader, thread, b"f").expect("found").ino;
        replace(b"first");
        if thread != 0 {
            assert_eq!(open(&reader, thread, third), Err(STALE));
        }
        reader.release(fh);
    }

    // What has gone, and has no name any more.
    let gone = find(&reader, 10, b"f").expect("found").ino;
    writer.unlink(ROOT, b"f").expect("removed");
    assert_eq!(open(&reader, 10, gone), Err(STALE));
    assert_eq!(find(&reader, 10, b"f").err(), Some(ABSENT));

    // A directory that a thread works in: it comes to it without a look-up.
    let made = writer.make(ROOT, b"d", Kind::Directory).expect("made").ino;
    assert_eq!(find(&reader, 7, b"d").expect("found").ino, made);
    writer.rmdir(ROOT, b"d").expect("removed");
    let inside = |thread| {
        let found = reader.lookup_for(thread, made, b"f");
        found.map_err(|error| reader.0.gone_for(thread, made, error))
    };
    // This thread was still looking, and has just found it.
    assert_eq!(inside(7).err(), Some(ABSENT));
    assert_eq!(inside(11).err(), Some(STALE));
    assert_eq!(inside(11).err(), Some(ABSENT));
    reader.finish();
    writer.finish();
}

#[test]
fn who_has_a_file_open_is_told_of_it_although_it_was_removed_and_is_held_for_another() {
    use crate::support::layer::{Layer, caller_as};
    use secretfs::fs::Errno;
    use secretfs::vault::ROOT;
    const STALE: Errno = Errno(libc::ESTALE);
    let layer = Layer::new();
    let writer = layer.open();
    let (ino, fh) = writer.create(ROOT, b"f", 0o600);
    writer.write(fh, 0, b"first").expect("written");
    writer.flush(fh).expect("closed");
    writer.release(fh);
    let reader = layer.open_beside();
    let asks = caller_as(20, 0);
    let opened = reader.open_as(asks, ino, libc::O_RDONLY).expect("open");
    let fh = writer
        .open(ino, libc::O_WRONLY | libc::O_TRUNC)
        .expect("open");
    writer.write(fh, 0, b"second one").expect("written");
    writer.flush(fh).expect("closed");
    writer.release(fh);
    // Another thread is about to open it, and it is held for that one.
    assert_eq!(reader.0.gone_for(7, ino + 1, STALE), STALE);
    let found = reader.lookup_for(7, ROOT, b"f").expect("found");
    assert_eq!((found.ino, found.size), (ino, 10));
    writer.unlink(ROOT, b"f").expect("removed");
    for fh in [None, Some(opened)] {
        let attr = reader.getattr_as(asks, ino, fh).expect("told");
        assert_eq!((attr.links, attr.size), (0, 5), "{fh:?}");
    }
    assert_eq!(reader.read(opened, 0, 99).expect("read"), b"first");
    reader.finish();
    writer.finish();
}
