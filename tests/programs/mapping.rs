//! What goes through the page cache: mmap, sendfile, splice; and the calls that move bytes inside
//! of the kernel.

use crate::support::tree::Tree;

#[test]
fn mapped_files_are_read_and_follow_what_is_published_in_place() {
    let tree = Tree::new();
    tree.python(
        r#"
import mmap, os, time
for size in (1, 4096, 100_000, 1_000_000):
    content = os.urandom(size)
    with open("f", "wb") as f: f.write(content)
    with open("f", "rb") as f:
        for access in (mmap.ACCESS_READ, mmap.ACCESS_COPY):
            m = mmap.mmap(f.fileno(), 0, access=access)
            assert m[:] == content, size
            if access == mmap.ACCESS_COPY:
                m[0:1] = b"!"
                assert m[0:1] == b"!" and open("f", "rb").read() == content
        m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        assert m[:] == content
        with open("f", "r+b") as w: w.seek(size - 1); w.write(b"?")
        for _ in range(600):
            if m[size - 1:] == b"?": break
            time.sleep(0.1)
        assert m[size - 1:] == b"?" and m[:size - 1] == content[:-1]
"#,
    );
    tree.ends_sound();
}

#[test]
fn what_is_written_to_a_shared_mapping_is_stored_by_msync_and_by_closing() {
    let tree = Tree::new();
    tree.python(
        r#"
import mmap, os
content = bytearray(os.urandom(200_000))
with open("f", "wb") as f: f.write(content)
with open("f", "r+b") as f:
    m = mmap.mmap(f.fileno(), 0)
    m[10:20] = content[10:20] = b"0123456789"
    m[150_000:150_003] = content[150_000:150_003] = b"abc"
    m.flush()
    assert open("f", "rb").read() == content
    m[199_999:] = content[199_999:] = b"z"
    m.close()
assert len(open("f", "rb").read()) == len(content)
# Two processes share a mapping.
pid = os.fork()
if pid == 0:
    with open("f", "r+b") as f:
        m = mmap.mmap(f.fileno(), 0); m[0:5] = b"child"; m.flush()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
content[0:5] = b"child"
with open("f", "r+b") as f:
    m = mmap.mmap(f.fileno(), 0)
    assert m[:] == content
open(os.environ["BESIDE"] + "/expected", "wb").write(content)
"#,
    );
    tree.remount();
    tree.bash("cmp f $BESIDE/expected");
    tree.ends_sound();
}

#[test]
fn a_mapping_lives_on_after_its_file_is_closed_and_removed() {
    let tree = Tree::new();
    tree.python(
        r#"
import mmap, os
content = os.urandom(50_000)
with open("f", "wb") as f: f.write(content)
with open("f", "rb") as f: m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
os.unlink("f")
assert m[:] == content
"#,
    );
    tree.ends_sound();
}

#[test]
fn sendfile_and_splice_carry_contents_in_and_out() {
    let tree = Tree::new();
    tree.python(
        r#"
import os, socket, threading
content = os.urandom(300_000)
with open("f", "wb") as f: f.write(content)
def drain(fd):
    got = bytearray()
    while piece := os.read(fd, 65536): got += piece
    return bytes(got)
def through(send):
    r, w = os.pipe(); got = []
    t = threading.Thread(target=lambda: got.append(drain(r))); t.start()
    send(w); os.close(w); t.join(); os.close(r)
    return got[0]
fd = os.open("f", os.O_RDONLY)
def send(w):
    at = 0
    while n := os.sendfile(w, fd, at, 100_000): at += n
assert through(send) == content
def splice_out(w):
    at = 0
    while n := os.splice(fd, w, 100_000, offset_src=at): at += n
assert through(splice_out) == content
a, b = socket.socketpair(); got = []
t = threading.Thread(target=lambda: got.append(drain(b.fileno()))); t.start()
a.sendfile(open("f", "rb")); a.close(); t.join()
assert got[0] == content
out = os.open("g", os.O_WRONLY | os.O_CREAT, 0o600)
r, w = os.pipe()
def feed():
    at = 0
    while at < len(content): at += os.write(w, content[at:at + 50_000])
    os.close(w)
t = threading.Thread(target=feed); t.start()
while os.splice(r, out, 65536): pass
t.join(); os.close(out)
assert open("g", "rb").read() == content
src, dst = os.open("f", os.O_RDONLY), os.open("h", os.O_WRONLY | os.O_CREAT, 0o600)
while os.sendfile(dst, src, None, 100_000): pass
os.close(dst)
assert open("h", "rb").read() == content
# What was replaced meanwhile is not served from an old page.
for i in range(5):
    with open("f", "wb") as f: f.write(b"%d" % i * 5000)
    with open("f", "rb") as f: assert os.pread(f.fileno(), 3, 0) == b"%d" % i * 3
    new = os.open("f", os.O_RDONLY)
    got = through(lambda w: os.sendfile(w, new, 0, 5000))
    assert got == b"%d" % i * 5000, (i, got[:5])
    os.close(new)
"#,
    );
    tree.ends_sound();
}

