//! In a control group, whose limit bounds what a daemon may take.

use std::fs::{self, File};
use std::io::Write;
use std::process::Command;

use super::{MIB, SOON};
use crate::support::cgroup::Group;
use crate::support::process::{PROGRAM, Place, Server, root_of, status};
use crate::support::tree::errno;

/// A daemon in a control group; `how` it gets to run the program, which is appended.
fn serve_in(group: &Group, place: &Place, how: &str, options: &str) -> Server {
    let script = format!("echo 0 > \"$DOOR\"\n{how} \"$@\"");
    let mut command = Command::new("sh");
    command
        .args(["-euc", &script, "sh", PROGRAM, "mount"])
        .arg(place.vault())
        .arg(place.point())
        .args(["-f", "-o", options])
        .envs(
            place
                .command()
                .get_envs()
                .filter_map(|(k, v)| Some((k, v?))),
        )
        .env("DOOR", group.door())
        .env("PLACE", place.path())
        .stdin(std::process::Stdio::null());
    Server::start(command)
}

#[test]
fn a_daemon_in_a_control_group_stays_within_it_and_refuses_instead_of_being_killed() {
    const GROUP: u64 = 64 << 20;
    let place = Place::with_vault();
    let group = Group::limited(GROUP);
    let mut server = serve_in(&group, &place, "exec", "rw");
    assert!(group.members().contains(&server.pid()));
    let memory = status(&place.point())["memory"].clone();
    assert_eq!(memory["limit"], GROUP / 3, "{memory}");
    assert_eq!(memory["limit_from"], "cgroup");
    let secret = place.point().join("secret");
    fs::write(&secret, "before").expect("written");
    // 45 MiB of drafts.
    let drafts: Vec<_> = (0..3)
        .map(|n| File::create(place.point().join(format!("draft{n}"))).expect("made"))
        .collect();
    let data = vec![b'd'; MIB];
    let taken = |mut file: &File| {
        (0..15)
            .take_while(|_| file.write_all(&data).is_ok())
            .count()
    };
    let whole: usize = drafts.iter().map(taken).sum();
    assert_eq!(whole, 18, "MiB");
    let refused = (&drafts[2]).write_all(&data);
    assert_eq!(errno(refused), libc::ENOSPC);
    for draft in &drafts {
        draft.sync_all().expect("stored");
    }
    fs::write(&secret, "after").expect("written");
    assert_eq!(fs::read(&secret).expect("read"), b"after");
    assert!(server.is_running());
    drop(drafts);
}

#[test]
fn the_limit_is_found_in_a_cgroup_namespace_and_what_is_set_beyond_it_is_warned_of() {
    const GROUP: u64 = 96 << 20;
    let place = Place::with_vault();
    let group = Group::limited(GROUP);
    // As container runtimes do: the group is `/`, and the hierarchy is mounted anew.
    let how = r#"exec unshare -C -m --propagation private sh -euc '
        mkdir -p "$PLACE/groups"
        if grep -q "^[0-9]*:\([a-z_,]*,\)*memory[,:]" /proc/self/cgroup; then
            mount -t cgroup -o memory none "$PLACE/groups"
        else
            mount -t cgroup2 none "$PLACE/groups"
        fi
        grep -q ":/$" /proc/self/cgroup
        exec "$@"' sh"#;
    let server = serve_in(&group, &place, how, "rw");
    let memory = status(&root_of(&place, &server, "m"))["memory"].clone();
    assert_eq!(memory["limit"], GROUP / 3, "{memory}");
    assert_eq!(memory["limit_from"], "cgroup");
    server.signal(libc::SIGTERM);
    let (code, log) = server.ended(SOON);
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("max-memory"), "{log}");

    let server = serve_in(&group, &place, "exec", "max-memory=97M");
    let memory = status(&place.point())["memory"].clone();
    assert_eq!(memory["limit"], 97 << 20, "{memory}");
    assert_eq!(memory["limit_from"], "option");
    server.signal(libc::SIGTERM);
    let (code, log) = server.ended(SOON);
    assert_eq!(code, Some(0), "{log}");
    let told = "max-memory is 101711872 bytes, but the control group of this process may have no more \
                than 100663296";
    assert!(log.contains(told), "{log}");
}
