//! The embedded KMS: keys in a directory of their own, for use without a cloud account.
//!
//! It behaves like AWS KMS: keys have states, versions of their material, and a waiting period
//! before deletion, and a wrap is bound to an encryption context. Every call reads the key's file
//! again, so a change of state takes effect at once.
//!
//! A key that systemd passes as a credential takes precedence over the one in the directory.
//!
//! It must never show key material in an error, a log line or a `Debug` form, replace a key that
//! another process created, or use a directory that other users can read.

use std::path::{Path, PathBuf};
use std::time::Duration;

mod credential;
mod dir;
mod place;
mod record;
mod refusal;
mod seal;
mod service;

pub use credential::CREDENTIALS_VARIABLE;
use credential::Credentials;
use dir::{Created, DirLock, KeyDir};
pub use place::{DIR_VARIABLE, usual_dir};
pub use record::LocalState;
use record::{MAX_VERSIONS, Material, Record, now};
use refusal::{fail, pending, serving};

use super::{KeyUri, KmsError, KmsErrorKind, KmsSettings};
use crate::crypto::SecretKey;

/// The embedded KMS.
#[derive(Clone, Debug)]
pub struct LocalKms {
    dir: PathBuf,
    /// The directory of a unit's credentials, whose keys take precedence.
    credentials: Option<Credentials>,
    /// Limit on waiting for another process that changes keys.
    lock_wait: Duration,
}

/// A local key's public properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalKeyInfo {
    /// Its name: the part after `local-kms://`.
    pub name: String,
    /// Whether the key can be used.
    pub state: LocalState,
    /// When it was created, in seconds since 1970.
    pub created: u64,
    /// Its newest version, which wraps. All versions unwrap.
    pub version: u32,
    /// When that version was made, in seconds since 1970.
    pub rotated: u64,
}

impl LocalKms {
    /// Determines the directory, and that of a unit's credentials, without touching either.
    ///
    /// # Errors
    /// `Configuration`, if neither settings nor environment name a directory.
    pub fn new(settings: &KmsSettings) -> Result<Self, KmsError> {
        Ok(Self {
            dir: place::of(settings)?,
            credentials: Credentials::named(std::env::var_os(CREDENTIALS_VARIABLE))?,
            lock_wait: settings.total_timeout,
        })
    }

    /// The absolute path of the directory, which may not exist yet.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory that has a file for the key `name`: that of the credentials, or that of the
    /// local KMS; `None` if neither has.
    pub fn directory_of(&self, name: &str) -> Option<&Path> {
        self.place_of(name).map(|(directory, _)| directory)
    }

    /// The file of the key `name` in that directory.
    pub fn file_of(&self, name: &str) -> Option<PathBuf> {
        self.place_of(name).map(|(_, file)| file)
    }

    /// The directory and the file of the key `name`; `None` if neither directory has one.
    fn place_of(&self, name: &str) -> Option<(&Path, PathBuf)> {
        let credential = self.credentials.as_ref().map(|c| (c.path(), c.file(name)));
        let own = (self.dir(), self.dir.join(dir::file_name(name)));
        let mut places = credential.into_iter().chain([own]);
        places.find(|(_, file)| file.symlink_metadata().is_ok())
    }

    /// Creates the key `name`, and the directory, unless they exist. Returns whether it created the
    /// key.
    ///
    /// # Errors
    /// Classified; an existing key that cannot be read is an error, not a key.
    pub fn ensure(&self, name: &str) -> Result<bool, KmsError> {
        check_name(name)?;
        if self.lent(name)?.is_some() {
            return Ok(false);
        }
        let dir = KeyDir::open_or_create(&self.dir)?;
        if self.live(&dir, name)?.is_some() {
            return Ok(false);
        }
        let lock = dir.lock(self.lock_wait)?;
        let now = now();
        let record = Record {
            name: name.to_owned(),
            state: LocalState::Enabled,
            created: now,
            versions: vec![Material {
                version: 1,
                created: now,
                key: generate()?,
            }],
        };
        match dir.create(&lock, &record)? {
            Created::Now => Ok(true),
            Created::Before => dir.read(name).map(|_| false),
        }
    }

