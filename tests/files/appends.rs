//! Logs that are kept open: what was only appended is published without a close, and nothing else.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::process::{Place, Server, detach, wait_for};

/// Five seconds are promised; a test has no need to fail on a machine that is busy.
const SOON: Duration = Duration::from_secs(60);

fn content(path: &Path) -> String {
    String::from_utf8(std::fs::read(path).expect("readable")).expect("UTF-8")
}

fn append(path: &Path) -> File {
    OpenOptions::new().append(true).open(path).expect("open")
}

fn edit(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).open(path).expect("open")
}

/// A file with a published content.
fn file(place: &Place, name: &str, content: &str) -> PathBuf {
    let path = place.point().join(name);
    std::fs::write(&path, content).expect("written");
    path
}

/// The number of the version that is stored.
fn version(path: &Path) -> u64 {
    let mut command = Command::new("getfattr");
    command.args(["--only-values", "-n", "user.secretfs.version"]);
    let output = command.arg(path).output().expect("it runs");
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    said.trim().parse().expect("a number")
}

/// The daemon dies as if its machine did, and the vault is mounted again.
fn crash(server: Server, place: &Place) -> Server {
    server.signal(libc::SIGKILL);
    server.ended(SOON);
    detach(&place.point());
    place.serve(&[])
}

#[track_caller]
fn unmounted_and_clean(server: Server, place: &Place) {
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    server.ended(SOON);
    place
        .run(["check".as_ref(), place.vault().as_os_str()])
        .succeeded();
}

/// A log that is appended to and kept open: when it was published twice, everything else that could
/// have been published has been.
struct Witness {
    path: PathBuf,
    log: File,
}

impl Witness {
    fn new(place: &Place) -> Self {
        let path = file(place, "witness", "begin\n");
        let log = append(&path);
        Self { path, log }
    }

    fn was_published(&mut self, times: u32) {
        for _ in 0..times {
            let before = content(&self.path);
            self.log.write_all(b"more\n").expect("written");
            wait_for("the witness", SOON, || content(&self.path) != before);
        }
    }
}

/// Another process that appends what it is told to, and keeps the file open.
struct Writer(Child);

impl Writer {
    fn new(path: &Path) -> Self {
        let script = "import sys
log = open(sys.argv[1], 'a')
for line in sys.stdin:
    log.write(line)
    log.flush()
    print('written', flush=True)
";
        let mut command = Command::new("python3");
        command.arg("-c").arg(script).arg(path);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(piped.spawn().expect("it runs"))
    }

    fn append(&mut self, line: &str) {
        let told = self.0.stdin.as_mut().expect("piped");
        writeln!(told, "{line}").expect("told");
        let mut said = [0; 8];
        let answers = self.0.stdout.as_mut().expect("piped");
        std::io::Read::read_exact(answers, &mut said).expect("written");
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_log_that_is_kept_open_is_read_by_others_and_outlives_a_crash() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let path = file(&place, "log", "begin\n");
    let mut writer = Writer::new(&path);
    writer.append("one");
    writer.append("two");
    wait_for("what was appended", SOON, || {
        content(&path) == "begin\none\ntwo\n"
    });
    // And again, by itself.
    writer.append("three");
    wait_for("what was appended then", SOON, || {
        content(&path) == "begin\none\ntwo\nthree\n"
    });
    let server = crash(server, &place);
    assert_eq!(content(&path), "begin\none\ntwo\nthree\n");
    drop(writer);
    unmounted_and_clean(server, &place);
}

/// What changes a file, and keeps it open.
type Change = fn(&Path) -> Vec<File>;

/// Changes that are more than appending, and what comes of them at the close.
const REWRITES: [(&str, Change, &str); 6] = [
    (
        "written over",
        |path| {
            let file = edit(path);
            file.write_all_at(b"half", 0).expect("written");
            vec![file]
        },
        "half456789",
    ),
    (
        "written over and then appended to",
        |path| {
            let (mut log, file) = (append(path), edit(path));
            file.write_all_at(b"x", 9).expect("written");
            log.write_all(b"end").expect("written");
            vec![log, file]
        },
        "012345678xend",
    ),
    (
        "cut",
        |path| {
            let file = edit(path);
            file.set_len(4).expect("cut");
            file.write_all_at(b"half", 4).expect("written");
            vec![file]
        },
        "0123half",
    ),
    (
        "emptied",
        |path| {
            let file = edit(path);
            file.set_len(0).expect("cut");
            file.write_all_at(b"half", 0).expect("written");
            vec![file]
        },
        "half",
    ),
    (
        "with a gap",
        |path| {
            let file = edit(path);
            file.write_all_at(b"half", 12).expect("written");
            vec![file]
        },
        "0123456789\0\0half",
    ),
    (
        "replaced",
        |path| {
            let mut file = File::create(path).expect("open");
            file.write_all(b"half").expect("written");
            vec![file]
        },
        "half",
    ),
];

#[test]
fn what_is_written_over_cut_or_replaced_is_not_published_while_it_is_kept_open() {
    const OLD: &str = "0123456789";
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let mut witness = Witness::new(&place);
    let kept: Vec<_> = REWRITES
        .iter()
        .map(|(name, change, new)| {
            let path = file(&place, name, OLD);
            (change(&path), path, new)
        })
        .collect();
    witness.was_published(2);
    for (_, path, _) in &kept {
        assert_eq!(content(path), OLD, "{path:?}");
    }
    for (files, path, new) in kept {
        drop(files);
        assert_eq!(content(&path), *new, "{path:?}");
    }
    drop(witness);
    unmounted_and_clean(server, &place);
}

/// Many programs empty what they have just made.
#[test]
fn a_new_log_that_was_emptied_first_is_stored_for_as_long_as_it_grows() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let path = place.point().join("log");
    let mut log = File::create(&path).expect("made");
    log.set_len(0).expect("emptied");
    let mut expected = String::new();
    // Some lines come while others are being stored.
    let mut seen = 0;
    wait_for("three versions", SOON, || {
        log.write_all(b"line\n").expect("written");
        expected += "line\n";
        assert_eq!(content(&path), expected);
        seen = version(&path);
        seen >= 3
    });
    drop(log);
    assert_eq!(content(&path), expected);
    unmounted_and_clean(server, &place);
}

