"""Reads a vault of secretfs, format 1, as secretfs-vault(5) has it: reader.py VAULT KMS_DIR"""

import datetime
import hashlib
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import urllib.parse
from collections import Counter, defaultdict

from notation import Refusal, decoded, demand, expand, hmac_sha256, le64, sha256, sum_of
from records import DIRECTORY, FILE, KINDS, SYSTEM, URI, Keys, ask_kms, decode_event
from records import decode_keyring

ID, NUMBER, BLOB = "id INTEGER PRIMARY KEY", "INTEGER NOT NULL", "BLOB NOT NULL"
ONE_ROW = f"({ID} CHECK (id = 0), value {BLOB}) STRICT"
SCHEMA = {
    "header": ONE_ROW, "keyring": ONE_ROW, "state": ONE_ROW,
    "node": f"({ID}, generation {NUMBER}, value {BLOB}) STRICT",
    "entry": f"(directory {NUMBER}, tag {BLOB}, value {BLOB}, PRIMARY KEY (directory, tag)) STRICT"
             ", WITHOUT ROWID",
    "version": f"(node {NUMBER}, version {NUMBER}, generation {NUMBER}, first_chunk {NUMBER}, "
               f"value {BLOB}, PRIMARY KEY (node, version)) STRICT, WITHOUT ROWID",
    "chunk": f"({ID}, node {NUMBER}, version {NUMBER}, idx {NUMBER}, sealed {BLOB}) STRICT",
    "orphan": f"({ID}) STRICT", "event": f"(sequence INTEGER PRIMARY KEY, value {BLOB}) STRICT"}
MAXIMA = {"number": 2**62 - 1, "idx": 2**32 - 1, "tag": 32, "header": 4096, "keyring": 1048576,
          "state": 65536, "node": 1052672, "entry": 16384, "version": 16384, "chunk": 65600,
          "event": 65536}
SETTINGS = {"application_id": 0x53454346, "user_version": 1, "page_size": 4096,
            "encoding": "UTF-8", "auto_vacuum": 0, "journal_mode": "wal"}

def open_database(vault, copy):
    """Step 1, on a copy of the two files, because SQLite writes beside what it opens."""
    for name in ("vault.db", "vault.db-wal", "vault.db-shm"):
        file = f"{vault}/{name}"
        regular = os.path.isfile(file) and not os.path.islink(file)
        demand(regular or not os.path.lexists(file), "database", f"{name} is no file", 3)
        if regular and name != "vault.db-shm" and os.path.getsize(file) > 0:
            shutil.copyfile(file, f"{copy}/{name}")
    demand(os.path.exists(f"{copy}/vault.db"), "database", "vault.db is missing or empty", 3)
    demand(not os.path.lexists(f"{vault}/vault.db-journal"), "database", "vault.db-journal")
    database = sqlite3.connect(f"{copy}/vault.db", isolation_level=None)
    database.text_factory = lambda text: text.decode("utf-8", "replace")  # so bytes are a BLOB
    database.execute("BEGIN")
    for name, value in SETTINGS.items():
        fits = database.execute(f"PRAGMA {name}").fetchone() == (value,)
        demand(fits, "database", f"another {name}", 3 if name == "application_id" else 6)
    schema = database.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY rowid")
    expected = [("table", name, name, f"CREATE TABLE {name} {SCHEMA[name]}") for name in SCHEMA]
    roots = database.execute("SELECT DISTINCT rootpage FROM sqlite_schema WHERE rootpage >= 2")
    demand(schema.fetchall() == expected and len(roots.fetchall()) == 9, "database", "the schema")
    return database

