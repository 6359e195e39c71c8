"""Prints what is in the directory in which it runs, as JSON: an object for each path. Paths and targets
are bytes, of which those that are not plain are %XX; xattrs are in hexadecimal, times in nanoseconds.
"""
import hashlib
import json
import os
import stat
from urllib.parse import quote_from_bytes

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def plain(path):
    return quote_from_bytes(path, safe="/ ")


def xattr(path, name):
    return int(os.getxattr(path, f"user.secretfs.{name}"))


def describe(path):
    found = os.lstat(path)
    kind = KINDS[stat.S_IFMT(found.st_mode)]
    told = {
        "kind": kind,
        "node": found.st_ino,
        "mode": f"{stat.S_IMODE(found.st_mode):04o}",
        "uid": found.st_uid,
        "gid": found.st_gid,
        "links": found.st_nlink,
        "accessed": found.st_atime_ns,
        "modified": found.st_mtime_ns,
        "changed": found.st_ctime_ns,
    }
    if kind == "file":
        with open(path, "rb") as file:
            content = file.read()
        assert len(content) == found.st_size
        told["size"] = len(content)
        told["sha256"] = hashlib.sha256(content).hexdigest()
        told["version"] = xattr(path, "version")
    if kind == "symlink":
        told["target"] = plain(os.readlink(path))
    if kind.endswith("device"):
        told["device"] = [os.major(found.st_rdev), os.minor(found.st_rdev)]
    if kind in ("file", "directory"):
        told["generation"] = xattr(path, "generation")
        told["xattrs"] = {
            plain(os.fsencode(name)): os.getxattr(path, name).hex() for name in sorted(os.listxattr(path))
        }
    return told


def walk(path, tree):
    tree[plain(path)] = describe(path)
    if stat.S_ISDIR(os.lstat(path).st_mode):
        for name in sorted(os.listdir(path)):
            walk(path + b"/" + name, tree)


tree = {}
walk(b".", tree)
print(json.dumps(tree))
