//! What `fstat` tells, what is read or written, and what is stored are of one content: for those who
//! write a file, with every language's way to find its end and by mappings, and for those who read it.

mod mappings;
mod writers;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::process::Place;
use crate::support::tree::closed;
use crate::support::versions::{How, LENGTHS, is_whole, version};

const OLD: &[u8] = b"the old value of thirty-one byt";

fn mounted(options: &[&str]) -> Place {
    let place = Place::with_vault();
    place.mount(options).succeeded();
    place
}

/// A file with a published content.
fn file(place: &Place, content: &[u8]) -> PathBuf {
    let path = place.point().join("secret");
    // What is empty has been published, too.
    std::fs::write(&path, "x").expect("written");
    std::fs::write(&path, content).expect("written");
    path
}

fn content(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("readable")
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).expect("there").len()
}

fn edit(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).open(path).expect("open")
}

/// Opens for reading and writing, and empties.
fn replace(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).truncate(true);
    options.open(path).expect("open")
}

fn told(file: &File) -> u64 {
    file.metadata().expect("told").len()
}

fn unmounted_and_clean(place: &Place) {
    for command in ["umount", "check"] {
        let at = match command {
            "umount" => place.point(),
            _ => place.vault(),
        };
        place.run([command.as_ref(), at.as_os_str()]).succeeded();
    }
}

fn ran(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A script in a file of its own, and what runs it.
fn script(place: &Place, name: &str, text: &str) -> PathBuf {
    let path = place.path().join(name);
    std::fs::write(&path, text).expect("written");
    path
}

/// What is written to a shared mapping of `length` bytes.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| b'a' + (i % 26) as u8).collect()
}

/// Readers of every kind look while one replaces the content again and again.
fn readers_get_whole_versions(how: How) {
    let asked = std::env::var("SECRETFS_SIZES_ROUNDS").ok();
    let asked = asked.map(|text| text.parse::<u32>().expect("a number of rounds"));
    let (rounds, each) = (asked.unwrap_or(100), asked.unwrap_or(8));
    let place = mounted(&[]);
    let path = place.point().join("secret");
    std::fs::write(&path, version(0)).expect("written");
    let (stop, found) = (AtomicBool::new(false), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        let looks = how.looks();
        let readers = looks.repeat(2).into_iter().map(|look| {
            let (path, stop, found) = (&path, &stop, &found);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let seen = look.read(path);
                    if let Some(bytes) = &seen {
                        let ends = (bytes.first(), bytes.last());
                        assert!(is_whole(bytes), "{look:?}: {} bytes, {ends:?}", bytes.len());
                    }
                    let key = (format!("{look:?}"), seen.is_some());
                    *found.lock().expect("no panic").entry(key).or_insert(0_u32) += 1;
                }
            })
        });
        let readers: Vec<_> = readers.collect();
        let counts = |is_whole: bool| -> Vec<u32> {
            let found = found.lock().expect("no panic");
            let count = |look| found.get(&(format!("{look:?}"), is_whole)).copied();
            looks.iter().map(|look| count(look).unwrap_or(0)).collect()
        };
        for round in 1.. {
            how.replace(&path, &version(round as usize));
            let failed = readers.iter().any(|reader| reader.is_finished());
            if failed || round >= rounds && counts(true).iter().all(|count| *count >= each) {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        println!(
            "{how:?}: whole {:?}, refused {:?}",
            counts(true),
            counts(false)
        );
    });
    unmounted_and_clean(&place);
}

#[test]
fn readers_by_any_size_get_a_whole_version_while_it_is_replaced_with_o_trunc() {
    readers_get_whole_versions(How::Truncating);
}

#[test]
fn readers_by_any_size_get_a_whole_version_while_it_is_cut_and_written_anew() {
    readers_get_whole_versions(How::Cutting);
}

#[test]
fn readers_by_any_size_get_a_whole_version_while_another_is_renamed_over_it() {
    readers_get_whole_versions(How::Renaming);
}

