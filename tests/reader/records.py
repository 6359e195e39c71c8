"""The local KMS and the records of secretfs-vault(5), each decoded and opened by itself."""

import io
import os
import re
import struct
from types import SimpleNamespace

from notation import ENUMS, LAYOUTS, Refusal, decoded, demand, expand, hmac_sha256, le32, le64
from notation import open_sealed, read, sha256

LOCAL_URI = re.compile(r"local-kms://([A-Za-z0-9_-][A-Za-z0-9_.-]{0,127})")
URI = re.compile(LOCAL_URI.pattern + r"|aws-kms://[A-Za-z0-9_.:/-]{1,2038}")
ENABLED, REFUSED, UNUSABLE = 0, 4, 1  # a state of keys, and two exit codes
CHUNK_LENGTH, KEY_FILE_MAXIMUM, METADATA_ROLE, CONTENT_ROLE = 65536, 440512, 0, 1
FILE, DIRECTORY, SYMLINK, SYSTEM = 1, 2, 3, 8
KINDS = {1: "file", 2: "directory", 3: "symlink", 4: "fifo", 5: "socket",
         6: "character device", 7: "block device", 8: "system"}
BODIES = {FILE: ("file",), DIRECTORY: ("directory", "moving"), SYMLINK: ("symlink",)}
TEXT_OF_ENUMS = """
change: rewrap rotate reencrypt; state: pending active decrypt-only; place: node version;
phase: prepared active migrating verifying retired scrubbing;
body: file directory symlink special moving;
event: created rollback-accepted change-started activated change-abandoned retired rewrapped
    change-finished retired-despite repaired tampering-found"""
TEXT_OF_LAYOUTS = """
key file: magic x8, state u8, deletion u64, created u64, name bytes8,
    versions list32 key_version, checksum x32; key_version: version u32, created u64, key x32;
header: magic x8, format u16, minimum_reader u16, suite u16, vault_id x16;
keyring: body bytes, macs list mac, checksum x32; mac: generation u64, mac x32;
keyring body: sequence u64, generations list generation, rotation option rotation,
    length u64, hash x32;
generation: number u64, state state, check x32, created i64, wraps list wrap;
wrap: uri text, key_id text, blob bytes, created i64;
rotation: kind change, phase phase, from u64, to u64, started i64;
whole event: at i64, late bool, event event; event change-abandoned: change change, generation u64;
event created: kms_keys list text; event activated: generation u64; event retired: generation u64;
event rollback-accepted: seen_keyring u64, accepted_keyring u64, seen_commit u64,
    accepted_commit u64;
event change-started: change change, from u64, to u64, kms_keys list text;
event change-finished: change change, generation u64;
event rewrapped: generation u64, from list text, to list text;
event retired-despite: generation u64, count u64, records list text;
event repaired: count u64, done list text; event tampering-found: count u64, what list text;
node row: kind u8, revision u64, wrapped x72, sealed bytes, second rest;
attributes: mode u32, uid u32, gid u32, links u32, accessed time, modified time, changed time,
    created time, xattrs list xattr, body body, padding rest;
time: seconds i64, nanoseconds u32; xattr: name bytes, value bytes; body symlink: target bytes;
body file: version u64, replaced u64, size u64; body special: device u32;
body directory: parent u64, tag x32, entries u64, subdirectories u32, sum x32, epoch u32;
body moving: parent u64, tag x32, entries u64, subdirectories u32, sum x32, epoch u32,
    previous_epoch u32, previous_entries u64, previous_sum x32;
entry row: epoch u32, sealed bytes; entry: node u64, kind u8, length u8, name x255;
version row: wrapped x72, sealed bytes; extent: length u64, chunks u32;
state record: commit u64, keyring u64, next_node u64, nodes u64, versions u64, sum x32,
    renewal option renewal, padding rest;
renewal: upto option place, nodes u64, versions u64, found x32, sum x32; place node: node u64;
place version: node u64, version u64"""
for table, text in ((ENUMS, TEXT_OF_ENUMS), (LAYOUTS, TEXT_OF_LAYOUTS)):
    table |= dict(item.split(": ") for item in " ".join(text.split()).split("; "))

