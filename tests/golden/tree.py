"""Fills the directory in which it runs with nodes of every kind. `tree.py early` makes what an early copy
of the vault has, `tree.py late` changes that and makes the rest.
"""
import os
import socket
import stat
import sys


def text(length):
    """Bytes that differ from place to place."""
    return bytes((at * 7 + at // 251) % 256 for at in range(length))


def write(path, content):
    with open(path, "wb") as file:
        file.write(content)


def early():
    write("password", b"a first password")
    write("certificate", text(2000))
    write("removed", b"until it is removed")
    os.mkdir("directory", 0o750)
    write("directory/large", text(66_000)[::-1])
    os.mkdir("directory/inner")
    write("moved", b"in another directory before long")


def late():
    write("password", b"the second password")
    write("password", b"the third password")
    write("directory/large", text(66_000))
    os.remove("removed")
    os.rename("moved", "directory/inner/moved")
    os.link("certificate", "directory/inner/link")

    os.close(os.open("never written", os.O_CREAT | os.O_WRONLY, 0o600))
    write("empty", b"some")
    write("empty", b"")
    for length in (1, 255, 256, 257, 4097):
        write(f"{length} bytes", text(length))

    os.makedirs("deep/er/and/deeper")
    os.mkdir("bare", 0o1777)
    write("n" * 255, b"the longest name")
    write(b"\xff\xfe not UTF-8 \n", b"names are bytes")
    write("\u00fcnicode \u2603", b"names are bytes, these are UTF-8")
    os.symlink("../certificate", "deep/symlink")
    os.symlink(b"\xff nowhere", "dangling")
    os.mkfifo("fifo", 0o640)
    bound = socket.socket(socket.AF_UNIX)
    bound.bind("socket")
    bound.close()
    os.mknod("null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod("disk", 0o660 | stat.S_IFBLK, os.makedev(259, 300))

    write("attributes", b"all of them")
    os.setxattr("attributes", "user.empty", b"")
    os.setxattr("attributes", "user.text", b"some text")
    os.setxattr("attributes", "user.bytes", text(300))
    os.setxattr("directory", "user.kind", b"a directory's")
    os.setxattr("directory", "user.gone", b"soon")
    os.removexattr("directory", "user.gone")
    os.chown("attributes", 1000, 100)
    os.chmod("attributes", 0o6751)
    os.utime("attributes", ns=(-1_500_000_000, 4_102_444_800_123_456_789))
    os.chown("directory", 65534, 65534)
    os.chown("dangling", 12, 34, follow_symlinks=False)
    os.utime("deep", ns=(1, 2))


{"early": early, "late": late}[sys.argv[1]]()