class Reader:
    """Steps 2 to 10. What is found from step 5 on is collected, since a reader can go on."""
    def __init__(self, vault, copy, kms_directory):
        self.vault, self.copy, self.kms_directory = vault, copy, kms_directory
        self.findings, self.events, self.check = [], [], {"bytes": 0, "chunks": 0, "entries": 0}
        self.nodes, self.versions, self.digests, self.left_over = {}, {}, {}, set()
        self.entries, self.places, self.chunks = (defaultdict(list) for _ in range(3))
        self.compare = lambda *finding: self.attempt(demand, *finding)
    def attempt(self, function, *arguments):
        """What the function returns, or None and a finding."""
        try:
            return function(*arguments)
        except Refusal as refusal:
            self.findings.append(refusal)
        except sqlite3.Error as error:
            exit_code = 3 if "not a database" in str(error) else 6
            self.findings.append(Refusal("database", str(error), exit_code))
    def rows(self, table, columns, where="1"):
        """Rows in the order of their keys. A value out of bounds ends the reading."""
        for row in self.database.execute(
                f"SELECT {columns} FROM {table} WHERE {where} ORDER BY {columns}"):
            for column, value in zip(columns.split(", "), row):
                is_blob = column in ("tag", "value", "sealed")
                most = MAXIMA.get(column) or MAXIMA[table if is_blob else "number"]
                within = isinstance(value, bytes if is_blob else int)
                within = within and 0 <= (len(value) if is_blob else value) <= most
                within = within and (column != "tag" or len(value) == most)
                demand(within, "bounds", f"{column} of {table}")
            yield row
    def read(self):
        """Steps 1 to 4, where the first failure ends the reading, and then the others."""
        self.database, values = open_database(self.vault, self.copy), []
        for table in ("header", "keyring", "state", "node"):
            columns = "id, value" if table != "node" else "id, generation, value"
            row = next(self.rows(table, columns, "id = 0"), None)
            demand(row, "missing", f"row 0 of {table}")
            values.append(row[1:])
        (header,), (keyring,), (state,), system = values
        self.header = decoded("header", "header", header, "header")
        demand(self.header.magic == b"secretfs", "header", "another magic")
        demand(self.header.minimum_reader <= 1 == self.header.suite, "header", "a newer vault", 1)
        self.keyring = decode_keyring(sha256(header), keyring)
        self.keys = Keys(vault_id=self.header.vault_id, master_keys={})
        self.unlock(sha256(header))
        self.system = self.keys.open_node(0, *system)
        demand(self.system.kind == SYSTEM, "kind", "node 0 is not the system node")
        plain = self.keys.open("state", b"metadata state", self.system.keys[-1], 6, b"", state)
        self.state = decoded("encoding", "state", plain, "state record")
        demand(bool(self.state.renewal) == (len(self.system.keys) == 2), "state", "the renewal")
        demand(self.state.keyring == self.keyring.sequence, "sequence", "of another keyring")
        for step in (self.read_history, self.read_nodes, self.read_entries, self.read_versions):
            step()
    def unlock(self, header_hash):
        """Step 3. The KMS keys of the active generation are trusted; its MAC is for the others."""
        self.active, = [item for item in self.keyring.generations if item.state == "active"]
        trusted = {wrap.uri for wrap in self.active.wraps}
        demand(all(map(URI.fullmatch, trusted)), "KMS", "a URI that is none")
        for item in sorted(self.keyring.generations, key=lambda item: item is not self.active):
            keys = (self.attempt(ask_kms, self.kms_directory, wrap, item.number, self.keys.vault_id)
                    for wrap in item.wraps if wrap.uri in trusted)
            key = next(filter(None, keys), None)  # no other is asked then
            refusals, self.findings = self.findings, []
            demand(key or refusals, "KMS", f"generation {item.number} has no trusted URI")
            if not key and item.state == "pending":  # which wraps nothing
                continue
            if not key:
                raise refusals[0]
            info = b"secretfs/1 master check" + header_hash + self.keys.vault_id
            demand(expand(key, info + le64(item.number)) == item.check, "check value", "wrong key")
            self.keys.master_keys[item.number] = key
            mac_key = expand(key, b"secretfs/1 master keyring-mac")
            mac = hmac_sha256(mac_key, self.keyring.mac_message)
            right = item is not self.active or mac == self.keyring.macs.get(item.number)
            demand(right, "keyring MAC", f"of generation {item.number}")
    def read_history(self):
        """Step 5."""
        chain = bytes(32)
        for sequence, value in self.rows("event", "sequence, value", "sequence > 0"):
            self.compare(sequence == len(self.events) + 1, "history", f"event {sequence}: a gap")
            chain = sha256(b"secretfs event" + chain + le64(sequence) + value)
            self.events.append(decode_event(sequence, value))
        fits = (len(self.events), chain) == (self.keyring.length, self.keyring.hash)
        self.compare(fits, "history", "the chain does not end as the keyring says")
    def read_nodes(self):
        """Step 6. The sums are over rows, whether they open or not."""
        hashed = {}
        for number, generation, value in self.rows("node", "id, generation, value"):
            hashed["node", number] = b"n" + le64(number) + sha256(le64(generation) + value)
            self.nodes[number] = self.attempt(self.keys.open_node, number, generation, value)
        for node, number, generation, first_chunk, value in self.rows(
                "version", "node, version, generation, first_chunk, value"):
            hashed["version", node, number] = (
                b"v" + le64(node) + le64(number) + sha256(le64(generation) + value))
            self.versions[node, number] = generation, first_chunk, value
        def summed(key, upto):
            counted = [place for place in hashed if place <= upto]
            set_key = expand(key, b"secretfs/1 metadata set")
            nodes = sum(place[0] == "node" for place in counted)
            total = sum_of(hmac_sha256(set_key, hashed[place]) for place in counted)
            return nodes, len(counted) - nodes, total
        state, keys, renewal = self.state, self.system.keys, self.state.renewal
        fits = summed(keys[0], max(hashed)) == (state.nodes, state.versions, state.sum)
        if renewal:
            upto = tuple(vars(renewal.upto).values()) if renewal.upto else ()
            numbers = renewal.nodes, renewal.versions
            fits = fits and summed(keys[0], upto) == (*numbers, renewal.found)
            fits = fits and summed(keys[1], upto) == (*numbers, renewal.sum)
        self.compare(fits, "sum of the vault", "rows are not those of the state")
        root = self.nodes.get(1)
        is_there = 1 in self.nodes and (not root or root.kind == DIRECTORY)
        self.compare(is_there, "missing", "the root, or it is no directory")
        self.compare(max(self.nodes) < state.next_node, "state", "the next node is given out")
    def read_entries(self):
        """Steps 7 and 8. The sums are over rows here, too."""
        rows = defaultdict(list)
        for number, *row in self.rows("entry", "directory, tag, value"):
            rows[number].append(row)
            self.check["entries"] += 1
        directories = {n: node for n, node in self.nodes.items() if node and node.kind == DIRECTORY}
        self.compare(rows.keys() <= directories.keys(), "strays", "entries of no directory")
        for number, directory in directories.items():
            body, entries, hashes, previous = directory.body, self.entries[number], [], []
            for tag, value in rows[number]:
                epoch = int.from_bytes(value[:4], "little") if len(value) >= 4 else -1
                set_key = expand(directory.epochs.get(epoch, directory.keys[-1]),
                                 b"secretfs/1 metadata set")
                hashes.append(hmac_sha256(set_key, b"e" + tag + sha256(value)))
                previous += hashes[-1:] if epoch == vars(body).get("previous_epoch") else []
                entry = self.attempt(self.keys.open_entry, directory, tag, value)
                entries += [entry] if entry else []
            found = {"entries": len(hashes), "sum": sum_of(hashes),
                     "previous_entries": len(previous), "previous_sum": sum_of(previous),
                     "subdirectories": sum(entry.kind == DIRECTORY for entry in entries)}
            fits = all(vars(body).get(name, value) == value for name, value in found.items())
            self.compare(fits, "sum of a directory", directory.record)
            for entry in entries:
                self.places[entry.node].append((number, entry.tag))
                node = self.nodes.get(entry.node)
                self.compare(entry.node in self.nodes, "names", f"{entry.record}: of no node")
                self.compare(not node or node.kind == entry.kind, "kind", f"{entry.record}: kind")
        # Step 8. The root has a link without a name. Of what does not open, nothing is known.
        for number, node in self.nodes.items():
            if node and number > 0:
                root, places = number == 1, self.places[number]
                fits = len(places) == node.links - (root and node.links > 0)
                if node.kind == DIRECTORY:
                    fits = fits and places in ([], [(node.body.parent, node.body.tag)][root:])
                self.compare(fits, "names", f"{node.record}: links, or names")
    def read_versions(self):
        """Steps 9 and 10."""
        rows, owned = Counter(), Counter()
        for row, node, number, index, _ in self.rows("chunk", "id, node, version, idx, sealed"):
            self.chunks[node, number, row - index].append((index, row))  # by first_chunk
            rows[node] += 1
        for (node, number), row in self.versions.items():
            owned[node] += self.read_version(node, number, *row)
        self.compare(rows <= owned, "strays", "chunks of no version")
        for number, node in self.nodes.items():
            if node and node.kind == FILE:
                none = not node.body.version and not node.body.size
                fits = none or (number, node.body.version) in self.digests
                self.compare(fits, "content", f"{node.record}: no current version, or a size")
        orphans = {number for number, in self.rows("orphan", "id")}
        nameless = {n for n, node in self.nodes.items() if n > 1 and node and node.links == 0}
        wrong = orphans - self.nodes.keys() | (nameless | self.left_over) - orphans
        self.compare(not wrong, "left-overs", f"of no node, or not in orphan: {wrong}")
    def read_version(self, node_number, number, generation, first_chunk, value):
        """A version; how many chunks it owns. Of one that is begun, these are what opens."""
        record = f"version {number} of node {node_number}"
        version = self.attempt(self.keys.open_version, node_number, number, generation, value)
        node = self.nodes.get(node_number)
        current = node.body.version if node and node.kind == FILE else -1
        there = sorted(self.chunks[node_number, number, first_chunk]) if first_chunk else []
        if not version:
            return 0
        begun = number > current >= 0 and version.chunks - 1 not in dict(there)
        fits = current >= 0 and number > 0 and (number <= current or begun)
        self.compare(fits, "strays", f"{record}: of no file, or newer")
        if number < current or begun:
            self.left_over.add(node_number)
        self.compare(number != current or version.length == node.body.size, "extent", record)
        content, own = hashlib.sha256(), [item for item in there if item[0] < version.chunks]
        for place, (index, row) in enumerate(own):
            sealed, = self.database.execute(f"SELECT sealed FROM chunk WHERE id = {row}").fetchone()
            try:
                demand(index == place or not begun, "chunk", "after one that is missing")
                content.update(self.keys.open_chunk(version, index, sealed))
            except Refusal as refusal:
                if begun:
                    return place
                self.findings.append(refusal)
            self.check["chunks"] += 1
        if begun:
            return len(own)
        self.compare(len(own) == version.chunks, "chunk", f"{record}: not all of its chunks")
        self.check["bytes"] += version.length
        self.digests[node_number, number] = content.hexdigest()
        return version.chunks
    def shown(self, node, path):
        """What expected.json has of a path, and of those below: no directory has two names."""
        body, below = node.body, {}
        result = {"kind": KINDS[node.kind], "node": node.number, "mode": f"{node.mode:04o}",
                  "uid": node.uid, "gid": node.gid, "links": node.links, "accessed": node.accessed,
                  "modified": node.modified, "changed": node.changed}
        if node.kind in (FILE, DIRECTORY):
            xattrs = {os.fsdecode(item.name): item.value.hex() for item in node.xattrs}
            result |= {"generation": node.generation, "xattrs": xattrs}
        if node.kind == FILE:
            digest = self.digests.get((node.number, body.version), hashlib.sha256().hexdigest())
            result |= {"size": body.size, "version": body.version, "sha256": digest}
        elif node.kind == DIRECTORY:
            result["links"] = body.subdirectories + 2 if node.links else 0
            for entry in self.entries[node.number]:
                name = urllib.parse.quote(entry.name, safe=" ")
                below |= self.shown(self.nodes[entry.node], f"{path}/{name}")
        elif body.variant == "symlink":
            result["target"] = urllib.parse.quote(body.target, safe="/ ")
        elif KINDS[node.kind].endswith("device"):
            minor = body.device & 0xFF | body.device >> 12 & ~0xFF
            result["device"] = [body.device >> 8 & 0xFFF, minor]
        return {path: result} | below
    def report(self):
        keyring, rotation, vault = self.keyring, self.keyring.rotation, self.keys.vault_id.hex()
        generations = [{"generation": item.number, "state": item.state, "created": item.created,
                        "wraps": [dated({"kms_key": wrap.uri, "key_id": wrap.key_id,
                                         "created": wrap.created}, "created")
                                  for wrap in item.wraps]} for item in keyring.generations]
        counts = {name: len(getattr(self, name)) for name in ("nodes", "versions", "events")}
        return {"vault": vault, "format": self.header.format, "keyring": keyring.sequence,
                "commit": self.state.commit, "check": {"vault": vault} | self.check | counts,
                "active_generation": self.active.number, "generations": generations,
                "rotation": rotation and {name: vars(rotation)[name]
                                          for name in ("kind", "phase", "from", "to")},
                "events": [dated(event, "at") for event in self.events],
                "tree": self.shown(self.nodes[1], ".")}
def dated(shown, member):
    """With the time of a member as a date; one that is none in the calendar is not shown."""
    if not -62135596800 <= shown.get(member, 2**62) < 253402300800:
        return shown
    date = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=shown[member])
    return shown | {f"{member}_time": date.isoformat() + "Z"}
def main(vault, kms_directory):
    """Prints what the vault says, or what is wrong with it; returns the exit code."""
    with tempfile.TemporaryDirectory() as copy:
        reader = Reader(vault, copy, kms_directory)
        reader.attempt(reader.read)
    for finding in reader.findings:
        print(f"{finding.args[0]}: {finding.args[1]}", file=sys.stderr)
    if not reader.findings:
        print(json.dumps(reader.report(), indent=2, sort_keys=True, ensure_ascii=False))
    return reader.findings[-1].args[2] if reader.findings else 0

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
