//! The texts of control files. Readers of equal texts share one, and a user who got a length from
//! `stat` then reads a text of that length.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::fs::Caller;
use crate::keyring::HistoryHead;
use crate::sync::{Mutex, MutexGuard, Rank};

use super::directory::{File, Text};

/// The time in which a user who got a length can open the text of that length.
const AFTER_PROMISE: Duration = Duration::from_secs(1);
/// Most opens to remember for `fstat`.
const REMEMBERED: usize = 64;

/// The texts, as the module describes. No thread renders while it holds this lock.
pub(super) struct Texts(Mutex<State>);

impl Default for Texts {
    fn default() -> Self {
        Self(Mutex::new(Rank::ControlTexts, State::default()))
    }
}

#[derive(Default)]
struct State {
    /// The newest text of each file, full (`true`) or public.
    newest: HashMap<(File, bool), Text>,
    /// The rendered history, and the head of the history that it ends at.
    history: Option<(HistoryHead, Text)>,
    /// Lengths that commanders got, and whose text they have not opened. There are at most three
    /// commanders.
    promised: Vec<Promise>,
    opened: VecDeque<OpenText>,
}

struct Promise {
    uid: u32,
    file: File,
    text: Text,
    at: Instant,
}

struct OpenText {
    by: Caller,
    file: File,
    /// Gone when the file is closed.
    text: Weak<Vec<u8>>,
}

impl Texts {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// A text with these bytes: the newest, if it is equal.
    pub(super) fn share(&self, file: File, in_full: bool, bytes: Vec<u8>) -> Text {
        let mut state = self.state();
        match state.newest.get(&(file, in_full)) {
            Some(newest) if **newest == bytes => Arc::clone(newest),
            _ => {
                let text = Arc::new(bytes);
                state.newest.insert((file, in_full), Arc::clone(&text));
                text
            }
        }
    }

    /// The length of the newest text, without rendering one.
    pub(super) fn newest_length(&self, file: File, in_full: bool) -> u64 {
        let state = self.state();
        let newest = state.newest.get(&(file, in_full));
        newest.map_or(0, |text| text.len() as u64)
    }

    /// The rendered history that ends at `head`, if there is one.
    pub(super) fn history(&self, head: &HistoryHead) -> Option<Text> {
        let state = self.state();
        let known = state.history.as_ref().filter(|(known, _)| known == head);
        known.map(|(_, text)| Arc::clone(text))
    }

    pub(super) fn note_history(&self, head: HistoryHead, text: &Text) {
        self.state().history = Some((head, Arc::clone(text)));
    }

    /// The text whose length a user just got.
    pub(super) fn promised(&self, uid: u32, file: File) -> Option<Text> {
        let state = self.state();
        let promised = state.promised.iter();
        promised
            .filter(|one| one.uid == uid && one.file == file)
            .find(|one| one.at.elapsed() < AFTER_PROMISE)
            .map(|one| Arc::clone(&one.text))
    }

    /// Notes that a user gets the length of `text`.
    pub(super) fn promise(&self, uid: u32, file: File, text: &Text) {
        let mut state = self.state();
        state
            .promised
            .retain(|one| one.uid != uid || one.file != file);
        state.promised.push(Promise {
            uid,
            file,
            text: Arc::clone(text),
            at: Instant::now(),
        });
    }

    /// Takes the text whose length a user just got; the next open gets another.
    pub(super) fn take_promised(&self, uid: u32, file: File) -> Option<Text> {
        let promised = self.promised(uid, file);
        let mut state = self.state();
        state
            .promised
            .retain(|one| one.uid != uid || one.file != file);
        promised
    }

    /// Forgets the given lengths, because the files now show something else.
    pub(super) fn forget_promises(&self) {
        self.state().promised.clear();
    }

    /// Notes that `by` opened `text`.
    pub(super) fn note_opened(&self, by: Caller, file: File, text: &Text) {
        let mut state = self.state();
        if state.opened.len() >= REMEMBERED {
            state.opened.pop_front();
        }
        let text = Arc::downgrade(text);
        state.opened.push_back(OpenText { by, file, text });
    }

    /// The text that this thread, or else this user, opened last and has not closed: `fstat` does
    /// not tell which descriptor it means.
    pub(super) fn opened_by(&self, caller: Caller, file: File) -> Option<Text> {
        let state = self.state();
        let newest_first = || {
            let of_file = state.opened.iter().rev().filter(|open| open.file == file);
            of_file.filter(|open| open.by.uid == caller.uid)
        };
        newest_first()
            .filter(|open| open.by.pid == caller.pid)
            .find_map(|open| open.text.upgrade())
            .or_else(|| newest_first().find_map(|open| open.text.upgrade()))
    }
}
