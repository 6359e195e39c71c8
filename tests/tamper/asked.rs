//! What is spoiled under a mount is told by whatever asks for it, and by nothing else.

use rusqlite::Connection;
use secretfs::vault::{Kind, ROOT};

use crate::sample::write;
use crate::support::layer::{Layer, Served};

const EIO: secretfs::fs::Errno = secretfs::fs::Errno(libc::EIO);

/// A mount of a directory with `a`, `b` and `c`, of which nothing was asked yet, and their numbers.
fn mounted(layer: &Layer) -> (Served, u64, [u64; 3]) {
    let served = layer.open();
    let directory = served.make(ROOT, b"d", Kind::Directory).expect("made").ino;
    let inos = ["a", "b", "c"].map(|name| write(&served, directory, name, name.as_bytes()));
    served.finish();
    (layer.open(), directory, inos)
}

fn spoil(layer: &Layer, statement: &str, node: u64) {
    let evil = Connection::open(layer.vault().join("vault.db")).expect("a database");
    let changed = evil.execute(statement, [node as i64]).expect("changed");
    assert_eq!(changed, 1, "{statement}");
}

#[test]
fn a_spoiled_node_hides_no_names_and_is_told_with_its_attributes() {
    let layer = Layer::new();
    let (served, directory, [a, b, c]) = mounted(&layer);
    let statement = "UPDATE node SET value = zeroblob(length(value)) WHERE id = ?1";
    spoil(&layer, statement, b);
    let names = [(b"a", a), (b"b", b), (b"c", c)].map(|(name, ino)| (name.to_vec(), ino));
    assert_eq!(served.list(directory), Ok(names.to_vec()));

    let fh = served.0.open_directory(directory).expect("opened");
    let mut shown = Vec::new();
    let read = served.0.read_directory_plus(directory, fh, 2, |entry| {
        let attr = served.0.entry_attr(directory, entry);
        shown.push((entry.ino, attr.map(|attr| attr.ino)));
        false
    });
    served.0.release_directory(fh);
    shown.sort_by_key(|(ino, _)| *ino);
    assert_eq!(read, Ok(()));
    assert_eq!(shown, [(a, Ok(a)), (b, Err(EIO)), (c, Ok(c))]);

    assert_eq!(served.lookup(directory, b"b"), Err(EIO));
    assert_eq!(served.lookup(directory, b"c").map(|attr| attr.ino), Ok(c));
    served.finish();
}

#[test]
fn a_spoiled_content_is_told_by_reading_it_and_not_by_looking_it_up() {
    let layer = Layer::new();
    let (served, directory, [a, b, c]) = mounted(&layer);
    let statement = "UPDATE chunk SET sealed = zeroblob(length(sealed)) WHERE node = ?1";
    spoil(&layer, statement, b);
    spoil(&layer, "DELETE FROM chunk WHERE node = ?1", c);
    for (name, ino) in [(b"a", a), (b"b", b), (b"c", c)] {
        assert_eq!(served.lookup(directory, name).map(|attr| attr.ino), Ok(ino));
    }
    assert_eq!(served.read_all(a), Ok(b"a".to_vec()));
    assert_eq!(served.read_all(b), Err(EIO));
    assert_eq!(served.read_all(c), Err(EIO));
    served.finish();
}
