//! A reader never sees an empty or partial secret, whatever writes it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::process::{self, Place, wait_for};

const SOON: Duration = Duration::from_secs(20);

/// Eight readers that read a file again and again, each in steps of its own, until they are told
/// to stop. What any of them sees must satisfy `is_whole`.
struct Readers {
    stop: Arc<AtomicBool>,
    seen: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    fn start(path: &Path, is_whole: impl Fn(&[u8]) -> bool + Send + Sync + 'static) -> Self {
        let (stop, seen) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let is_whole = Arc::new(is_whole);
        // Sizes of consecutive reads. Seven bytes at a time alone would take a minute for a MiB.
        let steps: [&'static [usize]; 8] = [
            &[7],
            &[7, 16 << 10],
            &[512],
            &[512, 64 << 10],
            &[4096],
            &[100, 128 << 10],
            &[128 << 10],
            &[1 << 20],
        ];
        let threads = steps.map(|steps| {
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            let (path, is_whole) = (path.to_owned(), Arc::clone(&is_whole));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let content = read_in(&path, steps);
                    let end = &content[content.len().saturating_sub(20)..];
                    assert!(
                        is_whole(&content),
                        "torn, in steps of {steps:?}: {} bytes, {:?} … {:?}",
                        content.len(),
                        String::from_utf8_lossy(&content[..content.len().min(20)]),
                        String::from_utf8_lossy(end),
                    );
                    seen.fetch_add(1, Ordering::Relaxed);
                    // The writers want their turn.
                    std::thread::sleep(Duration::from_millis(3));
                }
            })
        });
        Self {
            stop,
            seen,
            threads: threads.into(),
        }
    }

    /// Waits until every reader had the time for some rounds.
    fn have_seen(&self, rounds: u64) {
        wait_for("the readers", SOON, || {
            self.threads.iter().any(JoinHandle::is_finished)
                || self.seen.load(Ordering::Relaxed) >= rounds
        });
    }

    #[track_caller]
    fn found_all_whole(self) {
        self.have_seen(8);
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// Reads a file in steps of these sizes, the last of them as often as need be in turn.
fn read_in(path: &Path, steps: &[usize]) -> Vec<u8> {
    let mut file = File::open(path).expect("the secret is always there");
    let mut content = Vec::new();
    // Tiny steps stay so for the first pages only: that is where a tear would show as well.
    let mut sizes = steps.iter().copied().cycle();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let mut size = sizes.next().expect("endless");
        if content.len() > 16 << 10 && steps.len() == 1 && size < 4096 {
            size = 32 << 10;
        }
        match file.read(&mut buffer[..size]).expect("readable") {
            0 => return content,
            count => content.extend_from_slice(&buffer[..count]),
        }
    }
}

/// `size` times the same letter and what the writer puts after it.
fn is_one_secret(content: &[u8], size: usize, end: &[u8]) -> bool {
    content.len() == size + end.len()
        && content.ends_with(end)
        && content[0].is_ascii_lowercase()
        && content[..size] == vec![content[0]; size]
}

