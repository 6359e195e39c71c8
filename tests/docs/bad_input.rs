//! What a clumsy or hostile user can hand to the commands: each gets one clear line and a
//! documented code, and nothing half made stays behind.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::support::evil::footprint;
use crate::support::process::{PROGRAM, Place, Ran, in_own_namespace};

fn run(place: &Place, args: &[&OsStr]) -> Ran {
    place.run(args)
}

/// Runs a script as root in a mount namespace of its own, with the program as `secretfs`.
fn script(place: &Place, script: &str) -> Ran {
    let bin = place.path().join("bin");
    fs::create_dir_all(&bin).expect("made");
    if !bin.join("secretfs").exists() {
        fs::copy(PROGRAM, bin.join("secretfs")).expect("copied");
    }
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("opened");
    let output = in_own_namespace(place)
        .args(["sh", "-c"])
        .arg(format!(
            "PATH=\"$PLACE/bin:$PATH\"; cd \"$PLACE\"; {script}"
        ))
        .output()
        .expect("unshare runs");
    Ran(output)
}

/// As somebody who owns nothing here.
const AS_NOBODY: &str =
    "setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all";

#[test]
fn init_touches_nothing_that_is_there() {
    let place = Place::with_vault();
    let init = |path: &Path| run(&place, &["init".as_ref(), path.as_os_str()]);
    let dir = place.path();
    fs::write(dir.join("file"), "mine").expect("written");
    fs::create_dir(dir.join("full")).expect("made");
    fs::write(dir.join("full/.hidden"), "mine").expect("written");
    symlink(dir.join("nowhere"), dir.join("dangling")).expect("linked");
    symlink("loop", dir.join("loop")).expect("linked");
    fs::create_dir(dir.join("strange")).expect("made");
    symlink("/dev/null", dir.join("strange/vault.db")).expect("linked");
    let before = footprint(&[dir.to_owned()]);
    init(&place.vault()).failed(8, "there is a vault already");
    init(&dir.join("file")).failed(1, "no directory");
    init(&dir.join("file/under")).failed(1, "no directory");
    init(&dir.join("full")).failed(1, "not empty");
    init(&dir.join("strange")).failed(8, "");
    init(&dir.join("loop")).failed(1, "loop");
    init(&dir.join("dangling")).failed(1, "dangling");
    init(&dir.join("no/parent")).failed(1, "no/parent");
    init(Path::new("/proc/v")).failed(1, "/proc/v");
    init(Path::new("/dev/null")).failed(1, "no directory");
    init(&dir.join("n".repeat(300))).failed(1, "too long");
    init(Path::new(&"/n".repeat(3000))).failed(1, "too long");
    assert_eq!(footprint(&[dir.to_owned()]), before);
}

#[test]
fn an_empty_path_is_no_path() {
    let place = Place::with_vault();
    let (empty, vault) = (OsStr::new(""), place.vault());
    let vault = vault.as_os_str();
    for args in [
        &["init".as_ref(), empty][..],
        &["mount".as_ref(), empty, empty],
        &["mount".as_ref(), vault, empty],
        &["status".as_ref(), empty],
        &["check".as_ref(), empty],
        &["umount".as_ref(), empty],
    ] {
        let ran = run(&place, args);
        println!("{args:?}: {}", ran.stderr());
        let code = ran.0.status.code().expect("a code");
        assert!((1..=3).contains(&code), "{code}");
        ran.failed(code, "");
    }
}

