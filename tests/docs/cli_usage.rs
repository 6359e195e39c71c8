//! Arguments, options, configuration and exit codes.

use std::ffi::OsStr;
use std::os::unix::fs::symlink;
use std::process::Command;

use crate::support::process::{Place, Ran, system};

#[test]
fn wrong_usage_is_one_line_and_code_2() {
    let place = Place::new();
    place.run::<_, &str>([]).failed(2, "a command is missing");
    place.run(["frobnicate"]).failed(2, "frobnicate");
    place.run(["mount"]).failed(2, "<VAULT>");
    place
        .run(["mount", "v", "m", "--nonsense"])
        .failed(2, "--nonsense");
    place
        .run(["mount", "v", "m", "-o", "ro,nonsense"])
        .failed(2, "unknown option `nonsense`");
    place
        .run(["mount", "v", "m", "-o", "ttl=soon"])
        .failed(2, "bad ttl `soon`");
    place
        .run(["mount", "v", "m", "--threads", "0"])
        .failed(2, "from 1 to 64");
    place
        .run(["mount", "v", "m", "-o", "kms-key=s3://x"])
        .failed(2, "local-kms://NAME");
    place
        .run(["init", "v", "--uid", "root"])
        .failed(2, "bad uid `root`");
    place.run(["completions", "cmd.exe"]).failed(2, "cmd.exe");
}

#[test]
fn help_and_version_go_to_standard_output() {
    let place = Place::new();
    assert!(
        place
            .run(["--help"])
            .succeeded()
            .stdout()
            .contains("Usage: secretfs")
    );
    assert!(
        place
            .run(["mount", "--help"])
            .succeeded()
            .stdout()
            .contains("--drain-timeout")
    );
    assert!(
        place
            .run(["--version"])
            .succeeded()
            .stdout()
            .starts_with("secretfs ")
    );
}

#[test]
fn what_is_no_vault_is_code_3() {
    let place = Place::new();
    place.mount(&[]).failed(3, "no vault");
    std::fs::write(place.vault(), "").expect("written");
    place.mount(&[]).failed(3, "no directory");
    std::fs::remove_file(place.vault()).expect("removed");
    std::fs::create_dir(place.vault()).expect("made");
    place.mount(&[]).failed(3, "there is no vault here");
    place
        .run(["status".as_ref(), place.vault().as_os_str()])
        .failed(3, "there is no vault here");
    place
        .run(["check".as_ref(), place.vault().as_os_str()])
        .failed(3, "there is no vault here");
    assert!(!place.is_mounted());
}

#[test]
fn a_mount_point_that_cannot_serve_is_refused_with_the_reason() {
    let place = Place::with_vault();
    let mount = |point: &OsStr| place.run([OsStr::new("mount"), place.vault().as_os_str(), point]);
    mount(place.path().join("none").as_os_str()).failed(1, "does not exist");
    std::fs::write(place.path().join("file"), "").expect("written");
    mount(place.path().join("file").as_os_str()).failed(1, "not a directory");
    mount(place.path().join("file/under").as_os_str()).failed(1, "not a directory");
    mount(place.path().as_os_str()).failed(1, "lies under the mount point");
    std::fs::create_dir(place.vault().join("inside")).expect("made");
    mount(place.vault().join("inside").as_os_str()).failed(1, "inside of the vault");
    mount(OsStr::new("/proc")).failed(7, "already a mount point");
    std::fs::create_dir(place.point().join("sub")).expect("made");
    let log = place.point().join("sub/log");
    place
        .mount(&["--log-file", log.to_str().expect("UTF-8")])
        .failed(1, "the log file");
    // Not empty, but no mount either: as for mount(8), that is fine.
    place.mount(&[]).succeeded();
    place.mount(&[]).failed(7, "already mounted");
}

#[test]
fn credentials_under_the_mount_point_are_refused() {
    let place = Place::with_vault();
    for variable in ["AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE"] {
        let mut command = place.command();
        command.env(variable, place.point().join("token"));
        command.arg("mount").arg(place.vault()).arg(place.point());
        Ran(command.output().expect("it runs")).failed(1, "the credentials file");
    }
    let mut command = place.command();
    command
        .env("HOME", place.point())
        .arg("mount")
        .arg(place.vault())
        .arg(place.point());
    Ran(command.output().expect("it runs")).failed(1, "the credentials file");
}

