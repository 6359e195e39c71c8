//! Several processes that write at the end of one file: nothing acknowledged is lost.

use crate::support::tree::Tree;

#[test]
fn lines_appended_by_several_processes_are_all_there() {
    let tree = Tree::new();
    tree.python(
        r#"
import os
def work(who):
    fd = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for i in range(60):
        line = f"{who}-{i}\n".encode()
        before = os.fstat(fd).st_size
        assert os.write(fd, line) == len(line)
        after = os.fstat(fd).st_size
        assert after >= before + len(line), (before, after)
        assert os.lseek(fd, 0, os.SEEK_CUR) <= os.lseek(fd, 0, os.SEEK_END)
        if i % 20 == 0: os.fsync(fd)
        if i % 30 == 7:
            os.close(fd); fd = os.open("log", os.O_WRONLY | os.O_APPEND)
    os.close(fd)
pids = []
for who in range(5):
    pid = os.fork()
    if pid == 0:
        try: work(who)
        except BaseException as e: print(e, flush=True); os._exit(1)
        os._exit(0)
    pids.append(pid)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
"#,
    );
    let look = "
lines = open('log').read().split()
assert sorted(lines) == sorted(f'{w}-{i}' for w in range(5) for i in range(60)), len(lines)
for who in range(5):
    own = [line for line in lines if line.startswith(f'{who}-')]
    assert own == [f'{who}-{i}' for i in range(60)], 'out of order'
";
    tree.python(look);
    tree.remount();
    tree.python(look);
    tree.ends_sound();
}

#[test]
fn shells_that_append_a_line_each_lose_none() {
    let tree = Tree::new();
    tree.bash(
        r#"
        for who in a b c d; do (for i in {1..25}; do echo "$who$i" >> log; done) & done
        wait
        diff <(sort log) <(for who in a b c d; do for i in {1..25}; do echo "$who$i"; done; done | sort)
        "#,
    );
    tree.ends_sound();
}

#[test]
fn appending_may_be_switched_on_and_off_after_opening() {
    let tree = Tree::new();
    tree.python(
        r#"
import os, fcntl
open("f", "w").write("0123456789")
fd = os.open("f", os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
os.pwrite(fd, b"end", 0)
fcntl.fcntl(fd, fcntl.F_SETFL, 0)
os.pwrite(fd, b"begin", 0)
os.close(fd)
assert open("f").read() == "begin56789end", open("f").read()
"#,
    );
    tree.ends_sound();
}

#[test]
fn a_synchronous_write_is_stored_when_it_returns() {
    let tree = Tree::new();
    tree.python(
        r#"
import os
for flag in (os.O_SYNC, os.O_DSYNC):
    fd = os.open("f", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flag, 0o600)
    for i in range(5):
        os.write(fd, b"%d" % i)
        assert open("f").read() == "01234"[:i + 1], open("f").read()
    os.close(fd)
"#,
    );
    tree.ends_sound();
}
