//! What `fstat` tells, what is read or written, and what is stored are of one content: for those who
//! write a file, with every language's way to find its end and by mappings, and for those who read it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::map::Map;
use crate::support::process::{Place, system};
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

// --- writers ------------------------------------------------------------------------------------

/// Each writes `new` over 31 bytes, looks where the end is in the way of its language, and writes
/// `END` there.
#[test]
fn what_a_program_writes_at_the_end_that_it_was_told_is_what_is_stored() {
    let place = mounted(&[]);
    let c = script(
        &place,
        "end.c",
        "#include <stdio.h>
int main(int n, char **a) {
    FILE *f = fopen(a[1], \"w+\");
    if (!f || fputs(\"new\", f) < 0 || fseek(f, 0, SEEK_END) || fputs(\"END\", f) < 0) return 1;
    return fclose(f) != 0;
}
",
    );
    let binary = place.path().join("end");
    ran(Command::new("cc").arg("-o").arg(&binary).arg(c));
    let java = script(
        &place,
        "End.java",
        "import java.io.*;
import java.nio.*;
public class End {
    public static void main(String[] a) throws Exception {
        try (RandomAccessFile f = new RandomAccessFile(a[0], \"rw\")) {
            f.setLength(0);
            var c = f.getChannel();
            c.write(ByteBuffer.wrap(\"new\".getBytes()));
            c.position(c.size());
            c.write(ByteBuffer.wrap(\"END\".getBytes()));
        }
    }
}
",
    );
    let lua = "local f = assert(io.open(arg[1], 'w+')); f:write('new'); f:seek('end'); \
        f:write('END'); assert(f:close())";
    let lua = script(&place, "end.lua", lua);
    let node = "const fs = require('fs'); const f = fs.openSync(process.argv[1], 'w+');
        fs.writeSync(f, 'new'); fs.writeSync(f, 'END', fs.fstatSync(f).size); fs.closeSync(f);";
    let python = "import os, sys
with open(sys.argv[1], 'wb+', buffering=0) as f:
    f.write(b'new')
    assert os.fstat(f.fileno()).st_size == 3
    f.seek(0, os.SEEK_END)
    f.write(b'END')
";
    let php = "$f = fopen($argv[1], 'w+'); fwrite($f, 'new'); fseek($f, fstat($f)['size']); \
        fseek($f, 0, SEEK_END); fwrite($f, 'END'); fclose($f);";
    let ruby = "File.open(ARGV[0], 'w+') { |f| f.write('new'); f.flush; \
        f.seek(f.size); f.seek(0, IO::SEEK_END); f.write('END') }";
    let bash = "exec 3<>\"$0\"; : > \"$0\"; printf new > \"$0\"; printf END >> \"$0\"";
    let programs: [(&str, Vec<&std::ffi::OsStr>); 8] = [
        (binary.to_str().expect("UTF-8"), vec![]),
        ("java", vec![java.as_os_str()]),
        ("lua5.4", vec![lua.as_os_str()]),
        ("node", vec!["-e".as_ref(), node.as_ref()]),
        ("python3", vec!["-c".as_ref(), python.as_ref()]),
        ("php", vec!["-r".as_ref(), php.as_ref(), "--".as_ref()]),
        ("ruby", vec!["-e".as_ref(), ruby.as_ref()]),
        ("bash", vec!["-c".as_ref(), bash.as_ref()]),
    ];
    for (program, args) in programs {
        let path = file(&place, OLD);
        ran(Command::new(program).args(args).arg(&path));
        let stored = content(&path);
        assert_eq!(String::from_utf8_lossy(&stored), "newEND", "{program}");
        assert_eq!(size(&path), 6, "{program}");
    }
    unmounted_and_clean(&place);
}

#[test]
fn who_writes_is_told_of_his_draft_and_everybody_else_of_what_is_published() {
    let place = mounted(&[]);
    let path = file(&place, OLD);
    let outsider = || {
        let mut stat = Command::new("stat");
        ran(stat.args(["-c", "%s"]).arg(&path)).trim().to_owned()
    };
    let mut writer = replace(&path);
    assert_eq!((told(&writer), outsider()), (0, "31".into()));
    writer.write_all(b"new").expect("written");
    assert_eq!((told(&writer), outsider()), (3, "31".into()));
    // The kernel's own idea of the end is that of the writer.
    assert_eq!(writer.seek(SeekFrom::End(0)).expect("sought"), 3);
    writer.set_len(2000).expect("extended");
    assert_eq!((told(&writer), outsider()), (2000, "31".into()));
    assert_eq!(writer.seek(SeekFrom::End(-1)).expect("sought"), 1999);
    drop(writer);
    assert_eq!((size(&path), outsider()), (2000, "2000".into()));
    // In place, too.
    let editor = edit(&path);
    editor.write_all_at(b"end", 3000).expect("written");
    assert_eq!((told(&editor), outsider()), (3003, "2000".into()));
    editor.set_len(1).expect("cut");
    assert_eq!((told(&editor), outsider()), (1, "2000".into()));
    drop(editor);
    assert_eq!(outsider(), "1");
    unmounted_and_clean(&place);
}

#[test]
fn a_child_that_writes_through_the_descriptor_of_another_is_told_of_the_draft() {
    let place = mounted(&[]);
    let path = file(&place, OLD);
    let script = "import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_TRUNC)
os.write(fd, b'by the opener')
if os.fork() == 0:
    os.write(fd, b', and the child')
    assert os.fstat(fd).st_size == 28, os.fstat(fd).st_size
    os.pwrite(fd, b'!', os.fstat(fd).st_size)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
os.close(fd)
";
    ran(Command::new("python3").args(["-c", script]).arg(&path));
    assert_eq!(content(&path), b"by the opener, and the child!");
    unmounted_and_clean(&place);
}

#[test]
fn times_move_with_the_publication_for_others_and_at_once_for_who_writes() {
    let place = mounted(&[]);
    let path = file(&place, OLD);
    let times = |of: &std::fs::Metadata| (of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec());
    let outsider = || {
        let mut stat = Command::new("stat");
        ran(stat.args(["-c", "%.9Y %.9Z"]).arg(&path))
    };
    for in_place in [false, true] {
        let before = outsider();
        let own = times(&std::fs::metadata(&path).expect("there"));
        let writer = if in_place {
            edit(&path)
        } else {
            replace(&path)
        };
        writer.set_len(5).expect("cut");
        let cut = times(&writer.metadata().expect("told"));
        assert!(cut > own && cut.2 >= own.2, "{in_place}: {cut:?} {own:?}");
        writer.write_all_at(b"X", 0).expect("written");
        assert!(times(&writer.metadata().expect("told")) > cut, "{in_place}");
        assert_eq!(outsider(), before, "{in_place}");
        drop(writer);
        assert_ne!(outsider(), before, "{in_place}");
    }
    unmounted_and_clean(&place);
}

/// `rsync -t` goes by length and modification time.
#[test]
fn a_copy_made_in_the_middle_of_an_edit_is_made_again_afterwards() {
    let place = mounted(&[]);
    let path = file(&place, b"0123456789");
    // rsync counts in seconds.
    let time = |seconds| std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    edit(&path).set_modified(time(1000)).expect("set");
    let copy = place.path().join("copy");
    let rsync = || {
        system(
            "rsync",
            &["-t".as_ref(), path.as_os_str(), copy.as_os_str()],
        );
        content(&copy)
    };
    for (by_time, expected) in [(false, b"X123456789"), (true, b"Y123456789")] {
        let editor = edit(&path);
        editor.write_all_at(&expected[..1], 0).expect("written");
        if by_time {
            editor.set_modified(time(2000)).expect("set");
        }
        assert_ne!(rsync(), expected);
        drop(editor);
        assert_eq!(rsync(), expected);
    }
    unmounted_and_clean(&place);
}

// --- mappings -----------------------------------------------------------------------------------

const SIZES: [usize; 5] = [0, 1, 10, 4096, 20_000];

/// What is written to a shared mapping of `length` bytes.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| b'a' + (i % 26) as u8).collect()
}

#[test]
fn what_is_written_through_a_mapping_is_what_is_stored_whatever_was_there() {
    let place = mounted(&[]);
    for old in SIZES {
        for new in SIZES.into_iter().filter(|new| *new > 0) {
            for (how, open) in [("O_TRUNC", replace as fn(&Path) -> File), ("r+", edit)] {
                let path = file(&place, &vec![b'z'; old]);
                let writer = open(&path);
                writer.set_len(new as u64).expect("sized");
                let mut map = Map::shared(&writer, new).expect("mapped");
                // Whoever looks meanwhile changes nothing.
                let mut stat = Command::new("stat");
                let seen = ran(stat.args(["-c", "%s"]).arg(&path));
                assert_eq!(seen.trim(), old.to_string(), "{how}: {new} over {old}");
                map.write(&pattern(new)).expect("no SIGBUS");
                assert_eq!(map.sync(), Ok(()));
                drop(map);
                assert_eq!(closed(writer).map_err(|e| e.to_string()), Ok(()));
                assert!(
                    content(&path) == pattern(new),
                    "{how}: {new} over {old}: {} bytes",
                    content(&path).len()
                );
            }
        }
    }
    unmounted_and_clean(&place);
}

#[test]
fn a_mapping_of_java_over_a_shorter_file_is_stored_whole() {
    let place = mounted(&[]);
    let path = file(&place, b"abc");
    let java = script(
        &place,
        "Mapped.java",
        "import java.nio.channels.FileChannel;
import java.nio.file.Path;
import static java.nio.file.StandardOpenOption.*;
public class Mapped {
    public static void main(String[] a) throws Exception {
        try (var file = FileChannel.open(Path.of(a[0]), READ, WRITE, TRUNCATE_EXISTING)) {
            var map = file.map(FileChannel.MapMode.READ_WRITE, 0, 2000);
            for (int i = 0; i < 2000; i++) map.put(i, (byte) ('a' + i % 26));
            map.force();
        }
    }
}
",
    );
    ran(Command::new("java").arg(java).arg(&path));
    assert!(content(&path) == pattern(2000));
    unmounted_and_clean(&place);
}

/// Grows byte by byte under its mapping, page after page.
#[test]
fn a_mapping_is_stored_that_is_larger_than_the_file_when_it_is_made() {
    const SIZE: usize = 3 * 4096;
    let place = mounted(&[]);
    let path = file(&place, b"0123456789");
    let writer = replace(&path);
    let mut map = Map::shared(&writer, SIZE).expect("mapped");
    let bytes = pattern(SIZE);
    for end in (97..SIZE).step_by(97).chain([SIZE]) {
        nix::fcntl::posix_fallocate(&writer, end as i64 - 1, 1).expect("extended");
        map.write(&bytes[..end]).expect("no SIGBUS");
        assert_eq!(told(&writer), end as u64);
    }
    drop(map);
    drop(writer);
    assert!(content(&path) == bytes);
    unmounted_and_clean(&place);
}

/// By appending from a buffer that is a mapping itself, of the file that is read.
#[test]
fn the_size_that_a_writer_is_told_grows_with_what_it_appends() {
    let place = mounted(&[]);
    let path = file(&place, OLD);
    let source = place.point().join("source");
    std::fs::write(&source, pattern(20_000)).expect("written");
    let source = File::open(source).expect("open");
    let map = Map::private(&source, 20_000).expect("mapped");
    let mut options = OpenOptions::new();
    let writer = options.append(true).custom_flags(libc::O_TRUNC).open(&path);
    let writer = writer.expect("open");
    for count in 1..=5 {
        let wrote = nix::unistd::write(&writer, &map.bytes().expect("no SIGBUS")[..4000]);
        assert_eq!(wrote, Ok(4000));
        assert_eq!(told(&writer), 4000 * count);
    }
    drop((writer, map, source));
    assert!(content(&path) == pattern(20_000)[..4000].repeat(5));
    unmounted_and_clean(&place);
}

/// The kernel throws away what was written to a mapping when another program empties the file.
#[test]
fn a_mapping_that_another_program_cuts_off_is_refused_and_what_is_there_stays() {
    let place = mounted(&[]);
    let path = file(&place, OLD);
    let writer = replace(&path);
    writer.set_len(5000).expect("sized");
    let mut map = Map::shared(&writer, 5000).expect("mapped");
    map.write(&pattern(5000)).expect("no SIGBUS");
    ran(Command::new("bash")
        .args(["-c", "printf other > \"$0\""])
        .arg(&path));
    assert_eq!(content(&path), b"other");
    let refused = writer.sync_all().expect_err("pages are lost");
    assert_eq!(refused.raw_os_error(), Some(libc::EIO));
    drop(map);
    let refused = closed(writer).expect_err("pages are lost");
    assert_eq!(refused.raw_os_error(), Some(libc::EIO));
    assert_eq!(content(&path), b"other");
    unmounted_and_clean(&place);
}

/// Two write in place, one of them by a mapping: the other has nothing whole to publish either.
#[test]
fn who_writes_beside_a_mapping_that_was_cut_off_publishes_nothing_without_it() {
    let place = mounted(&[]);
    let path = file(&place, &pattern(5000));
    let (mapped, other) = (edit(&path), edit(&path));
    let mut map = Map::shared(&mapped, 5000).expect("mapped");
    map.write(&[b'm'; 5000]).expect("no SIGBUS");
    other.write_all_at(b"beside", 0).expect("written");
    ran(Command::new("bash")
        .args(["-c", "printf new > \"$0\""])
        .arg(&path));
    other.write_all_at(b"again", 10).expect("written");
    let refused = other.sync_all().expect_err("pages are lost");
    assert_eq!(refused.raw_os_error(), Some(libc::EIO));
    assert_eq!(content(&path), b"new");
    for writer in [other, mapped] {
        let refused = closed(writer).expect_err("pages are lost");
        assert_eq!(refused.raw_os_error(), Some(libc::EIO));
    }
    drop(map);
    assert_eq!(content(&path), b"new");
    // All of them are gone: who comes now begins anew.
    let later = edit(&path);
    later.write_all_at(b"l", 0).expect("written");
    closed(later).expect("published");
    assert_eq!(content(&path), b"lew");
    unmounted_and_clean(&place);
}

/// Of a file that was never published, too: what is written anew lacks nothing.
#[test]
fn who_writes_anew_what_another_has_mapped_has_it_published() {
    let place = mounted(&[]);
    let path = place.point().join("new");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    let mapped = options.open(&path).expect("made");
    mapped.set_len(5000).expect("sized");
    let mut map = Map::shared(&mapped, 5000).expect("mapped");
    map.write(&[b'm'; 5000]).expect("no SIGBUS");
    for value in ["first", "other"] {
        std::fs::write(&path, value).expect("published");
        assert_eq!(content(&path), value.as_bytes());
    }
    let refused = closed(mapped).expect_err("pages are lost");
    assert_eq!(refused.raw_os_error(), Some(libc::EIO));
    drop(map);
    assert_eq!(content(&path), b"other");
    unmounted_and_clean(&place);
}

// --- readers ------------------------------------------------------------------------------------

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
