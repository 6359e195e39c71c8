//! Commands that are refused: by the mount, by the socket, and on a vault that nobody has mounted.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::aws::World;
use crate::support::damaged;
use crate::support::keys::local_kms;
use crate::support::kms_proxy::Answer;
use crate::support::process::{Place, Ran, Server, status, wait_for};
use crate::support::rotating::{command, serve_with, wait_for_the_end};
use crate::support::socket::{ask, socket_of};
use crate::support::tree::errno;

const SOON: Duration = Duration::from_secs(60);

/// A way by which a command reaches a vault.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// The control file of a mount whose daemon has no socket.
    Mount,
    /// The socket in the vault's directory.
    Socket,
    /// Nobody has the vault mounted: the command does the work.
    Vault,
}

const WAYS: [Way; 3] = [Way::Mount, Way::Socket, Way::Vault];

impl Way {
    /// Serves the vault, if somebody is to have it mounted.
    fn begin(self, place: &Place, mut mount: std::process::Command) -> Option<Server> {
        let socket = socket_of(&place.vault());
        if self == Way::Vault {
            return None;
        }
        if self == Way::Mount {
            fs::create_dir(&socket).expect("in the way of a socket");
        }
        mount.arg("mount").arg(place.vault()).arg(place.point());
        mount.arg("-f");
        Some(Server::start(mount))
    }

    /// What a command names.
    fn path(self, place: &Place) -> PathBuf {
        match self {
            Way::Mount | Way::Socket => place.point(),
            Way::Vault => place.vault(),
        }
    }

    fn end(self, place: &Place, server: Option<Server>) {
        if let Some(server) = server {
            server.signal(libc::SIGTERM);
            assert_eq!(server.ended(SOON).0, Some(0));
        }
        if self == Way::Mount {
            fs::remove_dir(socket_of(&place.vault())).expect("removed");
        }
    }
}

/// `integrity` as the mount tells it; of a vault that is not mounted nobody does.
fn integrity(way: Way, point: &Path) -> Value {
    match way {
        Way::Mount | Way::Socket => status(point)["integrity"].clone(),
        Way::Vault => Value::Null,
    }
}

#[test]
fn a_refused_command_has_the_same_exit_code_by_every_way_and_leaves_integrity_as_it_was() {
    let world = World::with_vault(1);
    let place = &world.place;
    local_kms(place).create("b").expect("made");
    let arn = world.keys[0].strip_prefix("aws-kms://").expect("a URI");
    let of_kms = |body: Value| Answer::Raw(200, "application/x-amz-json-1.1", body.to_string());
    let another_key = of_kms(json!({
        "KeyId": arn,
        "Plaintext": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
        "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
    }));
    let error = |code| Answer::Error(400, code, "No.");
    let leaves_aws = ["rewrap", "--kms-key", "local-kms://b"];
    let rotates = ["rotate"];
    let refusals: [(Answer, &[&str], i32); 9] = [
        (Answer::Forward, &leaves_aws, 1),
        (of_kms(json!({})), &rotates, 1),
        (error("AccessDeniedException"), &["rewrap"], 4),
        (error("DisabledException"), &["reencrypt"], 4),
        (error("KMSInvalidStateException"), &rotates, 4),
        (error("NotFoundException"), &rotates, 4),
        (error("ThrottlingException"), &rotates, 5),
        (Answer::Reset, &rotates, 5),
        (another_key, &rotates, 6),
    ];
    for way in WAYS {
        let begin = || {
            let mut command = world.command();
            command.env("SECRETFS_KMS_TIMEOUT", "3s");
            command
        };
        let server = way.begin(place, begin());
        if server.is_some() {
            wait_for("the count", SOON, || {
                integrity(way, &place.point()) == "verified"
            });
        }
        for (answer, args, code) in &refusals {
            let before = integrity(way, &place.point());
            world.proxy.set(answer.clone());
            let (name, more) = args.split_first().expect("a command");
            let mut asked = begin();
            asked.arg(name).arg(way.path(place)).args(more);
            let ran = Ran(asked.output().expect("it runs"));
            let said = ran.stderr();
            let found = ran.0.status.code();
            assert_eq!(found, Some(*code), "{way:?}, {answer:?}: {said}");
            let after = integrity(way, &place.point());
            assert_eq!(after, before, "{way:?}, {answer:?}: {said}");
        }
        world.proxy.set(Answer::Forward);
        if server.is_some() {
            assert_eq!(status(&place.point())["active_generation"], 1);
        }
        way.end(place, server);
    }
}

