//! Programs that copy and remove whole trees, and version control.

use crate::support::tree::{Tree, needs};

/// `same A B` compares two trees in everything but the sizes of directories.
const SAME: &str = r#"
list() { (cd "$1" && find . -mindepth 1 \( -type d -printf '%P %y %m %U %G %T@\n' \
    -o -printf '%P %y %m %U %G %s %T@ %l %n\n' \) | sort
    find . -type f -print0 | sort -z | xargs -0 getfattr -hd -m user.
    find . -type f -print0 | sort -z | xargs -0 sha256sum); }
same() { diff <(list "$1") <(list "$2"); }
"#;

/// A tree with one of everything that a file system can hold, in `$BESIDE/tree`.
const PREPARE: &str = r#"
mkdir -p "$BESIDE/tree/deep/er" && cd "$BESIDE/tree"
printf 's3cret\n' > password && chmod 0640 password && chown 4001:4100 password
head -c 300000 /dev/urandom > deep/large
: > empty
ln password deep/hard
ln -s ../password deep/soft
ln -s /nowhere dangling && chown -h 4002:4002 dangling
mkfifo pipe
touch $'\xff\xfe not utf-8'
touch "$(printf 'n%.0s' {1..255})"
chmod 4711 empty; chmod 1777 deep/er; chmod 0400 deep/large
# Long ago: rsync leaves times alone that differ by less than a second.
find . -exec touch -h -d '2011-12-13 14:15:16.171819202 UTC' {} +
setfattr -n user.origin -v elsewhere password
touch -h -d '1969-12-31 23:59:57.123456789 UTC' dangling
touch -d '2001-02-03 04:05:06.987654321 UTC' password deep/large deep/er deep
cd "$MOUNT"
"#;

fn copied_by(copy: &str) {
    needs(&["setfattr", "getfattr"]);
    let tree = Tree::new();
    tree.bash(&format!("{SAME}{PREPARE}{copy}"));
    tree.remount();
    tree.bash(&format!("{SAME}same $BESIDE/tree copy"));
    tree.ends_sound();
}

#[test]
fn cp_copies_a_tree_in_and_out_with_everything() {
    copied_by(
        "cp -a $BESIDE/tree copy; same $BESIDE/tree copy; cp -a copy $BESIDE/out; same copy $BESIDE/out; cp -a copy again; same copy again",
    );
}

#[test]
fn tar_packs_and_unpacks_a_tree_with_everything() {
    needs(&["tar"]);
    copied_by(
        "tar -C $BESIDE --xattrs -cf in.tar tree
         tar --xattrs --xattrs-include='user.*' -xpf in.tar 2>$BESIDE/said && mv tree copy; same $BESIDE/tree copy
         tar --xattrs -cf $BESIDE/out.tar copy
         mkdir $BESIDE/out && tar -C $BESIDE/out --xattrs --xattrs-include='user.*' -xpf $BESIDE/out.tar
         same copy $BESIDE/out/copy",
    );
}

#[test]
fn rsync_copies_a_tree_with_everything_and_finds_nothing_left_to_do() {
    needs(&["rsync"]);
    copied_by(
        "rsync -aHX $BESIDE/tree/ copy; same $BESIDE/tree copy
         test -z \"$(rsync -aHXni --checksum --delete $BESIDE/tree/ copy/)\"
         printf x >> $BESIDE/tree/deep/er/new; touch -d 2012-01-01 $BESIDE/tree/deep/er; rm $BESIDE/tree/empty
         rsync -aHX --delete $BESIDE/tree/ copy; same $BESIDE/tree copy
         rsync -aHX --inplace --checksum copy/ $BESIDE/out; same copy $BESIDE/out",
    );
}

