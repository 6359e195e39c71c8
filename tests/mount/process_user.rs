//! Ordinary users, mount(8), and machines that lack something: each in a mount namespace of its
//! own, so that the machine itself stays as it is.

use std::os::unix::fs::PermissionsExt;

use crate::support::process::{PROGRAM, Place, Ran, in_own_namespace};
use crate::support::rotating::done;

/// Makes /dev/fuse usable for everybody, as distributions do.
const OPEN_DEVICE: &str = r#"
mkdir "$PLACE/dev" && mount -t tmpfs none "$PLACE/dev"
mknod -m 0666 "$PLACE/dev/fuse" c 10 229
mount --bind "$PLACE/dev/fuse" /dev/fuse
"#;

/// Runs a script as root in a mount namespace of its own. In it, `secretfs` is a copy of the
/// program that everybody may run, and `as_user` runs a command as nobody under 8 MiB of lockable
/// memory.
fn in_namespace(place: &Place, script: &str) -> Ran {
    let all = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(place.path(), all.clone()).expect("opened");
    let bin = place.path().join("bin");
    std::fs::create_dir_all(&bin).expect("made");
    // A second time in one test, it may still be running.
    if !bin.join("secretfs").exists() {
        std::fs::copy(PROGRAM, bin.join("secretfs")).expect("copied");
    }
    let home = place.path().join("home");
    std::fs::create_dir_all(home.join("m")).expect("made");
    for path in [&home, &home.join("m")] {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).expect("given away");
    }
    let prelude = r#"
set -eu
PATH="$PLACE/bin:$PATH"
as_user() {
    prlimit --memlock=8388608:8388608 setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all,+setuid,+setgid,+sys_admin,+dac_override,+chown,+setfcap,+fowner env HOME="$PLACE/home" XDG_DATA_HOME="$PLACE/home/data" XDG_STATE_HOME="$PLACE/home/state" SECRETFS_LOCAL_KMS_DIR="$PLACE/home/kms" "$@"
}
gone() {
    for i in $(seq 100); do
        grep -q " $1 .*fuse.secretfs" /proc/self/mountinfo || return 0
        sleep 0.05
    done
    echo "still mounted: $1" >&2
    return 1
}
"#;
    let output = in_own_namespace(place)
        .args(["sh", "-c"])
        .arg(format!("{prelude}{script}"))
        // Of each user at home.
        .env_remove("SECRETFS_ANCHOR_DIR")
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("XDG_DATA_HOME")
        .env_remove("XDG_STATE_HOME")
        .output()
        .expect("unshare runs");
    Ran(output)
}

#[test]
fn an_ordinary_user_mounts_through_fusermount() {
    let place = Place::new();
    let script = format!(
        r#"{OPEN_DEVICE}
        cd "$PLACE/home"
        as_user secretfs init v > /dev/null
        as_user secretfs mount v m
        as_user cat m/.secretfs/status > status
        grep " $PLACE/home/m " /proc/self/mountinfo | grep -q nosuid,nodev,noexec
        as_user secretfs mount v m && exit 9 || test $? = 7
        as_user secretfs umount m > /dev/null
        gone "$PLACE/home/m"
        as_user secretfs mount v m > /dev/null
        as_user fusermount3 -u m
        gone "$PLACE/home/m"
        "#
    );
    let ran = in_namespace(&place, &script);
    assert!(
        ran.0.status.success(),
        "{:?} {}",
        ran.0.status,
        ran.stderr()
    );
    assert_eq!(ran.stdout(), "v is mounted on m\n");
    let status = std::fs::read_to_string(place.path().join("home/status")).expect("status");
    assert!(
        status.contains("\"arena\"") && status.contains("8388608"),
        "{status}"
    );
}