#[test]
fn a_vault_at_a_strange_path_works_or_is_refused_in_one_line() {
    let place = Place::new();
    let strange = [
        OsString::from("with blank and\ttab"),
        OsString::from("new\nline"),
        OsString::from("\u{1b}[31mred\r"),
        OsStr::from_bytes(b"\xff\xfe").to_owned(),
        OsString::from("-dash"),
        OsString::from("comma,equals=quote\"'$(x)"),
        OsString::from("n".repeat(255)),
        OsString::from("\u{1F511}"),
    ];
    for name in &strange {
        let vault = place.path().join(name);
        let vault = vault.as_os_str();
        println!("{name:?}");
        run(&place, &["init".as_ref(), vault]).succeeded();
        let ran = run(&place, &["init".as_ref(), vault]).failed(8, "a vault already");
        let said = ran.stderr();
        let control = |c: char| c.is_control() && c != '\n';
        assert!(!said.contains(control), "{said:?}");
        run(
            &place,
            &["mount".as_ref(), vault, place.point().as_os_str()],
        )
        .succeeded();
        fs::write(place.point().join("f"), "x").expect("written");
        run(&place, &["status".as_ref(), place.point().as_os_str()]).succeeded();
        run(&place, &["umount".as_ref(), place.point().as_os_str()]).succeeded();
        run(&place, &["check".as_ref(), vault]).succeeded();
    }
    // Relative, with slashes and dots behind it, and over a link.
    let ran = script(
        &place,
        r#"set -e
        secretfs init ./a/ > out; secretfs mount a//./ m/ > out; echo x > m/f; secretfs umount ./m/.
        ln -s a link; secretfs mount link m > out; test "$(cat m/f)" = x; secretfs umount m
        cd a; secretfs check . > ../out"#,
    );
    assert!(ran.0.status.success(), "{}", ran.stderr());
}

#[test]
fn permissions_that_are_missing_are_named_and_nothing_is_made() {
    let place = Place::with_vault();
    let env = r#"env HOME="$PLACE/home" XDG_STATE_HOME="$PLACE/home" SECRETFS_ANCHOR_DIR="$PLACE/home/a" SECRETFS_LOCAL_KMS_DIR="$PLACE/home/kms""#;
    fs::create_dir(place.path().join("home")).expect("made");
    std::os::unix::fs::chown(place.path().join("home"), Some(65534), Some(65534)).expect("given");
    let as_nobody = |command: &str| script(&place, &format!("{AS_NOBODY} {env} {command}"));
    as_nobody("secretfs init \"$PLACE/theirs\"").failed(1, "theirs");
    assert!(!place.path().join("theirs").exists());
    let before = footprint(&[place.vault()]);
    for command in ["mount v m", "mount v m -o ro", "status v", "check v"] {
        as_nobody(&format!("secretfs {command}")).failed(1, "");
    }
    as_nobody("secretfs init v").failed(1, "");
    assert_eq!(footprint(&[place.vault()]), before);
    // A directory of theirs, but keys and anchors that they may not write.
    as_nobody("env SECRETFS_ANCHOR_DIR=\"$PLACE/no\" secretfs init home/v").failed(1, "anchor");
    as_nobody("env SECRETFS_LOCAL_KMS_DIR=\"$PLACE/no\" secretfs init home/v")
        .failed(4, "local KMS");
    as_nobody("env -u HOME -u XDG_STATE_HOME -u XDG_DATA_HOME -u SECRETFS_LOCAL_KMS_DIR secretfs init home/v")
        .failed(1, "HOME");
    assert!(!place.path().join("home/v").exists());
    as_nobody("secretfs init home/v > /dev/null").succeeded();
    // Theirs, but read-only by now.
    as_nobody("sh -c 'chmod 500 home/v; chmod 400 home/v/*'").succeeded();
    as_nobody("secretfs mount home/v home").failed(1, "");
}

