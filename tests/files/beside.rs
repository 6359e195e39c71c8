//! One vault mounted for writing and several times for reading, each in a process and a mount
//! namespace of its own.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::process::{Place, Ran, Server, apart, kill, root_of, wait_for};
use crate::support::watching::Bind;
use nix::mount::MsFlags;

const READERS: usize = 4;
/// The default ttl is a second; the rest is for a machine that has other things to do.
const SEEN: Duration = Duration::from_secs(15);

/// A writer and four readers.
struct Five {
    place: Place,
    writer: Option<Server>,
    readers: Vec<Server>,
}

impl Five {
    fn start() -> Self {
        let place = Place::with_vault();
        let writer = apart(&place, "w", "rw");
        let readers = (0..READERS)
            .map(|at| apart(&place, &format!("r{at}"), "ro"))
            .collect();
        Self {
            place,
            writer: Some(writer),
            readers,
        }
    }

    fn written(&self) -> PathBuf {
        root_of(&self.place, self.writer.as_ref().expect("a writer"), "w")
    }

    fn read(&self, at: usize) -> PathBuf {
        root_of(&self.place, &self.readers[at], &format!("r{at}"))
    }

    fn reads(&self) -> Vec<PathBuf> {
        (0..self.readers.len()).map(|at| self.read(at)).collect()
    }

    fn check(&self) -> Ran {
        self.place
            .run(["check".as_ref(), self.place.vault().as_os_str()])
    }
}