fn start(program: &str, script: &str, args: &[&dyn AsRef<std::ffi::OsStr>]) -> Child {
    let mut command = Command::new(program);
    command.arg("-c").arg(script);
    if program == "bash" {
        command.arg("writer");
    }
    for arg in args {
        command.arg(arg);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs")
}

#[track_caller]
fn run(program: &str, script: &str, args: &[&dyn AsRef<std::ffi::OsStr>]) -> String {
    let output = start(program, script, args)
        .wait_with_output()
        .expect("ran");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// Writes the secrets `a`, `b`, … of a size into files, for `cp`.
fn sources(place: &Place, size: usize) -> PathBuf {
    let dir = place.path().join("sources");
    std::fs::create_dir(&dir).expect("made");
    for letter in b'a'..=b'f' {
        std::fs::write(dir.join((letter as char).to_string()), vec![letter; size]).expect("source");
    }
    dir
}

const LETTERS: &str = "letters=(a b c d e f)\n";
/// Not by substitution in the shell, which takes a time that is the square of the length.
const FILL: &str = "for l in ${letters[@]}; do \
    printf -v \"s_$l\" '%s' \"$(head -c \"$3\" /dev/zero | tr '\\0' \"$l\")\"; done\n";
const ECHO: &str = "for ((i = 0; i < $2; i++)); do \
    v=s_${letters[i % 6]}; echo \"${!v}\" > \"$1\" || exit 1; done";
const PRINTF: &str = "for ((i = 0; i < $2; i++)); do \
    v=s_${letters[i % 6]}; printf %s \"${!v}\" > \"$1\" || exit 1; done";
const COPY: &str = "for ((i = 0; i < $2; i++)); do \
    cp \"$4/${letters[i % 6]}\" \"$1\" || exit 1; done";
const PYTHON: &str = "import sys
path, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for i in range(count):
    with open(path, 'w') as f:
        f.write('abcdef'[i % 6] * size)
";

/// Two writers at once for each way to write, and eight readers. `counts` are replacements by
/// `echo`, `printf`, `cp` and Python together.
fn readers_see_whole_secrets(size: usize, counts: [u32; 4], options: &[&str]) {
    let place = Place::with_vault();
    place.mount(options).succeeded();
    let sources = sources(&place, size);
    let ways = [
        ("bash", format!("{LETTERS}{FILL}{ECHO}"), "\n"),
        ("bash", format!("{LETTERS}{FILL}{PRINTF}"), ""),
        ("bash", format!("{LETTERS}{COPY}"), ""),
        ("python3", PYTHON.to_owned(), ""),
    ];
    for (way, ((program, script, end), count)) in ways.into_iter().zip(counts).enumerate() {
        let path = place.point().join(format!("secret-{way}"));
        std::fs::write(&path, [&vec![b'z'; size], end.as_bytes()].concat()).expect("written");
        let readers = Readers::start(&path, move |c| is_one_secret(c, size, end.as_bytes()));
        readers.have_seen(8);
        let writers = [(); 2].map(|()| {
            let (count, size) = ((count / 2).to_string(), size.to_string());
            start(program, &script, &[&path, &count, &size, &sources])
        });
        for writer in writers {
            let output = writer.wait_with_output().expect("ran");
            assert!(output.status.success(), "writer {way}: {output:?}");
        }
        readers.found_all_whole();
    }
    // Every close is a publication of its own, and none failed.
    let status = status(&place);
    let published = status["published"].as_u64().expect("a number");
    assert!(published >= counts.iter().map(|c| u64::from(*c)).sum());
    assert_eq!(status["failed_publications"], 0);
    unmounted_and_clean(&place);
}

fn status(place: &Place) -> serde_json::Value {
    process::status(&place.point())
}

fn unmounted_and_clean(place: &Place) {
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    place
        .run(["check".as_ref(), place.vault().as_os_str()])
        .succeeded();
}

#[test]
fn secrets_of_one_byte_are_never_torn() {
    readers_see_whole_secrets(1, [1500, 1450, 400, 900], &[]);
}

#[test]
fn secrets_of_one_kibibyte_are_never_torn() {
    readers_see_whole_secrets(1 << 10, [1500, 1450, 400, 900], &[]);
}

#[test]
fn secrets_of_a_hundred_kibibytes_are_never_torn() {
    readers_see_whole_secrets(100 << 10, [300, 300, 300, 300], &[]);
}

#[test]
fn secrets_of_one_mebibyte_are_never_torn() {
    readers_see_whole_secrets(1 << 20, [75, 75, 75, 75], &[]);
}

#[test]
fn several_threads_of_the_daemon_tear_nothing() {
    for threads in ["threads=4", "threads=8"] {
        readers_see_whole_secrets(1 << 10, [100, 100, 60, 100], &["-o", threads]);
    }
    readers_see_whole_secrets(200 << 10, [20, 60, 60, 60], &["-o", "threads=8"]);
}

#[test]
fn a_command_between_two_writes_of_a_shell_publishes_nothing() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let path = place.point().join("f");
    std::fs::write(&path, "a\nb\n").expect("written");
    let readers = Readers::start(&path, |content| content == b"a\nb\n");
    let script = "for ((i = 0; i < 150; i++)); do { echo a; /bin/true; echo b; } > \"$1\"; done";
    run("bash", script, &[&path]);
    readers.found_all_whole();
    unmounted_and_clean(&place);
}

#[test]
fn a_child_between_two_writes_of_python_publishes_nothing() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let path = place.point().join("f");
    std::fs::write(&path, "a\nb\n").expect("written");
    let readers = Readers::start(&path, |content| content == b"a\nb\n");
    // The child inherits the descriptor, as before PEP 446, and reads what others see.
    let script = "import subprocess, sys
for i in range(60):
    with open(sys.argv[1], 'w') as f:
        f.write('a\\n')
        f.flush()
        seen = subprocess.run(['cat', sys.argv[1]], pass_fds=[f.fileno()], capture_output=True)
        assert seen.stdout == b'a\\nb\\n', seen
        f.write('b\\n')
";
    run("python3", script, &[&path]);
    readers.found_all_whole();
    unmounted_and_clean(&place);
}