#[test]
fn a_disk_that_is_full_leaves_no_vault() {
    let place = Place::new();
    for room in ["20k", "60k", "120k"] {
        let ran = script(
            &place,
            &format!(
                r#"mkdir -p small; mount -t tmpfs -o size={room} none small
                secretfs init small/v; code=$?; ls -A small >&1; exit $code"#
            ),
        );
        println!("{room}: {} {}", ran.stdout(), ran.stderr());
        if !ran.0.status.success() {
            let ran = ran.failed(1, "");
            assert!(
                ran.stderr().contains("space") || ran.stderr().contains("full"),
                "{}",
                ran.stderr()
            );
            assert_eq!(ran.stdout(), "");
        }
    }
    // Full of keys, or of anchors.
    script(&place, "mkdir f; mount -t tmpfs -o size=4k,nr_inodes=2 none f; SECRETFS_ANCHOR_DIR=$PLACE/f/a/b secretfs init v")
        .failed(1, "anchor");
    script(&place, "mount -t tmpfs -o size=4k,nr_inodes=2 none f; SECRETFS_LOCAL_KMS_DIR=$PLACE/f/k secretfs init v")
        .failed(1, "");
    assert!(!place.vault().exists());
    script(&place, "mount -t tmpfs -o ro none f; secretfs init f/v").failed(1, "");
}

#[test]
fn a_vault_on_a_file_system_that_is_read_only_can_be_read_only() {
    let place = Place::with_vault();
    let read_only = "mount --bind v v; mount -o remount,bind,ro v;";
    script(&place, &format!("{read_only} secretfs mount v m")).failed(1, "-o ro");
    script(&place, &format!("{read_only} secretfs check v")).succeeded();
    script(
        &place,
        &format!("{read_only} secretfs mount -o ro v m && ls m && secretfs umount m"),
    )
    .succeeded();
}

#[test]
fn limits_of_the_process_are_told_and_leave_nothing() {
    let place = Place::new();
    for limit in [
        "--fsize=8192",
        "--nofile=4",
        "--nofile=8",
        "--as=30000000",
        "--as=60000000",
    ] {
        let ran = script(&place, &format!("prlimit {limit} secretfs init v"));
        println!("{limit}: {:?} {}", ran.0.status, ran.stderr());
        if ran.0.status.success() {
            fs::remove_dir_all(place.vault()).expect("removed");
            continue;
        }
        assert!(
            !ran.stderr().contains("panicked"),
            "{limit}: {}",
            ran.stderr()
        );
        assert!(!place.vault().join("vault.db").exists(), "{limit}");
        if limit.starts_with("--fsize") || limit == "--nofile=8" {
            ran.failed(1, "");
            assert!(!place.vault().exists(), "{limit}");
        }
    }
    place
        .run(["init".as_ref(), place.vault().as_os_str()])
        .succeeded();
    for limit in ["--nofile=5", "--nofile=12", "--as=60000000", "--fsize=0"] {
        let ran = script(
            &place,
            &format!(
                "prlimit {limit} secretfs mount v m; code=$?; test $code != 0 || secretfs umount m; exit $code"
            ),
        );
        println!("{limit}: {:?} {}", ran.0.status, ran.stderr());
        assert!(
            !ran.stderr().contains("panicked"),
            "{limit}: {}",
            ran.stderr()
        );
        assert!(!place.is_mounted());
    }
    place
        .run(["check".as_ref(), place.vault().as_os_str()])
        .succeeded();
}

#[test]
fn without_proc_home_or_standard_descriptors_it_works_or_says_why() {
    let place = Place::with_vault();
    let ran = script(
        &place,
        r#"set -e
        secretfs mount v m >&- 2>&- <&-
        echo kept > m/f
        secretfs status m >&- 2>&-
        secretfs umount m >&- 2>&- <&-
        env -i "$PLACE/bin/secretfs" --version > out
        secretfs check v > out
        secretfs init w >&- <&-
        secretfs check w > out
        secretfs init w 2>&- && exit 9 || test $? = 8
        secretfs status v 2> err > /dev/full && exit 8 || test $? = 1
        test $(wc -l < err) = 1"#,
    );
    assert!(ran.0.status.success(), "{}", ran.stderr());
    let ran = script(&place, "mount -t tmpfs none /proc; secretfs mount v m");
    println!("no /proc: {:?} {}", ran.0.status, ran.stderr());
    if !ran.0.status.success() {
        ran.failed(1, "/proc");
    }
    let ran = script(
        &place,
        "mount -t tmpfs none /proc; secretfs init x && secretfs check x",
    );
    assert!(ran.0.status.success(), "{}", ran.stderr());
}