#[test]
fn git_clones_commits_packs_and_is_cloned_from() {
    needs(&["git"]);
    let tree = Tree::new();
    tree.bash(
        r#"
        export GIT_CONFIG_GLOBAL=$BESIDE/gitconfig
        git config --global user.email who@example.com; git config --global user.name Who
        git config --global init.defaultBranch trunk; git config --global gc.auto 0
        git init -q $BESIDE/origin; cd $BESIDE/origin
        for i in {1..30}; do echo "$i" > file$i; done; ln -s file1 link; git add .; git commit -qm one
        cd "$MOUNT"
        git clone -q $BESIDE/origin work; cd work
        test -z "$(git status --porcelain)"
        echo changed > file7; git mv file8 moved; git commit -qam two
        git checkout -qb branch HEAD~1; echo other > file9; git commit -qam three
        git checkout -q trunk; git merge -q -m merged branch
        git gc -q; git fsck --strict
        test "$(git log --oneline | wc -l)" = 4
        git push -q $BESIDE/origin trunk:copy
        git clone -q "$MOUNT/work" $BESIDE/back
        diff -r --exclude .git "$MOUNT/work" $BESIDE/back
        git -C $BESIDE/origin log -1 --format=%s copy | grep -qx merged
        "#,
    );
    tree.remount();
    tree.bash("cd work; git config --global --add safe.directory '*'; git fsck --strict; test -z \"$(git status --porcelain)\"");
    tree.ends_sound();
}

#[test]
fn the_control_directory_is_reached_by_name_and_never_met() {
    let tree = Tree::new();
    tree.bash(
        r#"
        mkdir -p some/dir; echo a > some/dir/a; echo b > b
        test -s .secretfs/status
        test "$(ls -A | tr '\n' ' ')" = 'b some '
        ! find . | grep -F .secretfs
        cp -a . $BESIDE/copy; diff -r . $BESIDE/copy; test ! -e $BESIDE/copy/.secretfs
        tar -cf - . | tar -tf - | sort | tr '\n' ' ' | grep -Fx './ ./b ./some/ ./some/dir/ ./some/dir/a '
        ! rm -rf "$MOUNT" 2>$BESIDE/said
        test -z "$(ls -A)"
        test -s .secretfs/status
        echo again > b; test "$(cat b)" = again
        "#,
    );
    tree.ends_sound();
}

#[test]
fn a_large_directory_is_listed_whole_while_names_come_and_go() {
    let tree = Tree::new();
    tree.python(
        r#"
import os, threading, subprocess
os.mkdir("d")
stay = {f"stay-{i:05}" for i in range(2000)}
for name in stay:
    os.close(os.open("d/" + name, os.O_CREAT | os.O_WRONLY))
over = threading.Event()
def churn(who):
    i = 0
    while not over.is_set():
        name = f"d/{who}-{i % 100}"
        open(name, "x").close()
        os.rename(name, name + "-moved")
        os.unlink(name + "-moved")
        i += 1
threads = [threading.Thread(target=churn, args=(who,)) for who in ("x", "y")]
[t.start() for t in threads]
try:
    for command in (["ls", "-f"], ["ls", "-lU"], ["find", "-printf", "%f\\n"]):
        out = subprocess.run(command, cwd="d", capture_output=True, text=True).stdout
        seen = [line.split()[-1] for line in out.splitlines() if "stay-" in line]
        assert len(seen) == len(set(seen)), (command, "a name twice")
        assert set(seen) == stay, (command, len(seen))
finally:
    over.set()
    [t.join() for t in threads]
assert set(os.listdir("d")) == stay
"#,
    );
    tree.bash("rm -r d; test -z \"$(ls -A)\"");
    tree.ends_sound();
}

#[test]
fn names_may_have_255_bytes_of_any_kind() {
    let tree = Tree::new();
    let program = r#"
import os
names = [b"\xff" * 255, "ü".encode() * 127, b"\x01\n\t ", bytes(b for b in range(1, 256) if b != 47)[:254], b"-rf", b"..."]
for name in names:
    with open(name, "wb") as f: f.write(name)
    os.mkdir(name[:-1] + b"d"); os.symlink(name, name[:-1] + b"l")
def look():
    for name in names:
        assert open(name[:-1] + b"l", "rb").read() == name
    have = set(os.listdir(b"."))
    assert have == {n for name in names for n in (name, name[:-1] + b"d", name[:-1] + b"l")}, have
look()
"#;
    tree.python(program);
    tree.remount();
    tree.python(&program.replace("for name in names:\n    with", "for name in []:\n    with"));
    tree.ends_sound();
}
