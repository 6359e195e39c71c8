//! Programs that watch others at work: following a file, being told of changes, waiting for locks.

use std::time::Duration;

use crate::support::process::wait_for;
use crate::support::tree::{Tree, needs};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn tail_follows_what_is_appended_and_what_takes_the_name() {
    needs(&["tail"]);
    let tree = Tree::new();
    tree.bash("echo 1 > log; touch $BESIDE/f $BESIDE/F");
    let _follow = tree.start("tail -s 0.1 -n +1 -f log > $BESIDE/f");
    let _name = tree.start("tail -s 0.1 -n +1 -F log > $BESIDE/F 2>/dev/null");
    let read = |name: &str| std::fs::read_to_string(tree.beside(name)).unwrap_or_default();
    wait_for("the first line", SOON, || {
        read("f") == "1\n" && read("F") == "1\n"
    });
    let mut expected = "1\n".to_owned();
    for line in 2..6 {
        tree.bash(&format!("echo {line} >> log"));
        expected += &format!("{line}\n");
        wait_for("an appended line", SOON, || {
            read("f") == expected && read("F") == expected
        });
    }
    tree.bash("mv log log.1; echo new > log");
    wait_for("the new file", SOON, || {
        read("F") == format!("{expected}new\n")
    });
    tree.bash("echo old >> log.1");
    wait_for("the old file", SOON, || {
        read("f") == format!("{expected}old\n")
    });
    drop((_follow, _name));
    tree.ends_sound();
}

#[test]
fn tail_sees_what_a_writer_syncs_while_it_goes_on() {
    needs(&["tail"]);
    let tree = Tree::new();
    tree.bash("echo start > log; touch $BESIDE/seen");
    let follow = tree.start("tail -s 0.1 -n +1 -f log > $BESIDE/seen");
    let writer = tree.start(
        "python3 -c '
import os, time
f = open(\"log\", \"a\")
for i in range(5):
    f.write(f\"{i}\\n\"); f.flush(); os.fsync(f.fileno())
time.sleep(600)'",
    );
    let read = || std::fs::read_to_string(tree.beside("seen")).unwrap_or_default();
    wait_for("all lines", SOON, || read() == "start\n0\n1\n2\n3\n4\n");
    drop((follow, writer));
    tree.ends_sound();
}

#[test]
fn inotifywait_is_told_of_what_happens_through_the_mount() {
    needs(&["inotifywait"]);
    let tree = Tree::new();
    tree.bash("mkdir d; echo x > d/seen; touch $BESIDE/events");
    let watch = tree.start("inotifywait -qm --format '%e %f' d > $BESIDE/events");
    let read = || std::fs::read_to_string(tree.beside("events")).unwrap_or_default();
    wait_for("the watch", SOON, || {
        tree.bash("cat d/seen > /dev/null");
        read().contains("OPEN seen")
    });
    tree.bash(
        "echo a > d/a; echo b >> d/a; chmod 600 d/a; mv d/a d/b; ln d/b d/c; rm d/b; mkdir d/e; mv d/c out",
    );
    let events = [
        "CREATE a",
        "MODIFY a",
        "CLOSE_WRITE,CLOSE a",
        "ATTRIB a",
        "MOVED_FROM a",
        "MOVED_TO b",
        "CREATE c",
        "DELETE b",
        "CREATE,ISDIR e",
        "MOVED_FROM c",
    ];
    wait_for("all events", SOON, || {
        let told = read();
        events
            .iter()
            .all(|event| told.lines().any(|line| line == *event))
    });
    drop(watch);
    tree.ends_sound();
}

#[test]
fn flock_guards_what_is_read_and_written_back() {
    needs(&["flock"]);
    let tree = Tree::new();
    tree.bash(
        r#"
        echo 0 > counter
        for who in 1 2 3 4; do
            for i in {1..15}; do
                flock lock bash -c 'n=$(cat counter); echo $((n + 1)) > counter'
            done &
        done
        wait
        test "$(cat counter)" = 60
        exec 3> lock; flock -n 3; ! flock -n lock true; ! flock -ns lock true
        flock -u 3; flock -n lock true
        "#,
    );
    tree.ends_sound();
}

#[test]
fn posix_and_open_file_description_locks_keep_others_out() {
    let tree = Tree::new();
    tree.python(
        r#"
import fcntl, os, struct
F_OFD_SETLK = 37
def other(call):
    pid = os.fork()
    if pid == 0:
        try: call(); os._exit(0)
        except BlockingIOError: os._exit(1)
        except BaseException: os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
f = open("f", "w+"); f.write("x" * 100); f.flush()
def lock(kind, start, length, block=fcntl.LOCK_NB):
    with open("f", "r+") as g: fcntl.lockf(g, kind | block, length, start)
fcntl.lockf(f, fcntl.LOCK_EX, 10, 20)
assert other(lambda: lock(fcntl.LOCK_EX, 0, 20)) == 0
assert other(lambda: lock(fcntl.LOCK_EX, 29, 1)) == 1
assert other(lambda: lock(fcntl.LOCK_SH, 25, 1)) == 1
assert other(lambda: lock(fcntl.LOCK_EX, 30, 0)) == 0
fcntl.lockf(f, fcntl.LOCK_SH, 10, 20)
assert other(lambda: lock(fcntl.LOCK_SH, 20, 10)) == 0
fcntl.lockf(f, fcntl.LOCK_UN, 10, 20)
assert other(lambda: lock(fcntl.LOCK_EX, 0, 0)) == 0
def ofd(g, kind): fcntl.fcntl(g, F_OFD_SETLK, struct.pack("hhqqi4x", kind, 0, 0, 0, 0))
g, h = open("f", "r+"), open("f", "r+")
ofd(g, fcntl.F_WRLCK)
try: ofd(h, fcntl.F_WRLCK); raise SystemExit("both have the lock")
except BlockingIOError: pass
g.close(); ofd(h, fcntl.F_WRLCK)
"#,
    );
    tree.ends_sound();
}
