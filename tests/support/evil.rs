//! What somebody does who can write the stored vault, but has no key: she edits records and pages
//! and computes anew whatever takes no key to compute.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use secretfs::codec;
use secretfs::keyring::KeyringBody;
use sha2::{Digest, Sha256};

use super::process::Place;

/// Every file below `directories`: mode, owner, modification time and hash. Without `vault.db-shm`,
/// an index that SQLite makes anew, and empty WALs.
pub fn footprint(directories: &[PathBuf]) -> BTreeMap<PathBuf, String> {
    let mut files = BTreeMap::new();
    let mut left = directories.to_vec();
    while let Some(path) = left.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        let name = path.file_name().unwrap_or_default();
        let fleeting = name == "vault.db-shm" || (name == "vault.db-wal" && meta.len() == 0);
        if fleeting {
            continue;
        }
        let mut told = format!("{:o} {}:{}", meta.mode(), meta.uid(), meta.gid());
        if meta.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else {
            told += &format!(" {}.{}", meta.mtime(), meta.mtime_nsec());
        }
        if meta.is_file() {
            told += &format!(" {:x?}", Sha256::digest(fs::read(&path).unwrap()));
        }
        files.insert(path, told);
    }
    files
}

/// The stored vault, opened by somebody else's SQLite.
pub fn database(place: &Place) -> Connection {
    Connection::open(place.vault().join("vault.db")).expect("a database")
}

pub fn blob(place: &Place, query: &str) -> Vec<u8> {
    database(place)
        .query_row(query, [], |row| row.get(0))
        .expect("a row")
}

pub fn set_blob(place: &Place, statement: &str, value: &[u8]) {
    let changed = database(place)
        .execute(statement, [value])
        .expect("changed");
    assert_eq!(changed, 1, "{statement}");
}

pub fn execute(place: &Place, sql: &str) {
    database(place).execute_batch(sql).expect(sql);
}

/// A keyring record, taken apart: body, MACs, checksum. Written from the format alone.
pub struct Record {
    pub body: Vec<u8>,
    pub macs: Vec<u8>,
}

impl Record {
    pub fn of(place: &Place) -> Self {
        let bytes = blob(place, "SELECT value FROM keyring");
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let rest = &bytes[8 + length..];
        Self {
            body: bytes[8..8 + length].to_vec(),
            macs: rest[..rest.len() - 32].to_vec(),
        }
    }

    /// Changes what the body says, as who can read the format can.
    pub fn edit(&mut self, change: impl FnOnce(&mut KeyringBody)) {
        let mut body: KeyringBody = codec::decode(&self.body, "body").expect("a body");
        change(&mut body);
        self.body = codec::encode(&body);
    }

    /// Stores it with the checksum that belongs to it and to the header.
    pub fn store(&self, place: &Place) {
        let header = blob(place, "SELECT value FROM header");
        let mut bytes = (self.body.len() as u64).to_le_bytes().to_vec();
        bytes.extend(&self.body);
        bytes.extend(&self.macs);
        bytes.extend(self.checksum(&header));
        set_blob(place, "UPDATE keyring SET value = ?1", &bytes);
    }

    fn checksum(&self, header: &[u8]) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"secretfs keyring checksum       ");
        hash.update(Sha256::digest(header));
        hash.update(Sha256::digest(&self.body));
        for mac in self.macs[8..].chunks(40) {
            hash.update(Sha256::digest(mac));
        }
        hash.finalize().into()
    }
}

/// Number of the first page of a table.
pub fn root_page(place: &Place, table: &str) -> u64 {
    let query = format!("SELECT rootpage FROM sqlite_schema WHERE name = '{table}'");
    let page: i64 = database(place)
        .query_row(&query, [], |row| row.get(0))
        .expect("a table");
    page.unsigned_abs()
}

/// Edits a page of the raw file.
pub fn edit_page(place: &Place, page: u64, change: impl FnOnce(&mut [u8])) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(place.vault().join("vault.db"))
        .expect("opened");
    let at = (page - 1) * 4096;
    let mut bytes = [0; 4096];
    file.read_exact_at(&mut bytes, at).expect("read");
    change(&mut bytes);
    file.write_all_at(&bytes, at).expect("written");
}

/// Copies a directory as `cp -a` does.
pub fn copy(from: &Path, to: &Path) {
    super::process::system("cp", &["-a".as_ref(), from.as_os_str(), to.as_os_str()]);
}