#[test]
fn of_two_interleaved_writers_the_last_to_close_wins_whole() {
    const SIZE: usize = 1 << 20;
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let path = place.point().join("f");
    std::fs::write(&path, vec![b'z'; SIZE]).expect("written");
    let readers = Readers::start(&path, |content| is_one_secret(content, SIZE, b""));
    for round in 0..4 {
        let mut first = File::create(&path).expect("open");
        let mut second = File::create(&path).expect("open");
        for _ in 0..16 {
            first.write_all(&[b'a'; SIZE / 16]).expect("written");
            second.write_all(&[b'b'; SIZE / 16]).expect("written");
        }
        let (early, late, expected) = match round % 2 {
            0 => (first, second, b'b'),
            _ => (second, first, b'a'),
        };
        drop(early);
        let between = std::fs::read(&path).expect("readable");
        assert!(between == vec![if expected == b'a' { b'b' } else { b'a' }; SIZE]);
        drop(late);
        assert!(std::fs::read(&path).expect("readable") == vec![expected; SIZE]);
    }
    readers.found_all_whole();
    unmounted_and_clean(&place);
}

#[test]
fn a_writer_that_changed_its_uid_publishes_when_it_closes() {
    let place = Place::with_vault();
    place.mount(&["-o", "allow_other"]).succeeded();
    // The way there must be open to the other user, too.
    open_to_all(place.path());
    open_to_all(&place.point());
    let path = place.point().join("f");
    std::fs::write(&path, "old").expect("written");
    open_to_all(&path);
    // A child keeps the descriptor, so that only the FLUSH of the close can publish.
    let script = "import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC)
r, w = os.pipe()
child = os.fork()
if child == 0:
    os.close(w)
    os.read(r, 1)
    os._exit(0)
os.close(r)
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
os.write(fd, b'new')
before = open(sys.argv[1], 'rb').read()
os.close(fd)
after = open(sys.argv[1], 'rb').read()
os.close(w)
os.waitpid(child, 0)
print(before, after, open(sys.argv[1], 'rb').read())
";
    assert_eq!(run("python3", script, &[&path]), "b'old' b'new' b'new'\n");
    assert_eq!(std::fs::read(&path).expect("readable"), b"new");
    unmounted_and_clean(&place);
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = if path.is_dir() { 0o755 } else { 0o644 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a mode");
}

#[test]
fn an_emptied_file_is_empty_for_the_next_reader_a_thousand_times() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let path = place.point().join("f");
    // `cat` must be the first to look: a shell's own test would look before it.
    let script = "for ((i = 0; i < 1000; i++)); do
        echo full > \"$1\"
        : > \"$1\"; seen=$(cat \"$1\")
        [[ -z $seen ]] || { echo \"round $i: $seen\"; exit 1; }
        done";
    run("bash", script, &[&path]);
    unmounted_and_clean(&place);
}

/// The last close of a file that was only emptied is what publishes it, and nobody waits for that:
/// neither another thread of the daemon nor the closes of others may come in between.
#[test]
fn an_emptied_file_is_empty_for_the_next_however_many_threads_serve_and_files_are_closed() {
    for threads in ["threads=1", "threads=2", "threads=4", "threads=8"] {
        let place = Place::with_vault();
        place.mount(&["-o", threads]).succeeded();
        let path = place.point().join("f");
        let other = place.point().join("other");
        std::fs::write(&other, "other").expect("written");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let open: Vec<_> = (0..40).map(|_| File::open(&other)).collect();
                        assert!(open.iter().all(Result::is_ok));
                    }
                });
            }
            for round in 0..250 {
                std::fs::write(&path, "full").expect("written");
                drop(File::create(&path).expect("open"));
                let seen = match round % 2 {
                    0 => std::fs::read(&path).expect("readable").len() as u64,
                    _ => std::fs::metadata(&path).expect("there").len(),
                };
                if seen != 0 {
                    stop.store(true, Ordering::Relaxed);
                }
                assert_eq!(seen, 0, "{threads}, round {round}");
            }
            stop.store(true, Ordering::Relaxed);
        });
        unmounted_and_clean(&place);
    }
}

