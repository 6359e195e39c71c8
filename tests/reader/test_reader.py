"""Holds reader.py to the golden vaults: test_reader.py [GOLDEN]"""

import contextlib
import io
import json
import os
import pathlib
import shutil
import sqlite3
import sys
import tempfile

import reader

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "golden"


def copy_of(name, target):
    """A copy of a vault, and of its KMS with the modes that the page demands."""
    shutil.copytree(GOLDEN / "vaults" / name, target)
    kms = target / "kms"
    for path in [kms, *kms.iterdir()]:
        path.chmod(0o700 if path.is_dir() else 0o600)
    return target / "vault", kms


def tamper(vault, statements):
    connection = sqlite3.connect(vault / "vault.db", isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")  # the disk need not see it
    connection.execute("PRAGMA ignore_check_constraints = ON")
    for statement in statements:
        connection.execute(statement)
    connection.close()


def read(vault, kms):
    """The exit code, what was printed, and the kinds of checks that were told."""
    printed, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        exit_code = reader.main(str(vault), str(kms))
    kinds = sorted({line.partition(":")[0] for line in told.getvalue().splitlines()})
    return exit_code, printed.getvalue(), kinds


def main():
    if os.path.isdir("/dev/shm"):
        tempfile.tempdir = "/dev/shm"  # where the 450 copies cost no writing to a disk
    opened = refused = 0
    differences = []
    for directory in sorted((GOLDEN / "vaults").iterdir()):
        with tempfile.TemporaryDirectory() as temporary:
            exit_code, printed, kinds = read(*copy_of(directory.name, pathlib.Path(temporary, "c")))
        expected = json.loads((directory / "expected.json").read_text())
        found = json.loads(printed) if printed else {}
        if exit_code == 0 and found == expected:
            opened += 1
        else:
            members = [k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k)]
            differences.append((directory.name, 0, [], exit_code, kinds, members))
    for entry in json.loads((GOLDEN / "tampered.json").read_text()):
        with tempfile.TemporaryDirectory() as temporary:
            vault, kms = copy_of(entry["vault"], pathlib.Path(temporary) / "c")
            tamper(vault, entry["sql"])
            exit_code, printed, kinds = read(vault, kms)
        if (exit_code, kinds, printed) == (entry["exit"], sorted(entry["found_by"]), ""):
            refused += 1
        else:
            what = f"{entry['number']} {entry['vault']}: {entry['record']}, {entry['field']}"
            differences.append((what, entry["exit"], entry["found_by"], exit_code, kinds, []))
    print(f"{opened} opened, {refused} refused")
    if differences:
        print("what | exit, kinds expected | exit, kinds found | members that differ")
    for what, *columns in differences:
        print(" | ".join([what, *map(str, columns)]))
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