/// Each step of a reader at each step of a writer, without any luck.
#[test]
fn a_reader_reads_what_it_was_told_whenever_the_writer_comes_in_between() {
    let place = mounted(&[]);
    let path = place.point().join("secret");
    for how in [How::Truncating, How::Cutting] {
        for (old, new) in [(2, 3), (3, 2), (6, 5), (5, 6), (1, 0)] {
            let replaced = |at: u32, now: u32| {
                if at == now {
                    how.replace(&path, &version(new));
                }
            };
            let set_up = || {
                how.replace(&path, &version(old));
                File::open(&path).expect("open")
            };
            for at in 0..4 {
                // By fstat, and by fstat of another while it is open.
                let file = set_up();
                replaced(at, 0);
                let told = told(&file) as usize;
                replaced(at, 1);
                let mut bytes = vec![0; told];
                let count = file.read_at(&mut bytes, 0).expect("readable");
                assert!(
                    is_whole(&bytes[..count.min(told)]) || told > 128 << 10,
                    "{how:?} {at}"
                );
                assert_eq!(
                    bytes[0],
                    if at == 0 { version(new) } else { version(old) }[0]
                );
                // By its end.
                let mut file = set_up();
                replaced(at, 0);
                let end = file.seek(SeekFrom::End(0)).expect("sought") as usize;
                replaced(at, 1);
                file.rewind().expect("sought");
                let mut bytes = vec![0; 4 << 20];
                let mut count = 0;
                while count < end {
                    let read = file.read(&mut bytes[count..end]).expect("readable");
                    assert!(read > 0, "{how:?} {at}: {count} of {end} bytes");
                    count += read;
                    replaced(at, 2);
                }
                assert!(is_whole(&bytes[..end]), "{how:?} {at}");
                replaced(at, 3);
            }
        }
    }
    unmounted_and_clean(&place);
}

/// Through a descriptor that stays open, too, where the kernel asks each time.
#[test]
fn a_descriptor_that_stays_open_reads_again_what_it_was_told() {
    let place = mounted(&["-o", "ttl=0s"]);
    let path = place.point().join("secret");
    for how in [How::Truncating, How::Cutting] {
        // In another thread: who opens a file is told of it, too.
        let replace = |n| {
            std::thread::scope(|scope| {
                let replaced = scope.spawn(|| how.replace(&path, &version(n)));
                replaced.join().expect("replaced");
            });
        };
        std::fs::write(&path, "old").expect("written");
        replace(2);
        let file = File::open(&path).expect("open");
        let read = |count: u64| {
            let mut bytes = vec![0; count as usize];
            let count = file.read_at(&mut bytes, 0).expect("readable");
            bytes.truncate(count);
            bytes
        };
        assert!(read(told(&file)) == version(2));
        // Replaced between the two, and before both.
        let size = told(&file);
        replace(3);
        assert!(read(size) == version(2), "{how:?}");
        replace(5);
        assert!(read(told(&file)) == version(5), "{how:?}");
        // Who does not ask gets the newest.
        replace(7);
        let newest = read(1 << 20);
        assert!(newest == version(7), "{how:?}: {} bytes", newest.len());
        // In the middle, it is told of what it reads.
        assert_eq!(read(100).len(), 100);
        replace(3);
        let size = told(&file);
        assert!(read(size) == version(7), "{how:?}");
        assert!(read(told(&file)) == version(3), "{how:?}");
    }
    unmounted_and_clean(&place);
}

/// Who waits for a lock and then reads sees what was written under it.
#[test]
fn who_has_written_reads_that_also_through_what_he_has_read_before() {
    let place = mounted(&[]);
    let path = file(&place, b"old");
    let reader = File::open(&path).expect("open");
    let read = || {
        let mut bytes = [0; 100];
        let count = reader.read_at(&mut bytes, 0).expect("readable");
        bytes[..count].to_vec()
    };
    assert_eq!(read(), b"old");
    for new in ["in place", "anew"] {
        let mut writer = match new {
            "anew" => replace(&path),
            _ => edit(&path),
        };
        // As many programs ask when they open a file.
        told(&writer);
        writer.write_all(new.as_bytes()).expect("written");
        closed(writer).expect("published");
        assert_eq!(read(), new.as_bytes());
    }
    drop(reader);
    unmounted_and_clean(&place);
}

#[test]
fn a_reader_that_has_waited_for_a_lock_sees_what_was_written_under_it() {
    let place = mounted(&[]);
    let path = file(&place, b"old");
    let script = "import fcntl, os, sys
lock = {'flock': fcntl.flock, 'fcntl': fcntl.lockf}[sys.argv[2]]
fd = os.open(sys.argv[1], os.O_RDONLY)
os.fstat(fd)
w = os.open(sys.argv[1], os.O_RDWR)
if os.fork() == 0:
    mine = os.open(sys.argv[1], os.O_RDWR | os.O_TRUNC)
    os.write(mine, b'under the lock')
    os.close(mine)
    os._exit(0)
os.wait()
lock(fd, fcntl.LOCK_SH)
print(os.read(fd, 100).decode())
";
    for kind in ["flock", "fcntl"] {
        std::fs::write(&path, "old").expect("written");
        let mut python = Command::new("python3");
        let seen = ran(python.args(["-c", script]).arg(&path).arg(kind));
        assert_eq!(seen, "under the lock\n", "{kind}");
    }
    unmounted_and_clean(&place);
}

