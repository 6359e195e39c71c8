//! Open control files. Each user has a limit of their own, so that no user is refused because of
//! another's files: on the number of open files, and on the bytes of distinct texts. The longest
//! text does not count: a user can open a history that alone exceeds the limit.

use std::collections::HashMap;

use crate::fs::{Errno, FileHandle};

use super::directory::Text;

/// Most control files that one user may have open.
pub(super) const MAX_HANDLES: usize = 1024;
/// Most bytes of distinct texts that one user may have open, besides the longest.
pub(super) const MAX_BYTES: usize = 4 << 20;
/// A table with fewer entries keeps its memory.
const FEW: usize = 64;

/// An open control file.
#[derive(Clone)]
pub(super) struct OpenControl {
    pub(super) text: Text,
    /// The user who opened it.
    pub(super) uid: u32,
    /// Whether it takes commands.
    pub(super) commands: bool,
    /// The answer to the last command written through it, which reads return from then on. Its
    /// bytes do not count: it is as short as a command, and the number of handles is limited.
    pub(super) answer: Option<Text>,
}

impl OpenControl {
    /// The text that a read returns.
    pub(super) fn shown(&self) -> &Text {
        self.answer.as_ref().unwrap_or(&self.text)
    }
}

/// All open control files.
#[derive(Default)]
pub(super) struct Handles {
    all: HashMap<FileHandle, OpenControl>,
    users: HashMap<u32, Held>,
}

/// The open control files of one user.
#[derive(Default)]
struct Held {
    handles: usize,
    bytes: usize,
    /// Each text, by its address, which stays unique while handles hold it.
    texts: HashMap<usize, Shared>,
}

/// An open text.
struct Shared {
    handles: usize,
    length: usize,
}

/// The limit on bytes; tests lower it.
fn most_bytes() -> usize {
    fail::fail_point!("control-bytes", |number| {
        number.and_then(|n| n.parse().ok()).unwrap_or(MAX_BYTES)
    });
    MAX_BYTES
}

fn address(text: &Text) -> usize {
    std::sync::Arc::as_ptr(text) as usize
}

impl Handles {
    /// Adds an open file.
    ///
    /// # Errors
    /// `EMFILE` when its user has too many open, or too many bytes.
    pub(super) fn add(&mut self, fh: FileHandle, open: OpenControl) -> Result<(), Errno> {
        let held = self.users.entry(open.uid).or_default();
        if held.handles >= MAX_HANDLES {
            return Err(Errno(libc::EMFILE));
        }
        let (place, length) = (address(&open.text), open.text.len());
        let is_new = !held.texts.contains_key(&place);
        if is_new {
            let lengths = held.texts.values().map(|text| text.length);
            let longest = lengths.fold(length, usize::max);
            if held.bytes + length - longest > most_bytes() {
                return Err(Errno(libc::EMFILE));
            }
            held.bytes += length;
        }
        held.handles += 1;
        let text = held
            .texts
            .entry(place)
            .or_insert(Shared { handles: 0, length });
        text.handles += 1;
        self.all.insert(fh, open);
        Ok(())
    }

    pub(super) fn get(&self, fh: FileHandle) -> Option<OpenControl> {
        self.all.get(&fh).cloned()
    }

    /// Notes the answer to a command, unless the one that it came through is closed.
    pub(super) fn note_answer(&mut self, fh: FileHandle, answer: Text) {
        if let Some(open) = self.all.get_mut(&fh) {
            open.answer = Some(answer);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Removes an open file.
    pub(super) fn remove(&mut self, fh: FileHandle) {
        let Some(open) = self.all.remove(&fh) else {
            return;
        };
        let place = address(&open.text);
        if let Some(held) = self.users.get_mut(&open.uid) {
            held.handles = held.handles.saturating_sub(1);
            if let Some(text) = held.texts.get_mut(&place) {
                text.handles -= 1;
                if text.handles == 0 {
                    held.texts.remove(&place);
                    held.bytes = held.bytes.saturating_sub(open.text.len());
                }
            }
            if held.handles == 0 {
                self.users.remove(&open.uid);
            }
        }
        if self.all.capacity() > FEW && self.all.len() * 4 < self.all.capacity() {
            self.all.shrink_to(self.all.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn open(uid: u32, text: &Text) -> OpenControl {
        OpenControl {
            text: Arc::clone(text),
            uid,
            commands: false,
            answer: None,
        }
    }

    #[test]
    fn a_user_who_has_too_many_open_is_refused_and_nobody_else_is() {
        let mut handles = Handles::default();
        let text = Arc::new(vec![0; 2000]);
        for fh in 0..MAX_HANDLES as u64 {
            assert_eq!(handles.add(fh, open(1, &text)), Ok(()));
        }
        assert_eq!(handles.add(9999, open(1, &text)), Err(Errno(libc::EMFILE)));
        assert_eq!(handles.add(9999, open(2, &text)), Ok(()));
        handles.remove(0);
        assert_eq!(handles.add(0, open(1, &text)), Ok(()));
        for fh in 0..10_000 {
            handles.remove(fh);
        }
        assert_eq!(handles.len(), 0);
        assert!(handles.users.is_empty() && handles.all.capacity() <= FEW);
    }

    #[test]
    fn different_texts_are_counted_in_bytes_and_the_same_one_once() {
        let mut handles = Handles::default();
        let long = || Arc::new(vec![0; MAX_BYTES / 2 + 1]);
        let (first, second, third) = (long(), long(), long());
        for fh in 0..10 {
            assert_eq!(handles.add(fh, open(1, &first)), Ok(()));
        }
        assert_eq!(handles.add(10, open(1, &second)), Ok(()));
        assert_eq!(handles.add(11, open(1, &third)), Err(Errno(libc::EMFILE)));
        assert_eq!(handles.add(11, open(2, &third)), Ok(()));
        (0..10).for_each(|fh| handles.remove(fh));
        assert_eq!(handles.add(0, open(1, &third)), Ok(()));
    }

    #[test]
    fn a_text_that_is_longer_than_all_may_be_is_shown_whatever_else_is_open() {
        let mut handles = Handles::default();
        let text = |length: usize| Arc::new(vec![0; length]);
        let (short, longest) = (text(2000), text(2 * MAX_BYTES));
        assert_eq!(handles.add(0, open(1, &short)), Ok(()));
        assert_eq!(handles.add(1, open(1, &longest)), Ok(()));
        assert_eq!(handles.add(2, open(1, &text(2000))), Ok(()));
        // Two such texts are too much.
        let longer = text(3 * MAX_BYTES);
        assert_eq!(handles.add(3, open(1, &longer)), Err(Errno(libc::EMFILE)));
        handles.remove(1);
        assert_eq!(handles.add(3, open(1, &longer)), Ok(()));
    }
}
