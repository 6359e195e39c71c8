//! The records of a transaction: each is compared with its mark before it is returned, and every
//! change is noted. All records that are served, and all changes of a job, go through this. Only
//! counts, whose sums show what is current, and readers of keyring and state do not.

mod records;

use std::collections::HashMap;

use crate::store::{NodeId, Read, ReadRecords as _, Record, StoreError, StoreErrorKind};

use super::super::VaultError;
use super::mark::{Age, Mark};
use super::place::{Doubt, Place};
use super::{Changed, Current};

type CountNames<'a> = &'a dyn Fn(&mut dyn Read, NodeId, &Record) -> Result<(), VaultError>;

/// The means by which a read-only mount accepts a record that it does not know.
#[derive(Clone, Copy)]
pub(in crate::vault) struct Following<'a> {
    /// Whether a node or a version is authentic. Its own fields are not trusted before.
    pub(in crate::vault) is_authentic: &'a dyn Fn(&Place, &Record) -> bool,
    /// Counts the names of a directory against the sum in its record, and takes up their marks.
    pub(in crate::vault) count_names: CountNames<'a>,
    /// No other thread takes up marks during the transaction.
    pub(in crate::vault) alone: bool,
}

/// The records of a transaction, as the module describes.
pub(in crate::vault) struct Checked<'a, R: ?Sized> {
    current: &'a Current,
    records: &'a mut R,
    following: Option<Following<'a>>,
    /// Nothing is compared, because the caller counts.
    is_raw: bool,
    /// The changes of this transaction.
    changed: HashMap<Place, Option<Mark>>,
    /// The first record that is not as it should be.
    pub(in crate::vault) doubt: Option<Doubt>,
    /// The error of a count of names.
    pub(in crate::vault) failure: Option<VaultError>,
}

impl<'a, R: Read + ?Sized> Checked<'a, R> {
    /// For a transaction in a mount for writing.
    pub(in crate::vault) fn new(current: &'a Current, records: &'a mut R) -> Self {
        Self {
            current,
            records,
            following: None,
            is_raw: false,
            changed: HashMap::new(),
            doubt: None,
            failure: None,
        }
    }

    /// For a transaction in a read-only mount.
    pub(in crate::vault) fn following(
        current: &'a Current,
        records: &'a mut R,
        following: Following<'a>,
    ) -> Self {
        Self {
            following: Some(following),
            ..Self::new(current, records)
        }
    }

    /// The changes, for [`Current::commit`].
    pub(in crate::vault) fn into_changed(self) -> Vec<Changed> {
        self.changed.into_iter().collect()
    }

    fn compares(&self) -> bool {
        !self.is_raw && self.current.is_on()
    }

    fn known(&self, place: &Place) -> Option<Mark> {
        match self.changed.get(place) {
            Some(changed) => *changed,
            None => self.current.known(place),
        }
    }

    fn doubt(&mut self, place: Place, why: &'static str) -> StoreError {
        let doubt = Doubt::new(&place, why);
        let error = StoreError::from(&doubt);
        self.doubt.get_or_insert(doubt);
        error
    }

    fn compare_keyed(&mut self, place: Place, found: Option<&Record>) -> Result<(), StoreError> {
        if !self.compares() {
            return Ok(());
        }
        let mark = found.map(|record| self.current.mark_of(&place, record));
        self.compare(place, mark, found)
    }

    fn compare(
        &mut self,
        place: Place,
        found: Option<Mark>,
        record: Option<&Record>,
    ) -> Result<(), StoreError> {
        let known = self.known(&place);
        let why = match (known, found) {
            (None, None) => return Ok(()),
            (Some(known), Some(found)) if known.is(found) => return Ok(()),
            _ if let Some(following) = self.following => {
                return self.follow(following, place, (known, found), record);
            }
            (Some(_), None) => "is missing",
            (None, Some(_)) => "was removed, and is there again",
            (Some(_), Some(_)) => "is not the one that was stored last",
        };
        Err(self.doubt(place, why))
    }

    /// Takes up a record that the writer may have written, and no other.
    fn follow(
        &mut self,
        following: Following<'a>,
        place: Place,
        (known, found): (Option<Mark>, Option<Mark>),
        record: Option<&Record>,
    ) -> Result<(), StoreError> {
        if let Place::Entry(directory, _) = place {
            return self.count_names(following, directory);
        }
        // If the writer has removed the record, callers that need it find it missing.
        let Some((found, record)) = found.zip(record) else {
            return Ok(());
        };
        let age = known.map(|known| found.age_beside(known));
        let why = match (place, age) {
            (_, Some(Age::Older | Age::Neither)) => "is older than what was read or counted before",
            (Place::Node(_) | Place::Entry(..), Some(Age::Same)) => {
                "is another than was read or counted before"
            }
            (Place::Node(id), None) if self.current.was_given_out(id) => {
                "was removed, and is there again"
            }
            // A version that was begun and given up may have had the same number. It never had all
            // its chunks.
            (_, None | Some(Age::Newer)) | (Place::Version(..), Some(Age::Same)) => {
                // Opening a record refuses one that is not authentic.
                if (following.is_authentic)(&place, record) {
                    self.current.take_up(&place, found, following.alone);
                }
                return Ok(());
            }
        };
        Err(self.doubt(place, why))
    }

    /// A name differs from the counted one: the writer has changed the directory, or an attacker. A
    /// count of its names shows which.
    fn count_names(
        &mut self,
        following: Following<'a>,
        directory: NodeId,
    ) -> Result<(), StoreError> {
        let Some(record) = self.node(directory)? else {
            return Ok(());
        };
        let mut raw = Checked {
            is_raw: true,
            ..Checked::new(self.current, &mut *self.records)
        };
        (following.count_names)(&mut raw, directory, &record).map_err(|error| {
            let corrupt = StoreError::new(StoreErrorKind::Corrupt, &error);
            self.failure.get_or_insert(error);
            corrupt
        })
    }

    fn is_current(&self, place: &Place, entry: Option<&[u8]>) -> bool {
        let mark = entry.map(|value| self.current.mark_of_entry(value));
        match (self.known(place), mark) {
            (None, None) => true,
            (Some(known), Some(mark)) => known.is(mark),
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    fn must_be_counted(&mut self, place: Place, entry: Option<&[u8]>) -> Result<(), StoreError> {
        match self.is_current(&place, entry) {
            true => Ok(()),
            false => Err(self.doubt(place, "is not the one that was counted")),
        }
    }

    fn note(&mut self, place: Place, mark: Option<Mark>) {
        if !self.current.is_off() {
            self.changed.insert(place, mark);
        }
    }

    fn note_keyed(&mut self, place: Place, record: &Record) {
        let mark = self.current.mark_of(&place, record);
        self.note(place, Some(mark));
    }

    /// Whether a record to exchange still is the one stored last; false if another has its place by
    /// now.
    ///
    /// # Errors
    /// When it is in its place, but is stale.
    fn may_exchange(&mut self, place: Place, old: &Record) -> Result<bool, StoreError> {
        if !self.compares() {
            return Ok(true);
        }
        let mark = self.current.mark_of(&place, old);
        if self.known(&place).is_some_and(|known| known.is(mark)) {
            return Ok(true);
        }
        let stored = match place {
            Place::Node(id) => self.records.node(id)?,
            Place::Version(node, version) => self.records.version(node, version)?,
            Place::Entry(..) => None,
        };
        match stored.as_ref() == Some(old) {
            true => Err(self.doubt(place, "is not the one that was stored last")),
            false => Ok(false),
        }
    }
}