#[test]
fn a_local_kms_in_a_wrong_place_is_refused() {
    let place = Place::new();
    let with = |dir: &Path, name: &str| {
        let mut command = place.command();
        command
            .env("SECRETFS_LOCAL_KMS_DIR", dir)
            .arg(name)
            .arg(place.vault());
        if name == "mount" {
            command.arg(place.point());
        }
        Ran(command.output().expect("it runs"))
    };
    let vault = place.vault();
    with(&vault.join("kms"), "init").failed(1, "SECRETFS_LOCAL_KMS_DIR");
    with(place.path(), "init").failed(1, "SECRETFS_LOCAL_KMS_DIR");
    with(Path::new("/dev/null"), "init").failed(1, "/dev/null");
    with(Path::new("/dev/null/x"), "init").failed(1, "/dev/null");
    with(Path::new("/proc/kms"), "init").failed(5, "/proc/kms");
    with(Path::new(""), "init").failed(2, "SECRETFS_LOCAL_KMS_DIR");
    assert!(!vault.exists());
    fs::create_dir(place.path().join("loose")).expect("made");
    with(&place.path().join("loose"), "init").failed(1, "loose");
    assert!(!vault.exists());
    with(&place.path().join("kms"), "init").succeeded();
    // Moved into the vault afterwards, and linked to from outside.
    fs::rename(place.path().join("kms"), vault.join("kms")).expect("moved");
    symlink(vault.join("kms"), place.path().join("kms")).expect("linked");
    with(&place.path().join("kms"), "mount").failed(1, "");
    with(&vault.join("kms"), "check").failed(1, "SECRETFS_LOCAL_KMS_DIR");
}

#[test]
fn configuration_that_is_wrong_is_code_2_and_says_where() {
    let place = Place::new();
    let config = place.path().join("config.toml");
    let with = || {
        place.run([
            "--config".as_ref(),
            config.as_os_str(),
            "init".as_ref(),
            place.vault().as_os_str(),
        ])
    };
    for (text, part) in [
        (&b"\xff\xfe"[..], "config.toml"),
        (b"ttl = 1979-05-27", "bad ttl"),
        (b"ttl = [1]", "bad ttl"),
        (b"[mount]\nttl = 1", "`mount`"),
        (b"ttl = 1\nttl = 2", "line 2"),
        (b"kms-key = \"local-kms://a b\"", "local-kms://a b"),
        (b"kms-key = [1, 2]", "no KMS key URI"),
        (
            b"kms-key = \"local-kms://\\u001b[2J\\nx\"",
            "no KMS key URI",
        ),
        (b"max-memory = -1", "bad max-memory"),
        (b"max-memory = 99999999999999999999", "line 1"),
        (b"\"a\\nb\" = 1", "unknown setting"),
        (b"ro = \"maybe\"", "true and false"),
        (b"log-file = \"\"", "log-file"),
        (b"vault-id = \"../../etc\"", "vault-id"),
    ] {
        fs::write(&config, text).expect("written");
        let said = with().failed(2, part).stderr();
        assert!(
            !said.trim_end().contains(|c: char| c.is_control()),
            "{said:?}"
        );
    }
    fs::write(&config, vec![b'#'; 2 << 20]).expect("written");
    with().failed(2, "config.toml");
    fs::remove_file(&config).expect("removed");
    fs::create_dir(&config).expect("made");
    with().failed(2, "config.toml");
    fs::remove_dir(&config).expect("removed");
    crate::support::process::system("mkfifo", &[config.as_os_str()]);
    with().failed(2, "config.toml");
    for (name, value) in [
        ("SECRETFS_TTL", &b"\xff"[..]),
        ("SECRETFS_TTL", b""),
        ("SECRETFS_KMS_KEY", b"local-kms://../x"),
        ("SECRETFS_KMS_KEY", b"http://x"),
        ("SECRETFS_KMS_TIMEOUT", b"0"),
        ("SECRETFS_MAX_MEMORY", b"1\n2"),
        ("SECRETFS_CONFIG", b"/none"),
        ("SECRETFS_NONSENSE", b""),
    ] {
        let mut command = place.command();
        command
            .env(name, OsStr::from_bytes(value))
            .arg("init")
            .arg(place.vault());
        Ran(command.output().expect("it runs")).failed(2, "");
    }
    assert!(!place.vault().exists());
}