fn write(path: &Path, content: &[u8]) {
    fs::write(path, content).expect("written");
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .expect("listed")
        .map(|e| {
            e.expect("an entry")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_published_is_seen_by_all_readers_soon() {
    let five = Five::start();
    let written = five.written();
    fs::create_dir(written.join("d")).expect("made");
    write(&written.join("d/a"), b"first");
    for read in five.reads() {
        wait_for("the new file", SEEN, || {
            fs::read(read.join("d/a")).is_ok_and(|text| text == b"first")
        });
        // Listed, so that a later listing could come from a cache.
        assert_eq!(names(&read.join("d")), ["a"]);
        assert!(!read.join("d/b").exists());
    }
    // Replaced in place, by rename, renamed away, with other attributes, and new.
    write(&written.join("d/a"), b"second, longer");
    write(&written.join("d/b"), b"b");
    fs::create_dir(written.join("d/sub")).expect("made");
    std::os::unix::fs::symlink("a", written.join("d/link")).expect("linked");
    for read in five.reads() {
        let all = |read: &Path| {
            fs::read(read.join("d/a")).is_ok_and(|text| text == b"second, longer")
                && fs::metadata(read.join("d/a")).is_ok_and(|meta| meta.len() == 14)
                && fs::read(read.join("d/b")).is_ok_and(|text| text == b"b")
                && fs::read_link(read.join("d/link")).is_ok_and(|to| to == Path::new("a"))
                && names(&read.join("d")) == ["a", "b", "link", "sub"]
        };
        wait_for("the changes", SEEN, || all(&read));
    }
    write(&written.join("new"), b"third");
    fs::rename(written.join("new"), written.join("d/a")).expect("renamed");
    fs::rename(written.join("d/b"), written.join("d/c")).expect("renamed");
    fs::remove_file(written.join("d/link")).expect("removed");
    fs::remove_dir(written.join("d/sub")).expect("removed");
    fs::set_permissions(written.join("d/c"), fs::Permissions::from_mode(0o600)).expect("set");
    for read in five.reads() {
        let all = |read: &Path| {
            fs::read(read.join("d/a")).is_ok_and(|text| text == b"third")
                && fs::metadata(read.join("d/c")).is_ok_and(|meta| meta.mode_bits() == 0o600)
                && !read.join("d/b").exists()
                && !read.join("d/sub").exists()
                && names(&read.join("d")) == ["a", "c"]
        };
        wait_for("the changes", SEEN, || all(&read));
    }
    five.check().succeeded();
}

trait ModeBits {
    fn mode_bits(&self) -> u32;
}

impl ModeBits for fs::Metadata {
    fn mode_bits(&self) -> u32 {
        self.permissions().mode() & 0o7777
    }
}

/// Tells the other threads that it is over, also when this one panics.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Content `number`: its length and every byte of it follow from the number in front.
fn content(number: u64) -> Vec<u8> {
    let length = 8 + (number * 7919 % 200_000) as usize;
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(length, number as u8);
    bytes
}

#[track_caller]
fn must_be_whole(bytes: &[u8], what: &str) -> u64 {
    let number = u64::from_le_bytes(bytes[..8].try_into().expect("not even a number"));
    assert!(
        bytes == content(number),
        "{what}: {} bytes that are no content, from {number}",
        bytes.len()
    );
    number
}

#[test]
fn nobody_sees_a_mixture_while_files_are_replaced_renamed_and_removed() {
    let five = Five::start();
    let written = five.written();
    write(&written.join("replaced"), &content(0));
    write(&written.join("renamed"), &content(0));
    for read in five.reads() {
        wait_for("the files", SEEN, || read.join("renamed").exists());
    }
    let (done, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _done = Done(&done);
        for read in five.reads() {
            let (done, seen) = (&done, &seen);
            scope.spawn(move || {
                let mut last = 0;
                while !done.load(Ordering::Relaxed) {
                    last = last.max(must_be_whole(
                        &fs::read(read.join("replaced")).expect("always there"),
                        "replaced",
                    ));
                    must_be_whole(
                        &fs::read(read.join("renamed")).expect("always there"),
                        "renamed",
                    );
                    // In small pieces: what was opened is what is read on.
                    let mut file = File::open(read.join("replaced")).expect("always there");
                    let mut bytes = Vec::new();
                    let mut piece = [0; 4099];
                    while let Ok(n @ 1..) = file.read(&mut piece) {
                        bytes.extend(&piece[..n]);
                    }
                    must_be_whole(&bytes, "replaced, in pieces");
                    // Comes and goes, but is never half there.
                    if let Ok(bytes) = fs::read(read.join("fleeting")) {
                        must_be_whole(&bytes, "fleeting");
                    }
                }
                seen.fetch_max(last, Ordering::Relaxed);
            });
        }
        let end = Instant::now() + Duration::from_secs(10);
        let mut number = 0;
        // On a busy disk a round takes long.
        while Instant::now() < end || number <= 3 {
            number += 1;
            write(&written.join("replaced"), &content(number));
            write(&written.join("new"), &content(number));
            fs::rename(written.join("new"), written.join("renamed")).expect("renamed");
            write(&written.join("draft"), &content(number));
            fs::rename(written.join("draft"), written.join("fleeting")).expect("renamed");
            if number % 3 == 0 {
                fs::remove_file(written.join("fleeting")).expect("removed");
            }
        }
        std::thread::sleep(Duration::from_secs(2));
        done.store(true, Ordering::Relaxed);
    });
    assert!(seen.load(Ordering::Relaxed) > 0, "nobody saw anything new");
    five.check().succeeded();
}

#[test]
fn killing_any_of_them_disturbs_no_other() {
    let mut five = Five::start();
    let written = five.written();
    write(&written.join("a"), b"one");
    for read in five.reads() {
        wait_for("the file", SEEN, || read.join("a").exists());
    }
    // A reader, with a file open, under way.
    let held = File::open(five.read(3).join("a")).expect("opened");
    let gone = five.readers.pop().expect("a reader");
    kill(gone.pid(), libc::SIGKILL);
    gone.ended(SEEN);
    drop(held);
    write(&written.join("a"), b"two");
    for read in five.reads() {
        wait_for("the change", SEEN, || {
            fs::read(read.join("a")).is_ok_and(|text| text == b"two")
        });
    }
    five.check().succeeded();

    // The writer.
    write(&written.join("b"), b"acknowledged");
    let gone = five.writer.take().expect("a writer");
    kill(gone.pid(), libc::SIGKILL);
    gone.ended(SEEN);
    for read in five.reads() {
        assert_eq!(fs::read(read.join("a")).expect("read"), b"two");
        wait_for("what was acknowledged", SEEN, || {
            fs::read(read.join("b")).is_ok_and(|text| text == b"acknowledged")
        });
    }
    five.check().succeeded();

    // Its lock went with it.
    five.writer = Some(apart(&five.place, "w", "rw"));
    let written = five.written();
    assert_eq!(fs::read(written.join("b")).expect("read"), b"acknowledged");
    write(&written.join("a"), b"three");
    for read in five.reads() {
        wait_for("the change", SEEN, || {
            fs::read(read.join("a")).is_ok_and(|text| text == b"three")
        });
    }
    five.check().succeeded();
    // And an orderly end of the writer does not end the readers.
    let writer = five.writer.take().expect("a writer");
    writer.signal(libc::SIGTERM);
    assert_eq!(writer.ended(SEEN).0, Some(0));
    for read in five.reads() {
        assert_eq!(fs::read(read.join("a")).expect("read"), b"three");
    }
}

#[test]
fn a_second_mount_for_writing_is_code_7_and_told_who_has_it_and_what_to_do() {
    let five = Five::start();
    let ran = five.place.mount(&[]).failed(7, "-o ro");
    let said = ran.stderr();
    let pid = five.writer.as_ref().expect("a writer").pid();
    let point = five.place.path().join("w").display().to_string();
    for part in [
        &format!("process {pid}"),
        &point,
        "bind mount",
        "open for writing",
    ] {
        assert!(said.contains(part), "{said:?} does not say {part:?}");
    }
    five.place.mount(&["--accept-rollback"]).failed(7, "-o ro");
    // Looking takes no lock.
    let ran = five
        .place
        .run([
            "status".as_ref(),
            five.place.vault().as_os_str(),
            "--json".as_ref(),
        ])
        .succeeded();
    let status: serde_json::Value = serde_json::from_str(&ran.stdout()).expect("JSON");
    let holder = status["held_for_writing_by"].to_string();
    assert!(holder.contains(&pid.to_string()), "{status}");
    five.check().succeeded();
    five.place.mount(&["-o", "ro"]).succeeded();
}

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

#[test]
fn check_and_status_are_clean_while_all_are_mounted_and_written() {
    let five = Five::start();
    let written = five.written();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _done = Done(&done);
        scope.spawn(|| {
            let mut number = 0;
            while !done.load(Ordering::Relaxed) {
                number += 1;
                write(&written.join(format!("f{}", number % 7)), &content(number));
                if number % 5 == 0 {
                    let _ = fs::remove_file(written.join(format!("f{}", number % 3)));
                }
            }
        });
        for _ in 0..5 {
            let ran = five.check();
            assert_eq!(ran.stderr(), "");
            ran.succeeded();
            five.place
                .run(["status".as_ref(), five.place.vault().as_os_str()])
                .succeeded();
        }
        done.store(true, Ordering::Relaxed);
    });
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
