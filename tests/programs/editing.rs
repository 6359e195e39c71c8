//! Programs that change files: in place, by renaming over them, behind a running writer.

use crate::support::tree::{Tree, needs};

#[test]
fn sed_and_perl_edit_in_place() {
    needs(&["sed", "perl"]);
    let tree = Tree::new();
    tree.bash(
        r#"
        printf 'user=a\npass=b\n' > f; chmod 0604 f; exec 3< f
        sed -i 's/^pass=.*/pass=c/' f; test "$(cat f)" = $'user=a\npass=c'
        test "$(cat <&3)" = $'user=a\npass=b'
        sed -i.bak 's/a$/z/' f; test "$(cat f.bak)" = $'user=a\npass=c'
        perl -pi -e 's/z/y/' f; test "$(cat f)" = $'user=y\npass=c'
        test "$(stat -c %a f)" = 604; test "$(ls -A | tr '\n' ' ')" = 'f f.bak '
        "#,
    );
    tree.ends_sound();
}

#[test]
fn vim_edits_whichever_way_it_keeps_backups() {
    needs(&["vim"]);
    let tree = Tree::new();
    for (way, expected) in [("yes", "two"), ("no", "three"), ("auto", "four")] {
        tree.bash(&format!(
            r#"
            test -e f || printf 'one\nkept\n' > f; chmod 0640 f
            vim -es -u NONE -i NONE --not-a-term -c 'set backup writebackup backupcopy={way} backupskip= fsync' \
                -c '1s/.*/{expected}/' -c 'wq' f
            test "$(cat f)" = $'{expected}\nkept'; test "$(stat -c %a f)" = 640
            test -z "$(ls -A | grep swp || true)"
            "#
        ));
    }
    tree.remount();
    tree.bash("test \"$(cat f)\" = $'four\\nkept'; test \"$(cat f~)\" = $'three\\nkept'");
    tree.ends_sound();
}

#[test]
fn a_file_replaced_by_rename_is_never_missing_and_never_partial() {
    let tree = Tree::new();
    tree.python(
        r#"
import os, threading
whole = [bytes([65 + i]) * (500 + i * 20000) for i in range(4)]
def replace(content):
    with open("f.new", "wb") as f:
        f.write(content); f.flush(); os.fsync(f.fileno())
    os.rename("f.new", "f")
replace(whole[0])
over = threading.Event()
wrong = []
def look():
    while not over.is_set():
        try:
            content = open("f", "rb").read()
            if content not in whole: wrong.append(len(content))
        except OSError as e: wrong.append(e)
readers = [threading.Thread(target=look) for _ in range(2)]
[r.start() for r in readers]
for i in range(60): replace(whole[i % 4])
over.set(); [r.join() for r in readers]
assert not wrong, wrong[:5]
old = open("f", "rb"); old.read(1)
replace(b"new")
assert old.read() == whole[59 % 4][1:] and open("f", "rb").read() == b"new"
"#,
    );
    tree.ends_sound();
}

#[test]
fn mv_does_not_clobber_and_exchanges() {
    needs(&["mv"]);
    let tree = Tree::new();
    tree.bash(
        r#"
        echo a > a; echo b > b
        mv -n a b || true; test "$(cat a b)" = $'a\nb'
        mv -nT a c; test "$(cat c)" = a; test ! -e a
        mv --backup=numbered c b; test "$(cat b)" = a; test "$(cat b.~1~)" = b
        mkdir d; mv b d; mv d e; test "$(cat e/b)" = a
        mv e/b $BESIDE/out; mv $BESIDE/out back; test "$(cat back)" = a
        "#,
    );
    tree.ends_sound();
}

#[test]
fn logrotate_copies_and_truncates_behind_a_writer() {
    needs(&["logrotate"]);
    let tree = Tree::new();
    tree.bash(
        r#"
        exec 3>> app.log
        echo first >&3
        cat > $BESIDE/rotate <<EOF
$MOUNT/app.log {
    copytruncate
    rotate 2
    su root root
}
EOF
        chmod 0644 $BESIDE/rotate
        logrotate -f -s $BESIDE/state $BESIDE/rotate
        echo second >&3
        test "$(cat app.log.1)" = first
        logrotate -f -s $BESIDE/state $BESIDE/rotate
        echo third >&3
        exec 3>&-
        test "$(cat app.log.2 app.log.1 app.log)" = $'first\nsecond\nthird'
        test "$(stat -c %s app.log)" = 6
        "#,
    );
    tree.ends_sound();
}