#[test]
fn arguments_that_are_wrong_are_code_2() {
    let place = Place::new();
    let long = "x".repeat(100_000);
    for args in [
        &["init"][..],
        &["init", "a", "b"],
        &["init", "a", "--kms-key"],
        &["init", "a", "--kms-key", ""],
        &["init", "a", "--kms-key", "local-kms://"],
        &["init", "a", "--kms-key", "local-kms://a/../b"],
        &["init", "a", "--kms-key", "aws-kms://"],
        &["init", "a", "--kms-key", "aws-kms://a b"],
        &["init", "a", "--kms-key", "gcp-kms://a"],
        &["init", "a", "--kms-key", &long],
        &["init", "a", "-o", "ro"],
        &["init", "a", "--accept-rollback"],
        &["mount", "a", "b", "c"],
        &["mount", "a", "b", "-o"],
        &["mount", "a", "b", "-o", "ttl=\u{202e}1"],
        &["mount", "a", "b", "-o", "=1"],
        &["mount", "a", "b", "-o", "ro=yes"],
        &["mount", "a", "b", "-o", "log-file=\"x"],
        &["mount", "a", "b", "--threads", "1000000"],
        &["mount", "a", "b", "--threads", "\u{661}"],
        &["mount", "a", "b", "--max-secret-size", "1.5G"],
        &["mount", "a", "b", "--ttl=-1"],
        &["mount", "a", "b", "--vault-id", ""],
        &["status"],
        &["status", "a", "--xml"],
        &["check", "a", "--repair-everything"],
        &["umount"],
        &["umount", "a", "b"],
        &["--config"],
        &[&long],
    ] {
        let mut command = place.command();
        command.current_dir(place.path()).args(args);
        let ran = Ran(command.output().expect("it runs"));
        let shown: String = format!("{args:?}").chars().take(100).collect();
        assert_eq!(ran.0.status.code(), Some(2), "{shown}: {}", ran.stderr());
        let said = ran.failed(2, "").stderr();
        assert!(said.len() < 4000, "{shown}: {} bytes", said.len());
    }
}

#[test]
fn init_with_several_keys_wraps_under_each_of_them() {
    let place = Place::new();
    let keys = ["--kms-key", "local-kms://a", "--kms-key", "local-kms://b"];
    let vault = place.vault();
    let mut args = vec![OsStr::new("init"), vault.as_os_str()];
    args.extend(keys.map(OsStr::new));
    let ran = run(&place, &args).succeeded();
    assert!(ran.stdout().contains("local-kms://a") && ran.stdout().contains("local-kms://b"));
    let ran = run(&place, &["status".as_ref(), vault.as_os_str()]).succeeded();
    let text = ran.stdout();
    for part in ["local-kms://a", "local-kms://b", "active", "created"] {
        assert!(text.contains(part), "{text} does not say {part}");
    }
    // The same key twice would be two wraps that say nothing more than one.
    let other = place.path().join("w");
    let mut args = vec![OsStr::new("init"), other.as_os_str()];
    args.extend(["--kms-key", "local-kms://a", "--kms-key", "local-kms://a"].map(OsStr::new));
    run(&place, &args).failed(2, "twice");
    assert!(!other.exists());
}