    /// Creates the key `name`.
    ///
    /// # Errors
    /// Classified; `Configuration` if it exists.
    pub fn create(&self, name: &str) -> Result<LocalKeyInfo, KmsError> {
        if !self.ensure(name)? {
            return Err(fail(
                KmsErrorKind::Configuration,
                format!("local-kms://{name} exists already; use it, or choose another name"),
            ));
        }
        self.info(name)
    }

    /// Enables or disables a key.
    ///
    /// # Errors
    /// Classified; `PendingDeletion` for a key whose deletion has not been cancelled.
    pub fn set_enabled(&self, name: &str, enabled: bool) -> Result<(), KmsError> {
        self.update(name, |record| {
            if let LocalState::PendingDeletion { at } = record.state {
                return Err(pending(name, at));
            }
            record.state = if enabled {
                LocalState::Enabled
            } else {
                LocalState::Disabled
            };
            Ok(())
        })
    }

    /// Schedules a key's deletion after `wait`, and disables the key at once. Returns the date, in
    /// seconds since 1970. The first use after that date erases the material for good.
    ///
    /// # Errors
    /// Classified.
    pub fn schedule_deletion(&self, name: &str, wait: Duration) -> Result<u64, KmsError> {
        let at = now().saturating_add(wait.as_secs());
        self.update(name, |record| {
            record.state = LocalState::PendingDeletion { at };
            Ok(())
        })?;
        Ok(at)
    }

    /// Cancels a scheduled deletion. The key stays disabled, as in AWS KMS.
    ///
    /// # Errors
    /// Classified; `Configuration` if no deletion is scheduled.
    pub fn cancel_deletion(&self, name: &str) -> Result<(), KmsError> {
        self.update(name, |record| {
            if !matches!(record.state, LocalState::PendingDeletion { .. }) {
                return Err(fail(
                    KmsErrorKind::Configuration,
                    format!("local-kms://{name} is not scheduled for deletion: nothing to cancel"),
                ));
            }
            record.state = LocalState::Disabled;
            Ok(())
        })
    }

    /// Makes new material, which wraps from now on; older material still unwraps its own wraps.
    /// Returns the new version.
    ///
    /// # Errors
    /// Classified; a key that is not enabled is not rotated.
    pub fn rotate(&self, name: &str) -> Result<u32, KmsError> {
        let mut version = 0;
        self.update(name, |record| {
            serving(record)?;
            let newest = record.newest().map_or(0, |m| m.version);
            if record.versions.len() >= MAX_VERSIONS {
                return Err(fail(
                    KmsErrorKind::Configuration,
                    format!("local-kms://{name} has {MAX_VERSIONS} versions, which is the limit; create a new key and re-wrap"),
                ));
            }
            version = newest.saturating_add(1);
            record.versions.push(Material { version, created: now(), key: generate()? });
            Ok(())
        })?;
        Ok(version)
    }

    /// The public properties of a key.
    ///
    /// # Errors
    /// Classified.
    pub fn info(&self, name: &str) -> Result<LocalKeyInfo, KmsError> {
        self.load(name).map(|record| info(&record))
    }

