//! What one user may take of the memory for open files, and what is left for the others: on mounts
//! that all users reach, with an attacker in a process of his own.

mod beside;
mod groups;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::attacker::{Attacker, open_place, open_to_all};
use crate::support::process::{Place, status, wait_for};
use crate::support::tree::{ALICE, BOB, as_user, errno};

const MIB: usize = 1 << 20;
const SMALL: usize = 128 << 10;
const SOON: Duration = Duration::from_secs(60);

/// A vault with a directory `d` in which everybody may do everything, and what is in it.
struct Shared {
    place: Place,
}

impl Shared {
    /// Mounted for writing with `options`.
    fn new(options: &str) -> Self {
        let shared = Self {
            place: open_place(),
        };
        shared.mount(options);
        fs::create_dir(shared.dir()).expect("made");
        open_to_all(&shared.dir());
        shared.put("small", SMALL);
        shared.put("large", 4 * MIB);
        shared.put("replaced", 100);
        shared
    }

    fn mount(&self, options: &str) {
        let options = format!("allow_other,{options}");
        let log = format!("log-file={}", self.log().display());
        self.place.mount(&["-o", &options, "-o", &log]).succeeded();
    }

    fn log(&self) -> PathBuf {
        self.place.path().join("log")
    }

    fn dir(&self) -> PathBuf {
        self.place.point().join("d")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// A file that everybody may read and write.
    fn put(&self, name: &str, length: usize) {
        fs::write(self.at(name), vec![b's'; length]).expect("written");
        open_to_all(&self.at(name));
    }

    fn remount(&self, options: &str) {
        let point = self.place.point();
        self.place
            .run(["umount".as_ref(), point.as_os_str()])
            .succeeded();
        wait_for("the daemon's end", SOON, || self.place.daemons().is_empty());
        self.mount(options);
    }

    fn taken(&self) -> u64 {
        taken(&self.place.point())
    }

    /// Bytes of memory that the daemon has, beside what is a part of files.
    fn resident(&self) -> usize {
        let pid = self.place.daemons()[0];
        let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.expect("a size").trim().trim_end_matches(" kB");
        kib.parse::<usize>().expect("a number") * 1024
    }

    /// Another user opens, reads and lists what was there before.
    #[track_caller]
    fn others_read(&self) {
        let seen = as_user(ALICE, &[], || {
            let length = |name| fs::read(self.at(name)).map(|bytes| bytes.len());
            let names = fs::read_dir(self.dir()).map(Iterator::count);
            (length("small"), length("large"), names)
        });
        assert_eq!(seen.0.expect("a small secret is read"), SMALL);
        assert_eq!(seen.1.expect("a large secret is read"), 4 * MIB);
        assert!(seen.2.expect("listed") >= 3);
    }

    /// The same user replaces a secret, and writes a new one of 16 MiB.
    #[track_caller]
    fn others_write(&self) {
        as_user(ALICE, &[], || {
            fs::write(self.at("replaced"), "anew").expect("a secret is replaced");
            let written = fs::write(self.at("new"), vec![b'n'; 16 * MIB]);
            written.expect("a large secret is written");
        });
        assert_eq!(fs::read(self.at("replaced")).expect("read"), b"anew");
        assert_eq!(fs::read(self.at("new")).expect("read").len(), 16 * MIB);
    }

    /// How often the log tells that somebody is refused.
    fn told(&self) -> usize {
        let log = fs::read_to_string(self.log()).expect("a log");
        log.matches("cannot have more memory for open files")
            .count()
    }
}

fn taken(point: &Path) -> u64 {
    let taken = &status(point)["memory"]["drafts_and_snapshots"];
    taken.as_u64().expect("a number")
}

/// Opens those of `names` that can be opened, and tells why the next one cannot.
fn opened(dir: &Path, names: impl Iterator<Item = String>) -> (Vec<File>, i32) {
    let mut files = Vec::new();
    for name in names {
        match File::open(dir.join(name)) {
            Ok(file) => files.push(file),
            Err(error) => return (files, errno::<()>(Err(error))),
        }
    }
    (files, 0)
}

const TEN_THOUSAND: &str = "
fds = [os.open(sys.argv[1], os.O_RDONLY) for _ in range(10000)]
for i, fd in enumerate(fds):
    assert os.pread(fd, 1, i * 131072 % 16777216 + 5) == b's'
told(len(fds))
";

#[test]
fn ten_thousand_opens_of_a_large_secret_hold_it_once_beside_a_writer() {
    let shared = Shared::new("rw");
    shared.put("wanted", 16 * MIB);
    shared.remount("ro");
    let mut attacker = Attacker::start(TEN_THOUSAND, &[&shared.at("wanted")]);
    assert_eq!(attacker.told(), "10000");
    assert_eq!(shared.taken(), 16 * MIB as u64);
    shared.others_read();
    // Others share it.
    let bytes = as_user(ALICE, &[], || fs::read(shared.at("wanted"))).expect("read");
    assert!(bytes.len() == 16 * MIB && bytes.iter().all(|byte| *byte == b's'));
    drop(attacker);
    wait_for("memory to be given back", SOON, || shared.taken() == 0);
}

#[test]
fn ten_thousand_opens_and_reads_of_a_large_secret_stay_within_the_bound_on_memory() {
    let shared = Shared::new("max-memory=128M");
    shared.put("wanted", 16 * MIB);
    let mut attacker = Attacker::start(TEN_THOUSAND, &[&shared.at("wanted")]);
    assert_eq!(attacker.told(), "10000");
    assert!(shared.taken() <= 64 << 20, "{}", shared.taken());
    // With the program itself, and what it knows of so many handles.
    let resident = shared.resident();
    assert!(resident < 192 * MIB, "{resident} bytes");
    shared.others_read();
    shared.others_write();
}

#[test]
fn who_opens_more_large_secrets_than_his_share_is_refused_alone_and_told_once() {
    let shared = Shared::new("rw");
    for n in 0..24 {
        shared.put(&format!("f{n}"), 4 * MIB);
    }
    shared.remount("ro,max-memory=64M");
    let script = "
def fill():
    fds, refused = [], 0
    for n in range(24):
        try:
            fds.append(os.open('%s/f%d' % (sys.argv[1], n), os.O_RDONLY))
        except OSError as e:
            assert e.errno == errno.ENOMEM, e
            refused += 1
    return fds, refused
fds, refused = fill()
for fd in fds:
    assert os.pread(fd, 1, 4000000) == b's'
for _ in range(50):
    more, again = fill()
    for fd in more:
        os.close(fd)
told('%d %d' % (len(fds), refused))
for fd in fds:
    os.close(fd)
os.open(sys.argv[1] + '/f23', os.O_RDONLY)
told('again')
";
    let mut attacker = Attacker::start(script, &[&shared.dir()]);
    // Three quarters of what is left when an eighth is kept for small secrets.
    assert_eq!(attacker.told(), "10 14");
    shared.others_read();
    // The next one has three quarters of the rest, and root, whom no share binds, the last of it.
    let names = |numbers: std::ops::Range<usize>| numbers.map(|n| format!("f{n}"));
    let (of_alice, why) = as_user(ALICE, &[], || opened(&shared.dir(), names(10..24)));
    assert_eq!((of_alice.len(), why), (3, libc::ENOMEM));
    let (of_root, why) = opened(&shared.dir(), names(20..24));
    assert_eq!((of_root.len(), why), (1, libc::ENOMEM));
    let small = as_user(BOB, &[], || fs::read(shared.at("small")));
    assert_eq!(small.expect("read").len(), SMALL);
    drop((of_alice, of_root));
    assert_eq!(shared.told(), 1);
    attacker.go_on();
    assert_eq!(attacker.told(), "again");
}

#[test]
fn who_opens_more_small_secrets_than_his_share_is_refused_alone() {
    let shared = Shared::new("rw");
    for n in 0..150 {
        shared.put(&format!("f{n}"), SMALL);
    }
    shared.remount("ro,max-memory=16M");
    let script = "
fds = []
for n in range(150):
    try:
        fds += [os.open('%s/f%d' % (sys.argv[1], n), os.O_RDONLY) for _ in range(50)]
    except OSError as e:
        assert e.errno == errno.ENOMEM, e
        break
told(len(fds) // 50)
";
    let mut attacker = Attacker::start(script, &[&shared.dir()]);
    assert_eq!(attacker.told(), "96");
    let names = (100..120).map(|n| format!("f{n}"));
    let (files, why) = as_user(ALICE, &[], || opened(&shared.dir(), names));
    assert_eq!((files.len(), why), (20, 0));
    let small = as_user(ALICE, &[], || fs::read(shared.at("small")));
    assert_eq!(small.expect("read").len(), SMALL);
}

#[test]
fn a_users_drafts_leave_room_for_those_of_others() {
    let shared = Shared::new("rw");
    let script = "
whole, fds, mib = 0, [], bytes(1 << 20)
for n in range(24):
    fd = os.open('%s/draft%d' % (sys.argv[1], n), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    fds.append(fd)
    try:
        for _ in range(16):
            os.write(fd, mib)
        whole += 1
    except OSError as e:
        assert e.errno == errno.ENOSPC, e
told(whole)
# Whoever asks again and again is refused again.
for _ in range(1000):
    try:
        os.pwrite(fds[-1], mib, 15 << 20)
        assert False
    except OSError as e:
        assert e.errno == errno.ENOSPC, e
told('again')
";
    let mut attacker = Attacker::start(script, &[&shared.dir()]);
    assert_eq!(attacker.told(), "10");
    shared.others_read();
    shared.others_write();
    fs::write(shared.at("roots"), vec![b'r'; 16 * MIB]).expect("root writes");
    attacker.go_on();
    assert_eq!(attacker.told(), "again");
    shared.others_write();
    assert_eq!(shared.told(), 1);
}

#[test]
fn what_is_written_through_a_descriptor_counts_for_who_opened_the_file() {
    let shared = Shared::new("max-memory=32M");
    let path = shared.at("given");
    // Alice opens it, and another user writes through what she has given away.
    let file = as_user(ALICE, &[], || File::create(&path).expect("made"));
    let written = as_user(BOB, &[], || {
        let mib = vec![b'g'; MIB];
        let fits = |n: &u64| file.write_all_at(&mib, n * MIB as u64).is_ok();
        (0..16).take_while(fits).count()
    });
    assert_eq!(written, 16);
    let own = |user| {
        as_user(user, &[], || {
            let file = File::create(shared.at(&format!("of-{user}"))).expect("made");
            errno(file.set_len(6 * MIB as u64))
        })
    };
    // 16 of the 28 MiB that there are for large ones are hers.
    assert_eq!((own(ALICE), own(BOB)), (libc::ENOSPC, 0));
}

#[test]
fn small_secrets_are_opened_read_and_replaced_whatever_large_ones_take() {
    let shared = Shared::new("max-memory=64M");
    for n in 0..17 {
        shared.put(&format!("f{n}"), 4 * MIB);
    }
    // No share binds root.
    let drafts: Vec<File> = (0..17)
        .map(|n| File::create(shared.at(&format!("draft{n}"))).expect("made"))
        .collect();
    let data = vec![b'd'; 4 * MIB];
    let outcomes = drafts.iter().map(|mut file| errno(file.write_all(&data)));
    let outcomes: Vec<_> = outcomes.collect();
    assert!(
        outcomes[..14].iter().all(|errno| *errno == 0),
        "{outcomes:?}"
    );
    assert!(outcomes[14..].iter().all(|errno| *errno == libc::ENOSPC));
    as_user(ALICE, &[], || {
        assert_eq!(fs::read(shared.at("small")).expect("read").len(), SMALL);
        fs::write(shared.at("replaced"), vec![b'r'; SMALL]).expect("replaced");
        let read = fs::read(shared.at("replaced")).expect("read");
        assert!(read == vec![b'r'; SMALL]);
    });
    for draft in &drafts {
        draft.set_len(0).expect("emptied");
    }
    drop(drafts);
    shared.remount("ro,max-memory=64M");
    let (files, why) = opened(&shared.dir(), (0..17).map(|n| format!("f{n}")));
    assert_eq!((files.len(), why), (14, libc::ENOMEM));
    let small = as_user(ALICE, &[], || {
        let files = ["small", "replaced"].map(|name| File::open(shared.at(name)));
        files.map(|file| file.map(|file| file.metadata().expect("told").len()))
    });
    for length in small {
        assert_eq!(length.expect("opened"), SMALL as u64);
    }
}