#[test]
fn what_was_written_over_is_appended_to_again_once_it_is_published() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let path = file(&place, "log", "0123456789");
    let mut log = edit(&path);
    log.write_all(b"half").expect("written");
    log.sync_all().expect("published");
    let mut appended = append(&path);
    appended.write_all(b" and more").expect("written");
    wait_for("what was appended", SOON, || {
        content(&path) == "half456789 and more"
    });
    drop((log, appended));
    unmounted_and_clean(server, &place);
}

#[test]
fn a_new_log_that_is_never_closed_is_shown_as_it_grows_and_outlives_a_crash() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let path = place.point().join("log");
    let mut writer = Writer::new(&path);
    let mut expected = String::new();
    for line in 0..3 {
        expected += &format!("{line}\n");
        writer.append(&line.to_string());
        assert_eq!(content(&path), expected);
        wait_for("it to be stored", SOON, || version(&path) > line);
    }
    // What is stored changes nothing for those that read.
    writer.append("not stored");
    assert_eq!(content(&path), expected.clone() + "not stored\n");
    let server = crash(server, &place);
    let found = content(&path);
    assert!(
        found == expected || found == expected + "not stored\n",
        "{found:?}"
    );
    drop(writer);
    unmounted_and_clean(server, &place);
}

#[test]
fn a_new_file_that_is_written_over_is_not_stored_while_it_is_kept_open() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let mut witness = Witness::new(&place);
    let path = place.point().join("secret");
    let mut file = File::create(&path).expect("made");
    file.write_all(b"0123456789").expect("written");
    file.write_all_at(b"half", 0).expect("written");
    witness.was_published(2);
    assert_eq!(content(&path), "half456789");
    let server = crash(server, &place);
    // On a machine that stands still for seconds, what was appended was all there was.
    assert!(["", "0123456789"].contains(&content(&path).as_str()));
    drop((file, witness));
    unmounted_and_clean(server, &place);
}

#[test]
fn a_new_file_is_replaced_whole_although_its_first_content_is_still_open() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let mut witness = Witness::new(&place);
    let path = place.point().join("log");
    let mut options = OpenOptions::new();
    let mut log = options
        .append(true)
        .create_new(true)
        .open(&path)
        .expect("made");
    log.write_all(b"first").expect("written");
    wait_for("it to be stored", SOON, || version(&path) > 0);
    let mut replacer = File::create(&path).expect("open");
    replacer.write_all(b"new").expect("written");
    assert_eq!(content(&path), "first");
    drop(replacer);
    assert_eq!(content(&path), "new");
    // All of the first content was stored, so that the log goes on in what took its place.
    log.write_all(b" and more").expect("written");
    wait_for("what was appended", SOON, || {
        content(&path) == "new and more"
    });
    // What was not stored makes no addition to what takes its place meanwhile.
    log.write_all(b" lines").expect("written");
    std::fs::write(&path, "newer").expect("replaced");
    witness.was_published(2);
    assert_eq!(content(&path), "newer");
    drop(log);
    // It was published before, if the machine stood still for seconds.
    assert!(["new and more lines", "newer"].contains(&content(&path).as_str()));
    drop(witness);
    unmounted_and_clean(server, &place);
}

#[test]
fn a_replacement_is_not_undone_by_what_was_appended_before() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let mut witness = Witness::new(&place);
    let path = file(&place, "log", "old\n");
    let mut log = append(&path);
    log.write_all(b"line\n").expect("written");
    std::fs::write(&path, "new\n").expect("replaced");
    log.write_all(b"next\n").expect("written");
    witness.was_published(2);
    // Whatever was appended since: nothing of what was there before comes back.
    assert!(content(&path).starts_with("new\n"));
    drop((log, witness));
    unmounted_and_clean(server, &place);
}

/// How often a thread of the server has waited for something.
fn waits(server: &Server, thread: &str) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("threads");
    let named = tasks.flatten().find(|task| {
        let name = std::fs::read_to_string(task.path().join("comm"));
        name.is_ok_and(|name| name.trim_end() == thread)
    });
    let path = named.expect("such a thread").path().join("status");
    let status = std::fs::read_to_string(path).expect("its status");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.expect("a count").trim().parse().expect("a number")
}

#[test]
fn nothing_wakes_up_for_logs_where_nothing_is_appended() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let path = file(&place, "log", "begin\n");
    let log = append(&path);
    // What was just written is looked at once more; then another thread tells how time passes.
    wait_for("nobody to wake up", SOON, || {
        let (before, clock) = (waits(&server, "appends"), waits(&server, "anchor"));
        wait_for("time to pass", SOON, || {
            waits(&server, "anchor") > clock + 2
        });
        waits(&server, "appends") == before
    });
    drop(log);
    unmounted_and_clean(server, &place);
}