def find_kms_key(directory, name):
    """A key file. One that others may read or replace protects nothing, so it is not used."""
    path = os.path.join(directory, f"{name}.key")
    demand(os.path.lexists(path), "KMS", f"there is no key {name}", REFUSED)
    for file in (directory, path):
        status = os.lstat(file)  # of a symbolic link: its own mode, which is 0777
        private = status.st_uid == os.geteuid() and status.st_mode & 0o077 == 0
        demand(private, "KMS", f"{file}: owner or mode", UNUSABLE)
    with open(path, "rb") as file:
        content = file.read(KEY_FILE_MAXIMUM + 1)
    key = decoded("KMS", path, content, "key file", UNUSABLE)
    fits = key.magic == b"sfs-lk1\n" and key.state <= 2 and key.name == name.encode()
    fits = fits and key.checksum == sha256(content[:-32]) and len(content) <= KEY_FILE_MAXIMUM
    fits = fits and key.versions and all(n == v.version for n, v in enumerate(key.versions, 1))
    demand(fits, "KMS", f"{path} does not decode", UNUSABLE)
    return key
def ask_kms(directory, wrap, generation, vault_id):
    """The master key of a wrap. The context binds it to its vault and its generation."""
    uri, blob, match = wrap.uri, wrap.blob, LOCAL_URI.fullmatch(wrap.uri)
    demand(match, "KMS", f"{uri}: this reader asks only the local KMS", UNUSABLE)
    key = find_kms_key(directory, match[1])
    version = int.from_bytes(blob[1:5], "little")
    known = len(blob) == 85 and blob[0] == 1 and 1 <= version <= len(key.versions)
    demand(known and key.state == ENABLED, "KMS", f"{uri}: not enabled, or no such blob", REFUSED)
    extracted = hmac_sha256(bytes(32), key.versions[version - 1].key)  # HKDF with expand
    fingerprint = expand(extracted, b"secretfs local-kms v1 fingerprint")[:8]
    context = ("secretfs:generation", str(generation), "secretfs:purpose", "master-key",
               "secretfs:vault", vault_id.hex())
    name, *pairs = [le32(len(text)) + text.encode() for text in (match[1], *context)]
    aad = b"\x01" + name + le32(version) + fingerprint + le32(len(pairs) // 2) + b"".join(pairs)
    plain = open_sealed(expand(extracted, b"secretfs local-kms v1 wrap"), aad, blob[13:])
    demand(blob[5:13] == fingerprint and plain, "KMS", f"{uri} does not open the blob", REFUSED)
    return plain
def decode_keyring(header_hash, value):
    """The keyring, as far as it can be checked without a key: the MAC comes after the KMS."""
    record = decoded("keyring encoding", "keyring", value, "keyring")
    hashed = header_hash + sha256(record.body)
    macs = b"".join(sha256(le64(item.generation) + item.mac) for item in record.macs)
    checksum = sha256(b"secretfs keyring checksum".ljust(32) + hashed + macs)
    demand(checksum == record.checksum, "keyring checksum", "the keyring is damaged")
    keyring = decoded("keyring encoding", "body of the keyring", record.body, "keyring body")
    keyring.mac_message = b"keyring" + hashed
    keyring.macs = {item.generation: item.mac for item in reversed(record.macs)}  # first counts
    generations = [(item.number, item.state) for item in keyring.generations]
    expected = [(number, "active") for number, _ in generations[:1]]
    if rotation := keyring.rotation:
        left, to = vars(rotation)["from"], rotation.to
        expected = {"prepared": [(left, "active"), (to, "pending")],
                    "retired": [(to, "active")], "scrubbing": [(to, "active")],
                    }.get(rotation.phase, [(left, "decrypt-only"), (to, "active")])
    rising = sorted({number for number, _ in generations if number > 0})
    fits = [] != generations == sorted(expected) and len(rising) == len(generations)
    fits = fits and all(item.wraps for item in keyring.generations)
    demand(fits, "keyring generations", f"{generations} do not fit the rotation")
    return keyring
def decode_event(sequence, value):
    """An event as it is shown. One of a later program is shown as far as it can be decoded."""
    event, stream = {"sequence": sequence, "event": "unknown"}, io.BytesIO(value)
    try:
        for name, encoding in (("at", "i64"), ("late", "bool"), ("kind", "u32")):
            event[name] = read(stream, encoding)
        fields = vars(decoded("history", "event", value, "whole event").event)
    except (ValueError, Refusal):
        return event
    del event["kind"]
    return event | {"event": fields.pop("variant")} | fields
def padded(length):
    """Padme: the length of a content with its padding."""
    e = max(length, 256).bit_length() - 1
    mask = (1 << (e - e.bit_length())) - 1
    return max(length + mask & ~mask, 256)

class Keys(SimpleNamespace):
    """The master_keys of a vault, by generation, its vault_id, and what they open."""
    def open(self, record, label, key, record_number, fields, sealed, kind="seal"):
        """A sealed text, under the subkey of this label."""
        aad = bytes([1, record_number]) + self.vault_id + fields
        plain = open_sealed(expand(key, b"secretfs/1 " + label), aad, sealed)
        demand(plain is not None, kind, f"{record} does not open")
        return plain
    def unwrap(self, record, wrapped, node, role, version, generation):
        master_key = self.master_keys.get(generation)
        demand(master_key, "generation", f"{record}: no master key of generation {generation}")
        fields = struct.pack("<QBQQ", node, role, version, generation)
        return self.open(record, b"master wrap", master_key, 1, fields, wrapped, "wrapped key")
    def open_node(self, number, generation, value):
        """A node with its attributes; with two keys these are sealed under the second."""
        record = f"node {number}"
        row = decoded("encoding", record, value, "node row")
        demand(row.kind in KINDS and len(row.second) in (0, 80), "encoding", f"{record}: the row")
        wraps = [(generation, row.wrapped), *struct.iter_unpack("<Q72s", row.second)]
        keys = [self.unwrap(record, wrapped, number, METADATA_ROLE, 0, its_generation)
                for its_generation, wrapped in wraps]
        fields = struct.pack("<QBQ", number, row.kind, row.revision)
        plain = self.open(record, b"metadata attributes", keys[-1], 2, fields, row.sealed)
        node = decoded("encoding", record, plain, "attributes")
        right = len(plain) % 256 == 0 and len(node.padding) < 256 and not any(node.padding)
        right = right and len(plain) - len(node.padding) <= 1 << 20
        demand(right, "encoding", f"{record}: padding or length")
        for name in ("accessed", "modified", "changed", "created"):
            time = getattr(node, name)
            setattr(node, name, time.seconds * 10**9 + time.nanoseconds)
        right = node.body.variant in BODIES.get(row.kind, ("special",))
        number_of_keys = 1 + (node.body.variant == "moving")
        right = right and (row.kind == SYSTEM or len(keys) == number_of_keys)
        demand(right, "kind", f"{record}: body or number of keys of another kind")
        node.record, node.number, node.kind, node.keys = record, number, row.kind, keys
        node.generation = wraps[-1][0]
        if row.kind == DIRECTORY:
            previous_epoch = vars(node.body).get("previous_epoch")
            node.epochs = {previous_epoch: keys[0], node.body.epoch: keys[-1]}
        return node
    def open_entry(self, directory, tag, value):
        """An entry, under the key of its epoch, and under the tag of its name."""
        record = f"entry {tag.hex()} of {directory.record}"
        row = decoded("encoding", record, value, "entry row")
        key = directory.epochs.get(row.epoch)
        demand(key, "encoding", f"{record}: epoch {row.epoch}")
        fields = struct.pack("<Q32sI", directory.number, tag, row.epoch)
        plain = self.open(record, b"metadata entry", key, 3, fields, row.sealed)
        entry = decoded("encoding", record, plain, "entry")
        name = entry.name[:entry.length]
        right = name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name
        demand(right and entry.kind in KINDS, "encoding", f"{record}: kind or name")
        name_tag = hmac_sha256(expand(key, b"secretfs/1 metadata name-tag"), name)
        demand(tag == name_tag, "name tag", record)
        return SimpleNamespace(record=record, tag=tag, name=name, node=entry.node, kind=entry.kind)
    def open_version(self, node, number, generation, value):
        record = f"version {number} of node {node}"
        row = decoded("encoding", record, value, "version row")
        key = self.unwrap(record, row.wrapped, node, CONTENT_ROLE, number, generation)
        fields = struct.pack("<QQ", node, number)
        plain = self.open(record, b"content version", key, 4, fields, row.sealed)
        version = decoded("encoding", record, plain, "extent")
        demand(version.chunks == -(-padded(version.length) // CHUNK_LENGTH), "extent", record)
        version.record, version.node, version.number, version.key = record, node, number, key
        return version
    def open_chunk(self, version, index, sealed):
        """A part of the content, without the padding."""
        record, start = f"chunk {index} of {version.record}", index * CHUNK_LENGTH
        length = min(CHUNK_LENGTH, padded(version.length) - start)
        demand(len(sealed) == 40 + length, "seal", f"{record}: another length")
        last = index == version.chunks - 1
        fields = struct.pack("<QQIB", version.node, version.number, index, last)
        plain = self.open(record, b"content chunk", version.key, 5, fields, sealed)
        return plain[:max(version.length - start, 0)]