/// The kernel may still remember what it was told of the version before.
#[test]
fn a_read_only_mount_beside_a_writer_reads_what_it_tells() {
    let place = mounted(&[]);
    let beside = Beside::mount(&place, "ro,ttl=60s");
    let (path, seen) = (place.point().join("secret"), beside.0.join("secret"));
    for round in 0..60 {
        let (old, new) = (version(round), version(round + 1));
        How::Truncating.replace(&path, &old);
        // The name is looked up, and its attributes are remembered.
        std::fs::metadata(&seen).expect("there");
        let early = File::open(&seen).expect("open");
        How::Truncating.replace(&path, &new);
        for file in [early, File::open(&seen).expect("open")] {
            let told = told(&file) as usize;
            let mut bytes = vec![0; told + 1];
            let count = file
                .read_at(&mut bytes[..told.min(100)], 0)
                .expect("readable");
            let n = usize::from(bytes[0].wrapping_sub(b'a'));
            assert!(
                count > 0 && LENGTHS[n] == told,
                "round {round}: told {told}, read {n}"
            );
            if told <= 70_000 {
                let count = file.read_at(&mut bytes, 0).expect("readable");
                assert_eq!(count, told.min(bytes.len()), "round {round}");
            }
        }
    }
    drop(beside);
    unmounted_and_clean(&place);
}

/// Opens a file again and again, and prints how often it read another length than it was told.
const TOLD_AND_READ: &str = r#"
import os, sys
wrong = []
for _ in range(3000):
    fd = os.open(sys.argv[1], os.O_RDONLY)
    told = os.fstat(fd).st_size
    read = len(os.pread(fd, told + 10, 0))
    if read != told:
        wrong.append((told, read))
    os.close(fd)
print(len(wrong), wrong[:5])
"#;

#[test]
fn several_readers_of_a_read_only_mount_read_the_length_that_they_were_told_whoever_asks_beside() {
    let place = mounted(&[]);
    let beside = Beside::mount(&place, "ro");
    let (path, seen) = (place.point().join("secret"), beside.0.join("secret"));
    std::fs::write(&path, "x").expect("written");
    let reader = || {
        let mut reader = Command::new("python3");
        reader.args(["-c", TOLD_AND_READ]).arg(&seen);
        reader.stdout(std::process::Stdio::piped());
        reader.spawn().expect("python3 runs")
    };
    let mut readers: Vec<_> = (0..3).map(|_| reader()).collect();
    let mut round = 0;
    while readers
        .iter_mut()
        .any(|reader| reader.try_wait().expect("waited").is_none())
    {
        let length = [1, 7, 100, 3000, 5000, 70_000, 300_000][round % 7];
        std::fs::write(&path, vec![b'a'; length]).expect("replaced");
        round += 1;
    }
    for reader in readers {
        let output = reader.wait_with_output().expect("ended");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "0 []");
    }
    drop(beside);
    unmounted_and_clean(&place);
}

#[test]
fn the_end_that_a_seek_finds_on_a_read_only_mount_is_that_of_what_is_read_next() {
    let place = mounted(&[]);
    // The kernel remembers attributes, and asks anew soon.
    let beside = Beside::mount(&place, "ro,ttl=1ms");
    let (path, seen) = (place.point().join("secret"), beside.0.join("secret"));
    for round in 0..30 {
        let lengths = [5000, 7, 70_000, 100];
        let (old, new) = (lengths[round % 4], lengths[(round + 1) % 4]);
        std::fs::write(&path, vec![b'a'; old]).expect("written");
        let mut file = File::open(&seen).expect("open");
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("read");
        std::fs::write(&path, vec![b'b'; new]).expect("replaced");
        // Nobody else asks first. What the kernel remembers is too old by then; it counts in jiffies.
        std::thread::sleep(std::time::Duration::from_millis(40));
        let end = file.seek(SeekFrom::End(0)).expect("sought");
        file.rewind().expect("sought");
        bytes.clear();
        file.read_to_end(&mut bytes).expect("read");
        assert_eq!(bytes.len() as u64, end, "round {round}");
    }
    drop(beside);
    unmounted_and_clean(&place);
}

/// A second mount, which is taken away however the test ends.
struct Beside(PathBuf);

impl Beside {
    fn mount(place: &Place, options: &str) -> Self {
        let beside = Self(place.path().join("ro"));
        std::fs::create_dir(&beside.0).expect("made");
        let mut mount = place.command();
        mount.arg("mount").arg(place.vault()).arg(&beside.0);
        ran(mount.args(["-o", options]));
        beside
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
