//! What is forged: by somebody with the keys, to say what is wrong, and by somebody without, who computes
//! checksums anew.

use secretfs::keyring::GenerationState;

use crate::forged::{Forger, body_at};
use crate::tamper::{List, hex};

/// Adds to the number of 8 bytes at a place.
fn raise(bytes: &mut [u8], at: usize, by: u64) {
    let number = u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    bytes[at..at + 8].copy_from_slice(&number.wrapping_add(by).to_le_bytes());
}

/// Nodes of the vault by what they are: a file with a content, and directories.
struct Nodes {
    file: u64,
    version: u64,
    directory: u64,
    symlink: u64,
    fifo: u64,
}

impl Nodes {
    fn of(forger: &Forger) -> Self {
        let kind = |kind: u8| {
            let kind = hex(&[kind]);
            forger.id(&format!(
                "SELECT min(id) FROM node WHERE id > 1 AND substr(value, 1, 1) = {kind}"
            ))
        };
        let file = forger.id("SELECT min(node) FROM version");
        Self {
            file,
            version: forger.id(&format!("SELECT version FROM version WHERE node = {file}")),
            directory: kind(2),
            symlink: kind(3),
            fifo: kind(4),
        }
    }
}

impl List {
    fn forge(&mut self, record: &str, field: &str, forge: impl FnOnce(&mut Forger, &Nodes)) {
        self.forge_in(record, field, |forger| {
            let nodes = Nodes::of(forger);
            forge(forger, &nodes);
        });
    }

    /// The same in a vault of which the nodes do not matter.
    fn forge_in(&mut self, record: &str, field: &str, forge: impl FnOnce(&mut Forger)) {
        let mut forger = Forger::of(self.vault);
        forge(&mut forger);
        let sql = std::mem::take(&mut forger.sql);
        self.case(record, field, "forge", &sql);
    }

    /// Forges the attributes of a node.
    fn attributes(
        &mut self,
        which: fn(&Nodes) -> u64,
        field: &str,
        change: impl FnOnce(&mut Vec<u8>, usize),
    ) {
        let id = which(&Nodes::of(&Forger::of(self.vault)));
        let record = format!("node {id}");
        self.forge(&record, field, |forger, _| {
            forger.say(id, |plain| {
                let at = body_at(plain);
                change(plain, at);
            });
        });
    }

    pub fn forged_nodes(&mut self) {
        let file = |nodes: &Nodes| nodes.file;
        let directory = |nodes: &Nodes| nodes.directory;
        self.attributes(file, "padding", |plain, _| {
            *plain.last_mut().expect("some") = 1
        });
        self.attributes(file, "padding: length", |plain, _| plain.extend([0; 256]));
        self.attributes(file, "attributes: cut off", |plain, _| plain.truncate(100));
        self.attributes(file, "links", |plain, _| plain[12] += 1);
        self.attributes(file, "xattrs: count", |plain, _| plain[64..72].fill(0xff));
        self.attributes(file, "body", |plain, at| plain[at] = 9);
        self.attributes(file, "body: file as symlink", |plain, at| {
            plain[at..at + 28].fill(0);
            plain[at] = 2;
        });
        self.attributes(file, "body: version", |plain, at| raise(plain, at + 4, 1));
        self.attributes(file, "body: no version", |plain, at| {
            plain[at + 4..at + 12].fill(0);
        });
        self.attributes(file, "body: size", |plain, at| raise(plain, at + 20, 1));
        self.attributes(directory, "body: parent", |plain, at| {
            raise(plain, at + 4, 1)
        });
        self.attributes(directory, "body: tag", |plain, at| plain[at + 12] ^= 1);
        self.attributes(directory, "body: entries", |plain, at| {
            raise(plain, at + 44, 1)
        });
        self.attributes(directory, "body: subdirectories", |plain, at| {
            plain[at + 52] ^= 1
        });
        self.attributes(directory, "body: sum", |plain, at| plain[at + 56] ^= 1);
        self.attributes(directory, "body: epoch", |plain, at| plain[at + 88] ^= 2);
        self.attributes(directory, "body: one key, says two", |plain, at| {
            plain[at] = 4;
        });
        self.attributes(
            |nodes| nodes.symlink,
            "body: target",
            |plain, at| {
                plain[at + 4..at + 12].fill(0xff);
            },
        );
        for (kind, what) in [(9, "kind: unknown"), (5, "kind: socket")] {
            self.forge("a fifo", what, |forger, nodes| {
                let (id, plain) = (nodes.fifo, forger.attributes(nodes.fifo));
                let value = forger.node(id, Some(kind), &plain, &forger.metadata_key(id));
                forger.put_node(id, &value);
                forger.count();
            });
        }
        self.forge("a file", "second key", |forger, nodes| {
            let (id, key) = (nodes.file, [7; 32]);
            let mut value = forger.node(id, None, &forger.attributes(id), &key);
            value.extend(1u64.to_le_bytes());
            value.extend(forger.wrapped(id, secretfs::crypto::schedule::Role::Metadata, &key));
            forger.put_node(id, &value);
            forger.count();
        });
        self.forge("the system node", "kind", |forger, _| {
            let plain = forger.attributes(0);
            let value = forger.node(0, Some(4), &plain, &forger.metadata_key(0));
            forger.put_node(0, &value);
            forger.count();
        });
    }

