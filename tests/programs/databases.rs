//! SQLite in a mount: its own locks, journals and shared memory.

use crate::support::tree::{Tree, needs};

/// One process writes, another has a read-only connection open all the while.
fn reader_follows(journal: &str, rounds: u32) {
    needs(&["sqlite3"]);
    let tree = Tree::new();
    tree.python(&format!(
        r#"
import sqlite3, subprocess, sys, os
db = sqlite3.connect("db", isolation_level=None)
assert db.execute("pragma journal_mode={journal}").fetchone()[0] == "{journal}"
db.execute("create table t(n integer primary key, text)")
db.execute("insert into t values(0, hex(randomblob(3000)))")
reader = subprocess.Popen([sys.executable, "-u", "-c", '''
import sqlite3, sys
db = sqlite3.connect("file:db?mode=ro", uri=True, isolation_level=None, timeout=60)
for line in sys.stdin:
    print(*db.execute("select count(*), coalesce(max(n), -1), coalesce(sum(length(text)), -1) from t").fetchone())
'''], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
def ask():
    reader.stdin.write("\n"); reader.stdin.flush()
    return reader.stdout.readline().split()
assert ask() == ["1", "0", "6000"]
for n in range(1, {rounds}):
    # Half of the commits by this process, half by one that comes and goes.
    if n % 2:
        db.execute("insert into t values(?, hex(randomblob(3000)))", (n,))
    else:
        subprocess.run(["sqlite3", "db", f"insert into t values({{n}}, hex(randomblob(3000)));"], check=True)
    assert ask() == [str(n + 1), str(n), str(6000 * (n + 1))], n
db.execute("begin"); db.execute("delete from t")
expected = [str({rounds}), str({rounds} - 1), str(6000 * {rounds})]
assert ask() == expected
db.execute("rollback")
assert ask() == expected
assert db.execute("pragma integrity_check").fetchone()[0] == "ok"
reader.stdin.close(); assert reader.wait() == 0
db.close()
"#
    ));
    tree.remount();
    let rows = tree.bash("sqlite3 db 'pragma integrity_check; select count(*) from t'");
    assert_eq!(rows, format!("ok\n{rounds}\n"));
    tree.bash("sqlite3 db vacuum; sqlite3 db 'pragma integrity_check' | grep -qx ok");
    tree.ends_sound();
}

#[test]
fn a_reader_of_a_rollback_journal_database_follows_every_commit() {
    reader_follows("delete", 12);
}

#[test]
fn a_reader_of_a_truncated_journal_database_follows_every_commit() {
    reader_follows("truncate", 8);
}

#[test]
fn a_reader_of_a_wal_database_follows_every_commit() {
    reader_follows("wal", 16);
}

#[test]
fn several_processes_write_one_database() {
    for journal in ["delete", "wal"] {
        let tree = Tree::new();
        tree.python(&format!(
            r#"
import os, sqlite3
db = sqlite3.connect("db"); db.execute("pragma journal_mode={journal}")
db.execute("create table t(who, n)"); db.commit(); db.close()
def work(who):
    db = sqlite3.connect("db", timeout=120, isolation_level=None)
    for n in range(10):
        db.execute("begin immediate")
        db.execute("insert into t values(?, ?)", (who, n))
        db.execute("commit")
    db.close()
pids = []
for who in range(3):
    pid = os.fork()
    if pid == 0:
        try: work(who)
        except BaseException as e: print(e, flush=True); os._exit(1)
        os._exit(0)
    pids.append(pid)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
db = sqlite3.connect("db")
rows = db.execute("select who, n from t order by 1, 2").fetchall()
assert rows == [(w, n) for w in range(3) for n in range(10)], rows
assert db.execute("pragma integrity_check").fetchone()[0] == "ok"
"#
        ));
        tree.ends_sound();
    }
}