#[test]
fn an_emptied_file_has_no_size_a_thousand_times() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let path = place.point().join("f");
    let script = "for ((i = 0; i < 1000; i++)); do
        echo full > \"$1\"
        : > \"$1\"; seen=$(stat -c %s \"$1\")
        [[ $seen == 0 ]] || { echo \"round $i: $seen\"; exit 1; }
        done";
    run("bash", script, &[&path]);
    unmounted_and_clean(&place);
}

#[test]
fn what_is_closed_just_before_an_unmount_is_not_lost() {
    const FIRST: i32 = 700;
    let place = Place::with_vault();
    for round in 0..200 {
        place.mount(&[]).succeeded();
        let path = |n: i32| place.point().join(format!("f{n}"));
        for n in 0..6 {
            std::fs::write(path(n), format!("round {round}")).expect("written");
        }
        for n in 0..6 {
            let fd = File::create(path(n)).expect("open").into_raw_fd();
            // SAFETY: neither descriptor is anybody else's.
            unsafe {
                assert_eq!(libc::dup2(fd, FIRST + n), FIRST + n);
                libc::close(fd);
            }
        }
        // SAFETY: these are the six from above.
        let closed = unsafe { libc::close_range(FIRST as u32, FIRST as u32 + 5, 0) };
        let unmounted = nix::mount::umount(&place.point());
        assert_eq!((closed, unmounted), (0, Ok(())));
        place.mount(&[]).succeeded();
        for n in 0..6 {
            let content = std::fs::read(path(n)).expect("readable");
            assert!(content.is_empty(), "round {round}: {content:?}");
        }
        unmounted_and_clean(&place);
    }
}

#[test]
fn a_name_that_is_replaced_by_renaming_is_always_there_and_whole() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let path = place.point().join("f");
    let size = 1 << 10;
    std::fs::write(&path, vec![b'z'; size]).expect("written");
    let readers = Readers::start(&path, move |content| is_one_secret(content, size, b""));
    let looker = {
        let (path, stop) = (path.clone(), Arc::clone(&readers.stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let seen = std::fs::metadata(&path).expect("the name is always there");
                assert_eq!(seen.len(), 1 << 10);
            }
        })
    };
    let writers = [0, 1].map(|writer: u32| {
        let (point, path) = (place.point(), path.clone());
        std::thread::spawn(move || {
            let own = point.join(format!("new-{writer}"));
            for round in 0..600 {
                std::fs::write(&own, vec![b'a' + (round % 6) as u8; size]).expect("written");
                std::fs::rename(&own, &path).expect("renamed");
            }
        })
    });
    for writer in writers {
        writer.join().expect("wrote");
    }
    readers.found_all_whole();
    looker.join().expect("always there");
    unmounted_and_clean(&place);
}

#[test]
fn threads_that_share_a_descriptor_never_see_a_mixture() {
    let place = Place::with_vault();
    place.mount(&["-o", "threads=4"]).succeeded();
    let path = place.point().join("f");
    let size = 200 << 10;
    std::fs::write(&path, vec![b'z'; size]).expect("written");
    let shared = Arc::new(File::open(&path).expect("open"));
    let stop = Arc::new(AtomicBool::new(false));
    let readers = [(); 6].map(|()| {
        let (shared, stop) = (Arc::clone(&shared), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut buffer = vec![0_u8; size];
            while !stop.load(Ordering::Relaxed) {
                let fd = shared.as_raw_fd();
                // SAFETY: the buffer is as long as it says. So little is one request.
                let count = unsafe { libc::pread(fd, buffer.as_mut_ptr().cast(), 2 << 10, 0) };
                assert_eq!(count, 2 << 10, "{}", std::io::Error::last_os_error());
                assert!(buffer[..2 << 10] == vec![buffer[0]; 2 << 10]);
            }
        })
    });
    for round in 0..200 {
        std::fs::write(&path, vec![b'a' + (round % 6) as u8; size]).expect("written");
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().expect("whole");
    }
    drop(shared);
    unmounted_and_clean(&place);
}
