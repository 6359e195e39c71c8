//! The texts of control files. Readers of equal texts share one; and a user who was told a length then
//! reads a text of that length.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::fs::Caller;
use crate::keyring::HistoryHead;
use crate::sync::{Mutex, MutexGuard, Rank};

use super::directory::{File, Text};

/// A user who was told a length opens that text within this time.
const AFTER_PROMISE: Duration = Duration::from_secs(1);
/// Opens that are remembered, for `fstat`.
const REMEMBERED: usize = 64;

/// See the module. Never locked while something is rendered.
pub(super) struct Texts(Mutex<State>);

impl Default for Texts {
    fn default() -> Self {
        Self(Mutex::new(Rank::ControlTexts, State::default()))
    }
}

#[derive(Default)]
struct State {
    /// The newest text of each file: in full, or its public part.
    newest: HashMap<(File, bool), Text>,
    /// The history as it is shown, up to where it is.
    history: Option<(HistoryHead, Text)>,
    /// Lengths that were told, and not opened since. Only of those who may command: they are three.
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
    /// Gone when it is closed.
    text: Weak<Vec<u8>>,
}

impl Texts {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// The text of these bytes: the newest, if that has the same.
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

    /// The history that ends at `head`, if that was shown before.
    pub(super) fn history(&self, head: &HistoryHead) -> Option<Text> {
        let state = self.state();
        let known = state.history.as_ref().filter(|(known, _)| known == head);
        known.map(|(_, text)| Arc::clone(text))
    }

    pub(super) fn note_history(&self, head: HistoryHead, text: &Text) {
        self.state().history = Some((head, Arc::clone(text)));
    }

    /// The text whose length a user was just told.
    pub(super) fn promised(&self, uid: u32, file: File) -> Option<Text> {
        let state = self.state();
        let promised = state.promised.iter();
        promised
            .filter(|one| one.uid == uid && one.file == file)
            .find(|one| one.at.elapsed() < AFTER_PROMISE)
            .map(|one| Arc::clone(&one.text))
    }

    /// A user is told the length of `text`.
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

    /// Takes the text whose length a user was just told; the next open gets another.
    pub(super) fn take_promised(&self, uid: u32, file: File) -> Option<Text> {
        let promised = self.promised(uid, file);
        let mut state = self.state();
        state
            .promised
            .retain(|one| one.uid != uid || one.file != file);
        promised
    }

    /// Something else is shown from now on.
    pub(super) fn forget_promises(&self) {
        self.state().promised.clear();
    }

    /// `by` has opened `text`.
    pub(super) fn note_opened(&self, by: Caller, file: File, text: &Text) {
        let mut state = self.state();
        if state.opened.len() >= REMEMBERED {
            state.opened.pop_front();
        }
        let text = Arc::downgrade(text);
        state.opened.push_back(OpenText { by, file, text });
    }

    /// The text that this thread, or else this user, has opened last and not closed: `fstat` does not say
    /// which descriptor it means.
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