/// A helper is told nothing but paths, and they may lead to another mount by then.
#[test]
fn the_end_of_a_mount_of_an_ordinary_user_leaves_a_mount_that_has_its_path() {
    let place = Place::new();
    let script = format!(
        r#"{OPEN_DEVICE}
        cd "$PLACE/home"
        for v in v w; do as_user secretfs init $v > /dev/null; done
        for signal in TERM KILL; do
            as_user mkdir -p a/m b/m
            as_user secretfs mount v a/m > /dev/null
            as_user secretfs mount w b/m > /dev/null
            first=$(as_user secretfs status --json v | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')
            as_user mv a c
            as_user mv b a
            kill -$signal $first
            gone "$PLACE/home/c/m"
            sleep 0.3
            grep " $PLACE/home/a/m " /proc/self/mountinfo | grep -q " $PLACE/home/w "
            as_user cat a/m/.secretfs/status > status
            as_user secretfs umount a/m > /dev/null
            as_user rm -r a c
        done
        "#
    );
    let ran = in_namespace(&place, &script);
    assert!(
        ran.0.status.success(),
        "{:?} {}",
        ran.0.status,
        ran.stderr()
    );
}

#[test]
fn an_ordinary_user_and_root_have_the_daemon_of_that_user_rotate() {
    let place = Place::new();
    let script = format!(
        r#"{OPEN_DEVICE}
        cd "$PLACE/home"
        as_user secretfs init v > /dev/null
        as_user secretfs mount v m > /dev/null
        test "$(stat -c '%a %U %F' v/control.sock)" = '600 nobody socket'
        as_user secretfs rotate v --wait 2> /dev/null
        # Root has no key of this vault, the daemon has.
        secretfs reencrypt v --wait 2> /dev/null
        secretfs status v | grep '^active generation'
        secretfs audit v --verify
        as_user secretfs umount m | grep -q '^m is unmounted, its vault at commit [0-9]*$'
        gone "$PLACE/home/m"
        test ! -e v/control.sock
        "#
    );
    let ran = in_namespace(&place, &script);
    assert!(
        ran.0.status.success(),
        "{:?} {}",
        ran.0.status,
        ran.stderr()
    );
    let told = format!(
        "{}{}active generation: 3\n9 events, none missing or changed\n",
        done("rotate"),
        done("reencrypt")
    );
    assert_eq!(ran.stdout(), told);
}

#[test]
fn who_may_use_a_mount_but_not_command_it_is_told_so() {
    let place = Place::new();
    let script = r#"
        cd "$PLACE"
        export SECRETFS_ANCHOR_DIR="$PLACE/anchors"
        secretfs init v > /dev/null
        secretfs mount v m -o allow-other > /dev/null
        as_user secretfs rotate m 2> told && status=0 || status=$?
        secretfs umount m
        cat told >&2
        exit $status
        "#;
    let ran = in_namespace(&place, script);
    assert_eq!(ran.0.status.code(), Some(1), "{}", ran.stderr());
    let told = "m/.secretfs/control: Permission denied (os error 13); only root, the user of its \
                daemon, and whom control-uid names may command it";
    assert!(ran.stderr().contains(told), "{}", ran.stderr());
}

/// Of their own daemon, which hides its memory, ordinary users are told less by the kernel.
#[test]
fn what_an_ordinary_user_empties_is_empty_for_the_next_with_several_threads() {
    let place = Place::new();
    let script = format!(
        r#"{OPEN_DEVICE}
        cd "$PLACE/home"
        as_user secretfs init v > /dev/null
        as_user secretfs mount v m -o threads=4
        as_user bash -c 'for ((i = 0; i < 400; i++)); do
            echo full > m/f
            : > m/f; seen=$(< m/f)
            [[ -z $seen ]] || {{ echo "round $i: $seen" >&2; exit 1; }}
        done'
        as_user secretfs umount m
        gone "$PLACE/home/m"
        "#
    );
    in_namespace(&place, &script).succeeded();
}

#[test]
fn the_mount_of_an_ordinary_user_ends_on_sigterm_idle_and_busy() {
    let place = Place::new();
    let script = format!(
        r#"{OPEN_DEVICE}
        cd "$PLACE/home"
        as_user secretfs init v > /dev/null
        for busy in no yes; do
            as_user secretfs mount "$PWD/v" "$PWD/m" > /dev/null
            pid=$(pgrep -u 65534 -f "secretfs mount $PWD/v" | head -1)
            if [ $busy = yes ]; then as_user sh -c 'exec 9< m/.secretfs/status; sleep 2; line=$(cat <&9); test -n "$line"' & reader=$!; sleep 0.5; fi
            kill -TERM $pid
            gone "$PLACE/home/m"
            if [ $busy = yes ]; then wait $reader; fi
            for i in $(seq 100); do kill -0 $pid 2> /dev/null || break; sleep 0.05; done
            kill -0 $pid 2> /dev/null && exit 9
        done
        true
        "#
    );
    let ran = in_namespace(&place, &script);
    assert!(
        ran.0.status.success(),
        "{:?} {}",
        ran.0.status,
        ran.stderr()
    );
}

#[test]
fn the_helper_removes_the_mount_of_a_daemon_that_was_killed() {
    let place = Place::new();
    let script = format!(
        r#"{OPEN_DEVICE}
        cd "$PLACE/home"
        as_user secretfs init v > /dev/null
        as_user secretfs mount "$PWD/v" "$PWD/m" > /dev/null
        kill -KILL $(pgrep -u 65534 -f "secretfs mount $PWD/v" | head -1)
        gone "$PLACE/home/m"
        "#
    );
    let ran = in_namespace(&place, &script);
    assert!(
        ran.0.status.success(),
        "{:?} {}",
        ran.0.status,
        ran.stderr()
    );
}

#[test]
fn a_device_that_is_forbidden_or_missing_is_named() {
    let place = Place::with_vault();
    let closed = OPEN_DEVICE.replace("0666", "0600");
    in_namespace(&place, &format!(r#"{closed} cd "$PLACE/home"; as_user secretfs init v > /dev/null; as_user secretfs mount v m"#))
        .failed(1, "/dev/fuse");
    in_namespace(&place, r#"mount -t tmpfs none /dev; mknod -m 0666 /dev/null c 1 3; secretfs mount "$PLACE/v" "$PLACE/m""#)
        .failed(1, "/dev/fuse is missing");
    assert!(!place.is_mounted());
}

#[test]
fn locked_memory_is_required_when_asked_for() {
    let place = Place::new();
    let script = format!(
        r#"{OPEN_DEVICE}
        cd "$PLACE/home"
        as_user secretfs init v > /dev/null
        as_user secretfs mount v m -o require-mlock
        "#
    );
    in_namespace(&place, &script).failed(1, "RLIMIT_MEMLOCK is 8388608");
}

#[test]
fn mount_and_fstab_find_secretfs() {
    let place = Place::with_vault();
    // mount(8) looks for helpers in /sbin only.
    let script = r#"
        mount -t tmpfs none /usr/sbin
        ln -s "$PLACE/bin/secretfs" /usr/sbin/mount.secretfs
        mount -t secretfs "$PLACE/v" "$PLACE/m" -o ro,noauto,_netdev,x-systemd.automount
        grep " $PLACE/m ro,nosuid,nodev,noexec" /proc/self/mountinfo | grep -q "fuse.secretfs $PLACE/v"
        umount "$PLACE/m"
        gone "$PLACE/m"
        echo "$PLACE/v $PLACE/m secretfs noauto,user,nofail,ttl=2,allow_other 0 0" > "$PLACE/fstab"
        mount -T "$PLACE/fstab" "$PLACE/m"
        grep " $PLACE/m " /proc/self/mountinfo | grep -q allow_other
        umount "$PLACE/m"
        gone "$PLACE/m"
        set +e
        mount -t secretfs "$PLACE/none" "$PLACE/m" 2> /dev/null; test $? = 32 || exit 9
        mount -t secretfs "$PLACE/v" "$PLACE/m" -o nonsense 2> /dev/null; test $? = 1 || exit 8
    "#;
    let ran = in_namespace(&place, script);
    assert!(
        ran.0.status.success(),
        "{:?} {}",
        ran.0.status,
        ran.stderr()
    );
}

/// The type that mounts have, and what mount(8) looks for when one is to be mounted again.
#[test]
fn a_remount_is_refused_in_words_and_changes_nothing() {
    let place = Place::with_vault();
    let script = r#"
        mount -t tmpfs none /usr/sbin
        ln -s "$PLACE/bin/secretfs" /usr/sbin/mount.fuse.secretfs
        cd "$PLACE"
        agrees() { grep " $PLACE/m rw,.* - fuse.secretfs $PLACE/v rw," /proc/self/mountinfo > /dev/null; }
        mount -t fuse.secretfs "$PLACE/v" "$PLACE/m" -o ttl=2s
        agrees
        for how in remount remount,ro remount,rw remount,ttl=5s remount,uid=0; do
            mount -o $how m 2> said && exit 9 || test $? = 1
            grep -q '^mount.secretfs: .*`remount`.*mount it again' said
            test "$(wc -l < said)" = 1
            agrees
            echo $how > m/file
            test "$(cat m/file)" = $how
        done
        # What is said to do instead.
        mount -o remount,bind,ro m
        ! sh -c 'echo no > m/file' 2> /dev/null
        mount -o remount,bind,rw m
        echo yes > m/file
        umount m
        gone "$PLACE/m"
        echo "$PLACE/v $PLACE/m fuse.secretfs ro,noauto 0 0" > fstab
        mount -T fstab "$PLACE/m"
        test "$(cat m/file)" = yes
        ! sh -c 'echo no > m/file' 2> /dev/null
        mount -T fstab -o remount,rw "$PLACE/m" 2> said && exit 9 || test $? = 1
        grep -q 'mount it again' said
        umount m
        gone "$PLACE/m"
        secretfs mount v m -o remount 2> said && exit 9 || test $? = 2
        grep -q 'mount it again' said
        mount -t fuse.secretfs "$PLACE/none" m 2> /dev/null && exit 9 || test $? = 32
    "#;
    in_namespace(&place, script).succeeded();
}

/// Without a link of its name, mount(8) runs the helper of libfuse, and that the program, if it finds it.
#[test]
fn what_the_helper_of_libfuse_calls_mounts_and_refuses_as_well() {
    let place = Place::with_vault();
    let script = r#"
        mount -t tmpfs none /usr/local/bin
        cp "$PLACE/bin/secretfs" /usr/local/bin
        cd "$PLACE"
        test ! -e /sbin/mount.fuse.secretfs
        mount -t fuse.secretfs "$PLACE/v" "$PLACE/m"
        grep -q " $PLACE/m rw,.* - fuse.secretfs $PLACE/v " /proc/self/mountinfo
        mount -o remount,ro m 2> said && exit 9 || test $? = 1
        grep -q 'mount it again' said
        grep -q " $PLACE/m rw,.* - fuse.secretfs $PLACE/v rw," /proc/self/mountinfo
        umount m
        gone "$PLACE/m"
        mount -t fuse "secretfs#$PLACE/v" "$PLACE/m" -o ro
        grep -q " $PLACE/m ro,.* - fuse.secretfs $PLACE/v " /proc/self/mountinfo
        umount m
        gone "$PLACE/m"
    "#;
    in_namespace(&place, script).succeeded();
}

#[test]
fn options_of_mount_mean_something_are_known_or_are_refused() {
    let place = Place::with_vault();
    let script = r#"
        mount -t tmpfs none /usr/sbin
        ln -s "$PLACE/bin/secretfs" /usr/sbin/mount.secretfs
        cd "$PLACE"
        v="$PLACE/v" m="$PLACE/m"
        for option in uid=1000 gid=1000; do
            mount -t secretfs $v $m -o $option 2> said && exit 9 || test $? = 1
            grep -q '^mount.secretfs: .*secretfs init --.*chown(1)' said
            secretfs mount $v $m -o $option 2> said && exit 9 || test $? = 2
            grep -q '^secretfs: .*secretfs init --.*chown(1)' said
        done
        for option in user_id=0 nosymfollow usrquota allow_root fsname=x; do
            mount -t secretfs $v $m -o $option 2> said && exit 9 || test $? = 1
            grep -q "^mount.secretfs: unknown option .${option%=*}." said
        done
        test -z "$(grep " $m " /proc/self/mountinfo)"
        # As mount -s does.
        mount -s -t secretfs $v $m -o uid=1000,usrquota
        test "$(stat -c %u $m)" = 0
        umount $m
        gone $m
        # All that the manual lists.
        mount -t secretfs $v $m -o auto,noauto,user,nouser,users,nousers,owner,noowner,group,nogroup,_netdev,nofail,defaults,nodev,nosuid,sync,async,dirsync,atime,noatime,relatime,norelatime,strictatime,nostrictatime,diratime,nodiratime,lazytime,nolazytime,mand,nomand,silent,loud,iversion,noiversion,default_permissions,comment=x,x-systemd.automount,X-mount.mkdir,dev,suid
        grep -q " $m rw,nosuid,nodev,noexec" /proc/self/mountinfo
        umount $m
        gone $m
    "#;
    in_namespace(&place, script).succeeded();
}

/// In a user namespace there are only the users that it maps, and the kernel believes owners of a file
/// system that was mounted in it by these.
#[test]
fn who_is_mapped_to_root_has_no_owners_and_who_is_mapped_to_herself_has() {
    let place = Place::new();
    let script = format!(
        r#"{OPEN_DEVICE}
        mkdir "$PLACE/hers"
        chown 1000:1000 "$PLACE/hers"
        cd "$PLACE/hers"
        hers() {{ setpriv --reuid 1000 --regid 1000 --clear-groups env HOME="$PWD" XDG_DATA_HOME="$PWD/data" XDG_STATE_HOME="$PWD/state" SECRETFS_LOCAL_KMS_DIR="$PWD/kms" "$@"; }}
        hers secretfs init v > /dev/null 2>&1
        hers mkdir m
        hers secretfs mount v m > /dev/null
        hers sh -c 'umask 077; echo s3cret > m/secret; test "$(cat m/secret)" = s3cret'
        hers secretfs umount m > /dev/null
        hers unshare -r -m sh -c '
            secretfs mount v m > /dev/null
            stat -c "%u %a" m/secret
            cat m/secret 2>&1 || true
            secretfs umount m > /dev/null'
        hers unshare -c --keep-caps -m sh -c '
            secretfs mount v m > /dev/null
            stat -c "%u %a" m/secret
            cat m/secret
            secretfs umount m > /dev/null'
        "#
    );
    let said = in_namespace(&place, &script).succeeded().stdout();
    assert_eq!(
        said,
        "65534 600\ncat: m/secret: Permission denied\n1000 600\ns3cret\n"
    );
}

#[test]
fn an_ordinary_user_is_told_that_others_may_hold_the_vault_unseen() {
    let place = Place::new();
    let script = format!(
        r#"{OPEN_DEVICE}
        cd "$PLACE/home"
        as_user secretfs init v > /dev/null
        as_user secretfs mount v m > /dev/null
        # Of root, which nobody else may look at.
        mkfifo "$PLACE/begun" "$PLACE/end"
        unshare -m --propagation private sh -c 'echo begun > "$PLACE/begun"; read end < "$PLACE/end"' &
        holder=$!
        trap 'kill $holder 2> /dev/null || true' EXIT
        read begun < "$PLACE/begun"
        # It may as well be the daemon that has something left to write.
        as_user secretfs umount m --drain-timeout 100ms > said 2>&1 &
        umount=$!
        for i in $(seq 100); do test -s said && break; sleep 0.1; done
        grep -q 'is still held: .* could not be looked at (root may).*; waiting for that' said
        test "$(wc -l < said)" = 1
        echo end > "$PLACE/end"
        wait $holder
        wait $umount
        as_user secretfs mount v m > /dev/null
        as_user secretfs umount m > /dev/null
        "#
    );
    in_namespace(&place, &script).succeeded();
}

#[test]
fn an_ordinary_user_keeps_real_secrets_within_8_mib_of_locked_memory() {
    let place = Place::new();
    let script = format!(
        r#"{OPEN_DEVICE}
        cd "$PLACE/home"
        user() {{ as_user env -u SECRETFS_LOCAL_KMS_DIR "$@"; }}
        user secretfs init v > /dev/null
        user secretfs mount v m > /dev/null
        user sh -c 'mkdir -p m/db; echo s3cret > m/db/password; chmod 600 m/db/password; ln -s password m/db/link'
        for at in 1 2 3; do
            user dd if=/dev/urandom of=big.$at bs=1M count=3 status=none
            user cp big.$at m/big.$at
        done
        # All of them open at once, which is more than can be locked.
        user sh -c 'exec 3< m/big.1 4< m/big.2 5< m/big.3
            for fd in 3 4 5; do head -c 100000 <&$fd > /dev/null; done
            cp m/.secretfs/status held'
        user secretfs umount m > /dev/null
        gone "$PLACE/home/m"
        user secretfs mount v m > /dev/null
        test "$(user cat m/db/password)" = s3cret
        test "$(user cat m/db/link)" = s3cret
        for at in 1 2 3; do user cmp big.$at m/big.$at; done
        user cat m/.secretfs/status > idle
        user secretfs umount m > /dev/null
        gone "$PLACE/home/m"
        user secretfs check v > /dev/null
        stat -c '%a %u %n' data/secretfs/kms data/secretfs/kms/default* state/secretfs/anchors state/secretfs/anchors/*.json v v/vault.db
        chmod 644 data/secretfs/kms/default*
        user secretfs mount v m && exit 9 || test $? = 1
        chmod 600 data/secretfs/kms/default*; chmod 750 data/secretfs/kms
        user secretfs mount v m
        "#
    );
    let ran = in_namespace(&place, &script);
    let (said, told) = (ran.stdout(), ran.stderr());
    assert_eq!(ran.0.status.code(), Some(1), "{said} {told}");
    // Both refusals name what is too open, and how to mend it.
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 2, "{told}");
    assert!(lines[0].contains("data/secretfs/kms/default"), "{told}");
    assert!(lines[1].contains("data/secretfs/kms"), "{told}");
    assert!(lines.iter().all(|line| line.contains("chmod")), "{told}");
    for line in said.lines() {
        let wanted =
            match line.contains("/default") || line.ends_with(".json") || line.ends_with(".db") {
                true => "600 65534 ",
                false => "700 65534 ",
            };
        assert!(line.starts_with(wanted), "{line}");
    }
    assert!(said.lines().count() >= 6, "{said}");
    let status = |name: &str| -> serde_json::Value {
        let text = std::fs::read(place.path().join("home").join(name)).expect("status");
        serde_json::from_slice(&text).expect("JSON")
    };
    // What could not be locked is told, not hidden.
    for status in [status("held"), status("idle")] {
        assert_eq!(status["protection"]["locked"], "arena", "{status}");
        let bytes = |name: &str| status["memory"][name].as_u64().expect("bytes");
        assert!(
            bytes("locked") > 0 && bytes("locked") <= 8 << 20,
            "{status}"
        );
        if bytes("drafts_and_snapshots") > bytes("locked") {
            assert!(bytes("unlocked") > 0, "{status}");
        }
    }
}
