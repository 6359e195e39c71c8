//! Directories that both are asked for, piece by piece.

use secretfs::fs::DirectoryEntry;
use secretfs::vault::Kind;

use super::{Both, Request};
use crate::support::reference::stream::Stream;
use crate::support::reference::{Fh, Ino};

impl Both {
    /// At most `count` entries from `position` on; the dots are checked here.
    fn piece(&self, ino: Ino, fh: Fh, position: u64, count: usize) -> Vec<DirectoryEntry> {
        let mut entries: Vec<DirectoryEntry> = Vec::new();
        let read = self.fs.0.read_directory(ino, fh, position, |entry| {
            if entries.len() == count {
                return true;
            }
            entries.push(entry.clone());
            false
        });
        assert_eq!(read, Ok(()));
        entries
    }

    pub(super) fn ask_directory(&mut self, request: &Request) -> Option<()> {
        match request {
            Request::OpenDirectory(index) => {
                let ino = self.directory(index);
                let fh = self.fs.0.open_directory(ino).unwrap();
                self.reference.directories.insert(fh, ino);
                self.streams.insert(fh, Stream::default());
                self.note_names();
            }
            Request::ReadDirectory(index, count) => {
                let fh = self.stream(index)?;
                let ino = self.reference.directories[&fh];
                let position = self.streams[&fh].position;
                let entries = self.piece(ino, fh, position, *count);
                let stream = self.streams.get_mut(&fh).unwrap();
                for entry in &entries {
                    stream.position = entry.position;
                    *stream.seen.entry(entry.name.clone()).or_default() += 1;
                }
                if entries.len() < *count {
                    stream.expect_complete();
                    *stream = Stream::default();
                    self.note_names();
                }
            }
            Request::CloseDirectory(index) => {
                let fh = self.stream(index)?;
                self.fs.0.release_directory(fh);
                self.streams.remove(&fh);
                self.reference.close_directory(fh);
            }
            Request::List(index, count, seek) => {
                let ino = self.directory(index);
                self.expect_list(ino, *count, *seek);
            }
            other => unreachable!("{other:?} is asked elsewhere"),
        }
        Some(())
    }

    /// Reads a whole directory in pieces, each with a handle of its own if `seek`.
    pub(super) fn expect_list(&self, ino: Ino, count: usize, seek: bool) {
        let mut fh = self.fs.0.open_directory(ino).unwrap();
        let mut found = std::collections::BTreeMap::new();
        let mut position = 0;
        loop {
            let entries = self.piece(ino, fh, position, count);
            for entry in &entries {
                position = entry.position;
                let twice = found.insert(entry.name.clone(), (entry.ino, entry.kind));
                assert_eq!(twice, None, "a name is listed twice");
            }
            if entries.len() < count {
                break;
            }
            if seek {
                let last = std::mem::replace(&mut fh, self.fs.0.open_directory(ino).unwrap());
                self.fs.0.release_directory(last);
            }
        }
        self.fs.0.release_directory(fh);
        let nodes = &self.reference.nodes;
        let entries = nodes[&ino].entries.iter();
        let mut expected: std::collections::BTreeMap<_, _> = entries
            .map(|(name, ino)| (name.clone(), (*ino, nodes[ino].kind)))
            .collect();
        assert_eq!(found.remove(&b"."[..]), Some((ino, Kind::Directory)));
        expected.remove(&b"."[..]);
        assert!(found.remove(&b".."[..]).is_some());
        assert_eq!(found, expected);
    }

    /// Directories that are being read learn which names there are.
    pub(super) fn note_names(&mut self) {
        for (fh, stream) in &mut self.streams {
            let entries = &self.reference.nodes[&self.reference.directories[fh]].entries;
            stream.note(entries.keys());
        }
    }
}