    /// Every key by name, or the reason why it cannot be used.
    ///
    /// # Errors
    /// Classified; a directory that does not exist holds no keys.
    #[expect(
        clippy::type_complexity,
        reason = "one bad key must not hide the others"
    )]
    pub fn list(&self) -> Result<Vec<(String, Result<LocalKeyInfo, KmsError>)>, KmsError> {
        let dir = KeyDir::open(&self.dir)?;
        let mut names = match &dir {
            Some(dir) => dir.names()?,
            None => Vec::new(),
        };
        if let Some(credentials) = &self.credentials {
            names.extend(credentials.names()?);
        }
        names.sort();
        names.dedup();
        let mut keys = Vec::new();
        for name in names {
            let found = match (self.lent(&name), &dir) {
                (Ok(None), Some(dir)) => self.live(dir, &name),
                (found, _) => found,
            };
            match found {
                Ok(None) => {}
                Ok(Some(record)) => keys.push((name, Ok(info(&record)))),
                Err(e) => keys.push((name, Err(e))),
            }
        }
        Ok(keys)
    }

    /// The key `name`, from the credential or the directory.
    fn load(&self, name: &str) -> Result<Record, KmsError> {
        check_name(name)?;
        if let Some(record) = self.lent(name)? {
            return Ok(record);
        }
        let record = match KeyDir::open(&self.dir)? {
            Some(dir) => self.live(&dir, name)?,
            None => None,
        };
        record.ok_or_else(|| self.not_found(name))
    }

    /// The key `name` from systemd's credential; `None` if there is none. An unusable credential is
    /// an error: the directory may hold another key of that name.
    fn lent(&self, name: &str) -> Result<Option<Record>, KmsError> {
        let Some(credentials) = &self.credentials else {
            return Ok(None);
        };
        match credentials.read(name)? {
            Some(record) if expired(&record) => Err(credentials.expired(name)),
            record => Ok(record),
        }
    }

    /// The key `name` in the directory; erases it first if its deletion date has passed.
    fn live(&self, dir: &KeyDir, name: &str) -> Result<Option<Record>, KmsError> {
        let record = dir.read(name)?;
        if !record.as_ref().is_some_and(expired) {
            return Ok(record);
        }
        let lock = dir.lock(self.lock_wait)?;
        // Another process may have cancelled the deletion, or created a new key, meanwhile.
        let record = dir.read(name)?;
        if !record.as_ref().is_some_and(expired) {
            return Ok(record);
        }
        dir.erase(&lock, name)?;
        Ok(None)
    }

    /// Reads, changes and replaces a key under the lock.
    fn update(
        &self,
        name: &str,
        change: impl FnOnce(&mut Record) -> Result<(), KmsError>,
    ) -> Result<(), KmsError> {
        check_name(name)?;
        if let Some(credentials) = &self.credentials
            && credentials.read(name)?.is_some()
        {
            return Err(credentials.read_only(name));
        }
        let dir = KeyDir::open(&self.dir)?.ok_or_else(|| self.not_found(name))?;
        self.live(&dir, name)?;
        let lock: DirLock = dir.lock(self.lock_wait)?;
        let mut record = dir.read(name)?.ok_or_else(|| self.not_found(name))?;
        change(&mut record)?;
        dir.replace(&lock, &record)
    }

    fn not_found(&self, name: &str) -> KmsError {
        let nor = self.credentials.as_ref().map_or_else(String::new, |c| {
            format!(", nor the credential {}", c.file(name).display())
        });
        fail(
            KmsErrorKind::NotFound,
            format!(
                "there is no key local-kms://{name} in {}{nor}: it was never created there, or deleted; restore that directory from a backup, or set {DIR_VARIABLE} to where the key is",
                self.dir.display()
            ),
        )
    }
}

fn check_name(name: &str) -> Result<(), KmsError> {
    match format!("local-kms://{name}").parse::<KeyUri>() {
        Ok(_) => Ok(()),
        Err(e) => Err(fail(KmsErrorKind::Configuration, e.to_string())),
    }
}

fn expired(record: &Record) -> bool {
    matches!(record.state, LocalState::PendingDeletion { at } if at <= now())
}

fn info(record: &Record) -> LocalKeyInfo {
    let (version, rotated) = record.newest().map_or((0, 0), |m| (m.version, m.created));
    LocalKeyInfo {
        name: record.name.clone(),
        state: record.state,
        created: record.created,
        version,
        rotated,
    }
}

fn generate() -> Result<SecretKey, KmsError> {
    SecretKey::generate().map_err(|e| fail(KmsErrorKind::BadAnswer, e.to_string()))
}

#[cfg(test)]
mod tests;
