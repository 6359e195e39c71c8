//! Ordinary users, mount(8), and machines that lack something: each in a mount namespace of its
//! own, so that the machine itself stays as it is.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use support::process::{PROGRAM, Place, Ran};
use support::rotating::done;

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
    let output = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c"])
        .arg(format!("{prelude}{script}"))
        .env("PLACE", place.path())
        .env("SECRETFS_LOCAL_KMS_DIR", place.path().join("kms"))
        .stdin(Stdio::null())
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
