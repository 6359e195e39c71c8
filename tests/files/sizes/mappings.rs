//! What is written through mappings.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use super::{
    OLD, content, edit, file, mounted, pattern, ran, replace, script, told, unmounted_and_clean,
};
use crate::support::map::Map;
use crate::support::tree::closed;

const SIZES: [usize; 5] = [0, 1, 10, 4096, 20_000];

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
