//! The file beside the vault for records that a repair removes, unchanged. Its contents are as
//! sealed as the vault itself, and no more.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::store::Record;

use super::super::VaultError;
use super::super::host::anchor::hex;

/// The file, created with the first record.
pub(super) struct Quarantine {
    path: PathBuf,
    file: Option<BufWriter<File>>,
}

impl Quarantine {
    /// The file for the vault in `vault`, beside it.
    pub(super) fn of(vault: &Path, now: i64) -> Self {
        let mut name = vault.as_os_str().to_owned();
        name.push(format!(".removed-{now}-{}", std::process::id()));
        Self {
            path: name.into(),
            file: None,
        }
    }

    pub(super) fn record(
        &mut self,
        table: &str,
        key: &[u64],
        record: &Record,
    ) -> Result<(), VaultError> {
        self.write(json!({
            "table": table,
            "key": key,
            "generation": record.generation,
            "value": hex(&record.value),
        }))
    }

    pub(super) fn entry(
        &mut self,
        directory: u64,
        tag: &[u8],
        value: &[u8],
    ) -> Result<(), VaultError> {
        self.write(json!({
            "table": "entry",
            "key": [directory],
            "tag": hex(tag),
            "value": hex(value),
        }))
    }

    pub(super) fn chunk(&mut self, key: &[u64], value: &[u8]) -> Result<(), VaultError> {
        self.write(json!({"table": "chunk", "key": key, "value": hex(value)}))
    }

    fn write(&mut self, line: Value) -> Result<(), VaultError> {
        if self.file.is_none() {
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&self.path)
                .map_err(|e| self.failed(&e))?;
            self.file = Some(BufWriter::new(file));
        }
        let written = match &mut self.file {
            Some(file) => writeln!(file, "{line}"),
            None => Ok(()),
        };
        written.map_err(|e| self.failed(&e))
    }

    /// Empties the file, because the transaction starts again.
    pub(super) fn restart(&mut self) -> Result<(), VaultError> {
        let emptied = match &mut self.file {
            Some(file) => file.rewind().and_then(|()| file.get_ref().set_len(0)),
            None => Ok(()),
        };
        emptied.map_err(|e| self.failed(&e))
    }

    /// Makes its records durable, before they are removed from the vault.
    pub(super) fn sync(&mut self) -> Result<(), VaultError> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let synced = file.flush().and_then(|()| file.get_ref().sync_all());
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        let synced = synced.and_then(|()| File::open(parent)?.sync_all());
        synced.map_err(|e| self.failed(&e))
    }

    /// Removes the file, because nothing was removed from the vault after all.
    pub(super) fn discard(&mut self) {
        if self.file.take().is_some() {
            // A remaining file is harmless.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// The path of the file, if it exists.
    pub(super) fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|_| self.path.as_path())
    }

    fn failed(&self, error: &std::io::Error) -> VaultError {
        VaultError::Setting(format!(
            "cannot write {}, where the records go that are taken out, so nothing was changed: \
             {error}",
            self.path.display()
        ))
    }
}
