//! What readers see of drafts and versions.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use super::{SOON, edit, file, mounted, unmounted_and_clean, versions};
use crate::support::process::wait_for;
use crate::support::tree::closed;

#[test]
fn stat_shows_what_is_published_to_all_but_who_writes() {
    let place = mounted(&[]);
    let path = file(&place, b"0123456789");
    // Of another process.
    let size = || {
        let stat = Command::new("stat").args(["-c", "%s"]).arg(&path).output();
        let said = String::from_utf8(stat.expect("it runs").stdout).expect("UTF-8");
        said.trim().parse::<u64>().expect("a number")
    };
    let mut replacer = File::create(&path).expect("open");
    replacer.write_all(b"new").expect("written");
    assert_eq!((size(), replacer.metadata().expect("stat").len()), (10, 3));
    drop(replacer);
    assert_eq!(size(), 3);
    let editor = edit(&path);
    editor.write_all_at(b"end", 20).expect("written");
    assert_eq!((size(), editor.metadata().expect("stat").len()), (3, 23));
    drop(editor);
    assert_eq!(size(), 23);
    unmounted_and_clean(&place);
}

#[test]
fn a_reader_keeps_the_version_of_its_first_read_and_moves_on_at_either_end() {
    let place = mounted(&[]);
    let path = file(&place, b"0123456789");
    let unread = File::open(&path).expect("open");
    let mut reader = File::open(&path).expect("open");
    let mut next = |count: usize| {
        let mut bytes = vec![0; count];
        let count = reader.read(&mut bytes).expect("read");
        bytes.truncate(count);
        (
            String::from_utf8(bytes).expect("UTF-8"),
            reader.stream_position().expect("a position"),
        )
    };
    assert_eq!(next(4).0, "0123");
    std::fs::write(&path, "abcdefghijKLM").expect("replaced");
    assert_eq!(next(4).0, "4567");
    assert_eq!(next(4).0, "89");
    // The end first, for who reads the whole; what follows, for who comes back for more.
    assert_eq!(next(4), (String::new(), 10));
    wait_for("what follows", SOON, || {
        std::thread::sleep(Duration::from_millis(300));
        next(4) == ("KLM".into(), 13)
    });
    // Who has not read yet may have asked for the length: that is of what was there when it was opened.
    let mut bytes = [0; 2];
    unread.read_exact_at(&mut bytes, 2).expect("read");
    assert_eq!(&bytes, b"23");
    std::fs::write(&path, "9876543210").expect("replaced");
    unread.read_exact_at(&mut bytes, 4).expect("read");
    assert_eq!(&bytes, b"45");
    // It began elsewhere: the beginning belongs to the rest. After that it begins anew.
    unread.read_exact_at(&mut bytes, 0).expect("read");
    assert_eq!(&bytes, b"01");
    unread.read_exact_at(&mut bytes, 0).expect("read");
    assert_eq!(&bytes, b"98");
    drop((reader, unread));
    unmounted_and_clean(&place);
}

#[test]
fn a_reader_follows_edits_in_place() {
    let place = mounted(&[]);
    let path = file(&place, b"0123456789");
    let mut reader = File::open(&path).expect("open");
    let mut bytes = [0; 4];
    reader.read_exact(&mut bytes).expect("read");
    let editor = edit(&path);
    editor.write_all_at(b"X", 5).expect("written");
    drop(editor);
    reader.read_exact(&mut bytes).expect("read");
    assert_eq!(&bytes, b"4X67");
    // A replacement, and edits to what it brought: the reader is not of that line.
    std::fs::write(&path, "abcdefghij").expect("replaced");
    let editor = edit(&path);
    editor.write_all_at(b"Y", 9).expect("written");
    drop(editor);
    reader.read_exact(&mut bytes[..2]).expect("read");
    assert_eq!(&bytes[..2], b"89");
    drop(reader);
    unmounted_and_clean(&place);
}

/// What was being edited when the file was replaced is no edit of what replaced it.
#[test]
fn who_reads_a_replacement_is_not_led_into_an_edit_of_what_it_replaced() {
    const SIZE: usize = 300 << 10;
    let place = mounted(&[]);
    let path = file(&place, &vec![b'a'; SIZE]);
    let editor = edit(&path);
    editor.write_all_at(b"edited", 0).expect("written");
    std::fs::write(&path, vec![b'c'; SIZE]).expect("replaced");
    let mut reader = File::open(&path).expect("open");
    let mut bytes = vec![0; 1000];
    reader.read_exact(&mut bytes).expect("read");
    closed(editor).expect("published");
    reader.read_to_end(&mut bytes).expect("read");
    assert!(bytes[..SIZE] == vec![b'c'; SIZE]);
    drop(reader);
    let now = std::fs::read(&path).expect("readable");
    assert!(now.starts_with(b"editedaaa") && now.len() == SIZE);
    unmounted_and_clean(&place);
}

#[test]
fn an_old_version_that_is_being_read_stays_until_it_is_let_go() {
    const SIZE: usize = 300 << 10;
    let place = mounted(&[]);
    let path = file(&place, &vec![b'a'; SIZE]);
    assert_eq!(versions(&place), 1);
    let mut reader = File::open(&path).expect("open");
    let mut bytes = vec![0; 1000];
    reader.read_exact(&mut bytes).expect("read");
    for letter in *b"bcdef" {
        std::fs::write(&path, vec![letter; SIZE]).expect("replaced");
    }
    assert_eq!(versions(&place), 2);
    reader.read_to_end(&mut bytes).expect("read");
    // The read at the end has moved on; what was read before is of one piece.
    assert!(bytes[..SIZE] == vec![b'a'; SIZE]);
    drop(reader);
    wait_for("the old version to go", SOON, || versions(&place) == 1);
    // So does that of a file without a name.
    let reader = File::open(&path).expect("open");
    let mut byte = [0];
    reader.read_exact_at(&mut byte, 0).expect("read");
    std::fs::remove_file(&path).expect("removed");
    assert_eq!(versions(&place), 1);
    reader
        .read_exact_at(&mut byte, SIZE as u64 - 1)
        .expect("read");
    assert_eq!(&byte, b"f");
    drop(reader);
    wait_for("the version to go", SOON, || versions(&place) == 0);
    unmounted_and_clean(&place);
}

#[test]
fn a_file_is_gone_from_the_store_when_its_last_name_and_its_last_handle_are() {
    let place = mounted(&[]);
    for name in ["one", "other", "third"] {
        std::fs::write(place.point().join(name), name).expect("written");
    }
    assert_eq!(versions(&place), 3);
    let rename = |from: &str, to: &str| {
        std::fs::rename(place.point().join(from), place.point().join(to)).expect("renamed");
    };
    rename("one", "other");
    wait_for("the replaced file to go", SOON, || versions(&place) == 2);
    std::fs::remove_file(place.point().join("third")).expect("removed");
    wait_for("the removed file to go", SOON, || versions(&place) == 1);
    unmounted_and_clean(&place);
}