#[test]
fn flags_beat_the_environment_and_that_beats_the_file() {
    let place = Place::with_vault();
    let config = place.path().join("config.toml");
    let with = |file: &str, environment: Option<&str>, flags: &[&str]| {
        std::fs::write(&config, file).expect("written");
        let mut command = place.command();
        command.arg("--config").arg(&config);
        if let Some(value) = environment {
            command.env("SECRETFS_THREADS", value);
        }
        command
            .arg("mount")
            .arg(place.vault())
            .arg(place.path().join("none"))
            .args(flags);
        Ran(command.output().expect("it runs"))
    };
    // Each level is validated, whether or not another one wins.
    with("threads = 0", None, &[]).failed(2, "config.toml");
    with("threads = 2", Some("0"), &[]).failed(2, "SECRETFS_THREADS");
    with("threads = 2", Some("2"), &["--threads", "0"]).failed(2, "given as a flag");
    with("threads = 2", Some("2"), &["-o", "threads=0"]).failed(2, "given with -o");
    with("thread = 2", None, &[]).failed(2, "unknown setting `thread`");
    with("threads = [", None, &[]).failed(2, "line 1");
    with("accept-rollback = true", None, &[]).failed(2, "only be given with the mount");
    with("log-file = \"/x\"", Some("2"), &[]).failed(1, "does not exist");
    place
        .run(["--config", "/none.toml", "mount", "v", "m"])
        .failed(2, "/none.toml");
    let mut command = place.command();
    command.env("SECRETFS_TREADS", "1").args(["status", "v"]);
    Ran(command.output().expect("it runs")).failed(2, "SECRETFS_TREADS");
}

#[test]
fn status_tells_of_vaults_and_of_mounts() {
    let place = Place::with_vault();
    let json = |path: &OsStr| -> serde_json::Value {
        let ran = place
            .run([OsStr::new("status"), path, OsStr::new("--json")])
            .succeeded();
        serde_json::from_str(&ran.stdout()).expect("JSON")
    };
    assert!(
        json(place.vault().as_os_str())
            .get("held_for_writing_by")
            .is_some()
    );
    place.mount(&[]).succeeded();
    assert!(
        json(place.point().as_os_str())
            .to_string()
            .contains("\"locked\"")
    );
    place
        .run(["status".as_ref(), place.point().as_os_str()])
        .succeeded();
    let ran = place
        .run([
            "check".as_ref(),
            place.vault().as_os_str(),
            "--json".as_ref(),
        ])
        .succeeded();
    let report: serde_json::Value = serde_json::from_str(&ran.stdout()).expect("JSON");
    assert_eq!(report["problems"], serde_json::json!([]));
}

#[test]
fn umount_touches_nothing_but_mounts_of_secretfs() {
    let place = Place::new();
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .failed(1, "nothing is mounted");
    place.run(["umount", "/none"]).failed(1, "does not exist");
    system(
        "mount",
        &[
            "-t".as_ref(),
            "tmpfs".as_ref(),
            "none".as_ref(),
            place.point().as_os_str(),
        ],
    );
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .failed(1, "not a mount of secretfs");
}

#[test]
fn as_mount_helper_it_has_the_exit_codes_of_mount() {
    let place = Place::with_vault();
    let link = place.path().join("mount.secretfs");
    symlink(crate::support::process::PROGRAM, &link).expect("linked");
    let helper = |args: &[&OsStr]| {
        let mut command = place.command();
        let mut helper = Command::new(&link);
        helper.envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
        helper.args(args).stdin(std::process::Stdio::null());
        command.arg("unused");
        Ran(helper.output().expect("it runs"))
    };
    let (vault, point) = (place.vault(), place.point());
    let (v, m) = (vault.as_os_str(), point.as_os_str());
    let s = OsStr::new;
    helper(&[v]).failed(1, "a directory are needed");
    helper(&[v, m, s("-o"), s("rw,nonsense")]).failed(1, "nonsense");
    helper(&[v, s("/none")]).failed(32, "does not exist");
    helper(&[s("/none"), m]).failed(32, "there is no vault");
    assert_eq!(helper(&[v, m, s("-f"), s("-v")]).succeeded().stdout(), "");
    assert!(!place.is_mounted());
    let ran = helper(&[
        v,
        m,
        s("-s"),
        s("-n"),
        s("-o"),
        s("rw,noauto,x-a.b,_netdev,whatever"),
        s("-t"),
        s("secretfs"),
    ]);
    assert_eq!(ran.succeeded().stdout(), "");
    assert!(place.is_mounted());
    helper(&[v, m]).failed(32, "already mounted");
}

#[test]
fn committed_man_pages_are_those_of_the_program() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    let pages = secretfs::cli::man_pages().expect("pages");
    assert!(pages.len() >= 8);
    for (name, page) in &pages {
        let committed = std::fs::read(dir.join(name)).unwrap_or_default();
        assert!(
            committed == *page,
            "man/{name} is stale: run `secretfs man --dir man`"
        );
    }
    assert_eq!(std::fs::read_dir(dir).expect("man").count(), pages.len());
}

#[test]
fn completions_exist_for_the_usual_shells() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            place
                .run(["completions", shell])
                .succeeded()
                .stdout()
                .contains("secretfs")
        );
    }
}