    pub fn forged_entries(&mut self) {
        type Change<'c> = &'c dyn Fn(&mut Vec<u8>);
        let changes: [(&str, u8, Change<'_>); 6] = [
            ("plain: node", 1, &|plain| {
                plain[..8].copy_from_slice(&987_654u64.to_le_bytes())
            }),
            ("plain: kind", 1, &|plain| plain[8] = 2),
            ("plain: kind, unknown", 1, &|plain| plain[8] = 9),
            ("plain: no name", 1, &|plain| plain[9] = 0),
            ("plain: cut off", 1, &|plain| plain.truncate(264)),
            ("plain: a node twice", 4, &|plain| {
                plain[..8].copy_from_slice(&2u64.to_le_bytes())
            }),
        ];
        for (field, kind, change) in changes {
            self.forge("an entry of directory 1", field, |forger, _| {
                let (tag, mut plain) = forger.entry(1, kind);
                change(&mut plain);
                forger.put_entry(1, (&tag, &tag), 1, &plain);
            });
        }
        self.forge(
            "an entry of directory 1",
            "plain: name with a slash",
            |forger, _| {
                let (tag, mut plain) = forger.entry(1, 1);
                (plain[9], plain[10], plain[11]) = (2, b'a', b'/');
                let other = forger.tag(1, b"a/");
                forger.put_entry(1, (&tag, &other), 1, &plain);
            },
        );
        self.forge(
            "an entry of directory 1",
            "plain: name of another tag",
            |forger, _| {
                let (tag, mut plain) = forger.entry(1, 1);
                plain[10] ^= 1;
                forger.put_entry(1, (&tag, &tag), 1, &plain);
            },
        );
        self.forge("an entry of directory 1", "epoch: unknown", |forger, _| {
            let (tag, plain) = forger.entry(1, 1);
            forger.put_entry(1, (&tag, &tag), 2, &plain);
        });
    }

    pub fn forged_versions(&mut self) {
        type Change<'c> = &'c dyn Fn(&mut Vec<u8>);
        let changes: [(&str, Change<'_>); 4] = [
            ("extent: length", &|extent| raise(extent, 0, 1)),
            ("extent: length, far too long", &|extent| {
                extent[..8].fill(0xff)
            }),
            ("extent: chunks", &|extent| extent[8] += 1),
            ("extent: longer", &|extent| extent.push(0)),
        ];
        for (field, change) in changes {
            self.forge("the version of a file", field, |forger, nodes| {
                let (file, version) = (nodes.file, nodes.version);
                let plain = forger.attributes(file);
                let size = &plain[body_at(&plain) + 20..body_at(&plain) + 28];
                let mut extent = [size, &1u32.to_le_bytes()].concat();
                change(&mut extent);
                let value =
                    forger.version(file, version, &forger.content_key(file, version), &extent);
                forger.put(format!(
                    "UPDATE version SET value = {} WHERE node = {file}",
                    hex(&value)
                ));
                forger.count();
            });
        }
        for (field, is_file) in [("version: a newer one", true), ("node: a directory", false)] {
            self.forge("a version more", field, |forger, nodes| {
                let (node, number) = match is_file {
                    true => (nodes.file, nodes.version + 1),
                    false => (nodes.directory, 1),
                };
                forger.put_content((node, number), 3);
            });
        }
        for (field, last, length) in [("last", false, 256), ("ciphertext: shorter", true, 255)] {
            self.forge("the chunk of a file", field, |forger, nodes| {
                let sealed = forger.chunk((nodes.file, nodes.version), 0, last, &vec![0; length]);
                let sealed = hex(&sealed);
                forger.put(format!(
                    "UPDATE chunk SET sealed = {sealed} WHERE node = {}",
                    nodes.file
                ));
            });
        }
    }

    /// Records that no writer makes, each of which fits its neighbours.
    pub fn forged_places(&mut self) {
        let empty = |forger: &Forger| {
            forger.id(
                "SELECT min(id) FROM node WHERE substr(value, 1, 1) = x'01' \
                 AND id NOT IN (SELECT node FROM version)",
            )
        };
        let record = "a file without a content";
        self.forge(record, "body: size", |forger, _| {
            let id = empty(forger);
            forger.say(id, |plain| {
                let at = body_at(plain);
                raise(plain, at + 20, 3);
            });
        });
        self.forge(record, "version: 0", |forger, _| {
            let id = empty(forger);
            forger.put_content((id, 0), 0);
        });
        self.forge("a directory", "links: two names", |forger, nodes| {
            let id = nodes.directory;
            forger.add_entry(1, id, 2, b"again");
            forger.say(id, |plain| plain[12] += 1);
        });
        self.forge("the root", "links: a name", |forger, _| {
            forger.add_entry(1, 1, 2, b"again");
            forger.say(1, |plain| plain[12] += 1);
        });
    }

    /// A vault without a root directory.
    pub fn forged_root(&mut self) {
        let delete = "DELETE FROM node WHERE id = 1";
        self.forge_in("the root", "the row", |forger| {
            forger.put(delete.into());
            forger.count();
        });
    }

    pub fn forged_state(&mut self) {
        type Change<'c> = &'c dyn Fn(&mut Vec<u8>);
        let changes: [(&str, Change<'_>); 7] = [
            ("keyring", &|state| raise(state, 8, 1)),
            ("next node", &|state| {
                state[16..24].copy_from_slice(&2u64.to_le_bytes())
            }),
            ("nodes", &|state| raise(state, 24, 1)),
            ("versions", &|state| raise(state, 32, 1)),
            ("sum", &|state| state[40] ^= 1),
            ("renewal", &|state| state[72] = 1),
            ("cut off", &|state| state.truncate(71)),
        ];
        for (field, change) in changes {
            self.forge("the state record", field, |forger, _| {
                let mut state = forger.state();
                change(&mut state);
                forger.put_state(&state);
            });
        }
    }

    pub fn forged_keyrings(&mut self) {
        let record = "the keyring record";
        for authentic in [true, false] {
            let by = match authentic {
                true => "with the MAC",
                false => "with the checksum",
            };
            let field = |of: &str| format!("{of}, {by}");
            let mut keyring = |of: &str, change: fn(&mut secretfs::keyring::KeyringBody)| {
                self.forge(record, &field(of), |forger, _| {
                    forger.put_keyring(authentic, change)
                });
            };
            keyring("body: sequence", |body| body.sequence += 1);
            keyring("body: number", |body| body.generations[0].number = 0);
            keyring("body: state", |body| {
                body.generations[0].state = GenerationState::Pending
            });
            keyring("body: check value", |body| {
                body.generations[0].check[0] ^= 1
            });
            keyring("body: uri", |body| {
                body.generations[0].wraps[0].uri = "local-kms://other".into()
            });
            keyring("body: uri, none", |body| {
                body.generations[0].wraps[0].uri = "nonsense".into()
            });
            keyring("body: blob", |body| {
                body.generations[0].wraps[0].blob[50] ^= 1
            });
            keyring("body: blob, version", |body| {
                body.generations[0].wraps[0].blob[1] = 2
            });
            keyring("body: no wraps", |body| body.generations[0].wraps.clear());
            keyring("body: a generation more", |body| {
                let mut other = body.generations[0].clone();
                (other.number, other.state) = (2, GenerationState::Pending);
                body.generations.push(other);
            });
            keyring("body: history, length", |body| body.history.length += 1);
            keyring("body: history, hash", |body| body.history.hash[0] ^= 1);
        }
        self.forge(record, "macs: of no generation", |forger, _| {
            let keyring = forger.blob("SELECT value FROM keyring");
            let length = u64::from_le_bytes(keyring[..8].try_into().expect("8")) as usize;
            forger.store_keyring(&keyring[8..8 + length], &[0; 8]);
        });
        self.forge(record, "body: cut off", |forger, _| {
            let keyring = forger.blob("SELECT value FROM keyring");
            let length = u64::from_le_bytes(keyring[..8].try_into().expect("8")) as usize;
            let macs = &keyring[8 + length..keyring.len() - 32];
            forger.store_keyring(&keyring[8..7 + length], macs);
        });
        // With the keyring's checksum made for it.
        for (field, at) in [
            ("magic", 0),
            ("format", 8),
            ("minimum reader", 10),
            ("suite", 12),
            ("vault id", 14),
        ] {
            self.forge(
                "the header",
                &format!("{field}, with the checksum"),
                |forger, _| {
                    let mut header = forger.blob("SELECT value FROM header");
                    header[at] += 1;
                    forger.put(format!("UPDATE header SET value = {}", hex(&header)));
                    forger.put_keyring(false, |_| {});
                },
            );
        }
    }
}