#[test]
fn a_command_while_another_is_under_way_is_busy_by_every_way() {
    let place = Place::with_vault();
    let slow = || {
        let mut command = place.command();
        command.env("FAILPOINTS", "migrate-before=sleep(20000)");
        command
    };
    for way in [Way::Mount, Way::Socket] {
        let server = way.begin(&place, slow()).expect("a server");
        let ask = |name: &str, path: PathBuf| place.run([name.as_ref(), path.as_os_str()]);
        if !is_rotating(&place) {
            let begun = ask("rotate", place.point()).succeeded().stdout();
            assert!(begun.starts_with("rotate has begun"), "{begun}");
        }
        let said = "rotate is under way since ";
        for name in ["rotate", "reencrypt", "rewrap"] {
            ask(name, place.point()).failed(7, said);
        }
        let said = match way {
            // Its daemon cannot be asked.
            Way::Mount => "name the mount point",
            _ => said,
        };
        ask("reencrypt", place.vault()).failed(7, said);
        server.signal(libc::SIGKILL);
        server.ended(SOON);
        crate::support::process::detach(&place.point());
        way.end(&place, None);
    }
}

fn is_rotating(place: &Place) -> bool {
    !status(&place.point())["rotation"].is_null()
}

#[test]
fn a_rotation_that_meets_a_damaged_record_has_the_same_exit_code_by_every_way() {
    let world = damaged::World::unmounted();
    let place = &world.place;
    // Contents are not counted, and nobody reads this one before.
    let chunk = format!("node = {} AND idx = 1", world.nodes[50]);
    world.flip("chunk", "sealed", &chunk, 5);
    for way in [Way::Vault, Way::Mount, Way::Socket] {
        let server = way.begin(place, place.command());
        let path = way.path(place);
        let ran = place.run(["reencrypt".as_ref(), path.as_os_str(), "--wait".as_ref()]);
        let said = ran.stderr();
        assert_eq!(ran.0.status.code(), Some(6), "{way:?}: {said}");
        assert!(said.contains("is blocked"), "{way:?}: {said}");
        way.end(place, server);
    }
}

#[test]
fn whoever_writes_a_command_reads_its_answer_through_the_same_descriptor() {
    let place = Place::with_vault();
    let server = serve_with(&place, "migrate-before=sleep(300)");
    let (point, vault) = (place.point(), place.vault());
    let control = point.join(".secretfs/control");
    let open = || {
        let mut options = File::options();
        options
            .read(true)
            .write(true)
            .open(&control)
            .expect("root may")
    };
    let answer = |through: &File| -> Value {
        let mut line = vec![0; 4096];
        let length = through.read_at(&mut line, 0).expect("readable");
        let line = line[..length].strip_suffix(b"\n").expect("a line");
        serde_json::from_slice(line).expect("JSON")
    };
    let (first, second) = (open(), open());
    let refused = errno((&first).write(b"nonsense"));
    assert_eq!(refused, libc::EINVAL);
    let told = answer(&first);
    assert_eq!(told, ask(&vault, "control nonsense"), "as over the socket");
    assert_eq!(told["refused"]["class"], "usage");
    assert_eq!(told["refused"]["errno"], "EINVAL");
    // Each reads its own, and who only reads what was there before.
    assert_eq!((&second).write(b"rotate").expect("begun"), 6);
    assert_eq!(answer(&second), "begun");
    assert_eq!(errno((&second).write(b"rewrap")), libc::EBUSY);
    assert_eq!(answer(&second)["refused"]["class"], "busy");
    assert_eq!(answer(&first), told);
    let shown = fs::read_to_string(&control).expect("readable");
    assert!(
        shown.contains(" rewrap: failed: rotate is under way"),
        "{shown}"
    );
    wait_for_the_end(&point);
    command(&point, "rotate").expect("begun");
    let shown = fs::read_to_string(&control).expect("readable");
    assert!(
        shown.ends_with(" rotate: begun; `status` tells how far it is\n"),
        "{shown}"
    );
    wait_for_the_end(&point);
    drop((first, second));
    server.signal(libc::SIGTERM);
    assert_eq!(server.ended(SOON).0, Some(0));
}