#[test]
fn ranges_are_copied_allocated_punched_and_sought() {
    let tree = Tree::new();
    tree.python(
        r#"
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
def fallocate(fd, mode, offset, length):
    if libc.fallocate(fd, mode, offset, length): raise OSError(ctypes.get_errno(), "fallocate")
KEEP, PUNCH, COLLAPSE, ZERO = 1, 2, 8, 16
content = bytearray(os.urandom(1_500_000))
with open("f", "wb") as f: f.write(content)
src, dst = os.open("f", os.O_RDONLY), os.open("g", os.O_RDWR | os.O_CREAT, 0o600)
at = 0
while n := os.copy_file_range(src, dst, len(content) - at, at, at): at += n
assert at == len(content)
os.copy_file_range(src, dst, 10, 0, 500); content[500:510] = content[0:10]
os.close(dst); assert open("g", "rb").read() == content
fd = os.open("g", os.O_RDWR)
os.posix_fallocate(fd, 0, 1_600_000); content += bytes(100_000)
assert os.fstat(fd).st_size == 1_600_000
fallocate(fd, KEEP, 1_600_000, 50_000); assert os.fstat(fd).st_size == 1_600_000
fallocate(fd, KEEP | PUNCH, 1000, 5000); content[1000:6000] = bytes(5000)
fallocate(fd, ZERO, 1_599_990, 20); content[1_599_990:] = bytes(20)
assert os.pread(fd, len(content), 0) == content
try: fallocate(fd, COLLAPSE, 0, 4096); raise SystemExit("collapsed")
except OSError as e: assert e.errno == errno.EOPNOTSUPP
assert os.lseek(fd, 5, os.SEEK_DATA) == 5
assert os.lseek(fd, 5, os.SEEK_HOLE) == len(content)
for whence in (os.SEEK_DATA, os.SEEK_HOLE):
    try: os.lseek(fd, len(content), whence); raise SystemExit("found something at the end")
    except OSError as e: assert e.errno == errno.ENXIO
os.close(fd); assert open("g", "rb").read() == content
"#,
    );
    tree.ends_sound();
}

#[test]
fn a_file_past_its_limit_is_refused_before_anything_is_acknowledged() {
    let tree = Tree::with_options("max-secret-size=64K,max-memory=1M");
    tree.python(
        r#"
import errno, os
def refused(number, call):
    try: call()
    except OSError as e: assert e.errno == number, e
    else: raise SystemExit("not refused")
fd = os.open("f", os.O_RDWR | os.O_CREAT, 0o600)
assert os.write(fd, b"x" * 65536) == 65536
refused(errno.EFBIG, lambda: os.write(fd, b"y"))
refused(errno.EFBIG, lambda: os.pwrite(fd, b"y" * 10, 65530))
refused(errno.EFBIG, lambda: os.ftruncate(fd, 65537))
refused(errno.EFBIG, lambda: os.posix_fallocate(fd, 0, 65537))
refused(errno.EFBIG, lambda: os.truncate("f", 1 << 40))
os.close(fd); assert open("f", "rb").read() == b"x" * 65536
fds = []
acknowledged = {}
for i in range(40):
    fd = os.open(f"many{i}", os.O_WRONLY | os.O_CREAT, 0o600); fds.append(fd)
    try: acknowledged[i] = os.write(fd, b"%02d" % i * 25_000)
    except OSError as e: assert e.errno == errno.ENOSPC, e; acknowledged[i] = 0
assert 0 in acknowledged.values() and 50_000 in acknowledged.values(), acknowledged
[os.close(fd) for fd in fds]
for i, n in acknowledged.items():
    assert open(f"many{i}", "rb").read() == (b"%02d" % i * 25_000)[:n], i
with open("after", "wb") as f: f.write(b"z" * 65536)
assert open("after", "rb").read() == b"z" * 65536
"#,
    );
    tree.ends_sound();
}
