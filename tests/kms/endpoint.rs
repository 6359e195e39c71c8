//! Whom the program calls when it calls AWS KMS. All of it happens in network namespaces without a way
//! out: an address there that is not loopback is the namespace's own.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use crate::support::kms_proxy::{Answer, Proxy};
use crate::support::moto::{self, Moto, REGION};
use crate::support::process::{PROGRAM, Place, Ran, Server, in_own_namespace, system};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

/// An address that is not loopback, and of this machine all the same.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

type Env = Vec<(String, String)>;

/// Runs a test in a network namespace of its own.
fn apart(test: impl FnOnce() + Send) {
    // It comes over the network where there is none yet.
    moto::python();
    std::thread::scope(|scope| {
        let testing = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            let ip = |args: &[&str]| {
                let args: Vec<_> = args.iter().map(AsRef::as_ref).collect();
                system("ip", &args);
            };
            ip(&["link", "set", "lo", "up"]);
            ip(&["address", "add", &format!("{ELSEWHERE}/32"), "dev", "lo"]);
            test();
        });
        if let Err(panic) = testing.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn run(place: &Place, name: &str, env: &Env, more: &[&str]) -> Ran {
    let mut command = place.command();
    command.envs(env.iter().map(|(k, v)| (k, v)));
    command.arg(name).arg(place.vault());
    if name == "mount" {
        command.arg(place.point());
    }
    Ran(command.args(more).output().expect("it runs"))
}

fn with(env: &Env, name: &str, value: &str) -> Env {
    let mut env = env.clone();
    env.retain(|(n, _)| n != name);
    env.push((name.to_owned(), value.to_owned()));
    env
}

fn without(env: &Env, name: &str) -> Env {
    let mut env = env.clone();
    env.retain(|(n, _)| n != name);
    env
}

/// All the ways in which an endpoint for KMS can be configured.
fn ways(env: &Env, dir: &Path, url: &str) -> Vec<Env> {
    let bare = without(env, "AWS_ENDPOINT_URL_KMS");
    let file = |name: &str, text: String| {
        let path = dir.join(name);
        fs::write(&path, text).expect("written");
        with(&bare, "AWS_CONFIG_FILE", path.to_str().expect("UTF-8"))
    };
    let named = |env: Env| with(&env, "AWS_PROFILE", "ops");
    vec![
        with(&bare, "AWS_ENDPOINT_URL_KMS", url),
        with(&bare, "AWS_ENDPOINT_URL", url),
        file("default", format!("[default]\nendpoint_url = {url}\n")),
        named(file(
            "profile",
            format!("[profile ops]\nendpoint_url = {url}\n"),
        )),
        named(file(
            "services",
            format!(
                "[profile ops]\nservices = own\nendpoint_url = https://kms.invalid\n\
                 [services own]\nkms =\n  endpoint_url = {url}\n"
            ),
        )),
    ]
}

#[test]
fn a_key_goes_unencrypted_to_no_other_machine_however_that_is_configured() {
    apart(|| {
        let moto = Moto::start();
        let there = Proxy::at(ELSEWHERE, moto.address());
        let key = format!("aws-kms://{}", moto.create_key());
        let place = Place::new();
        run(&place, "init", &moto.env(), &["--kms-key", &key]).succeeded();
        let other = Place::new();
        for env in ways(&moto.env(), place.path(), &there.url()) {
            println!("{env:?}");
            let refused = |ran: Ran| {
                let ran = ran.failed(1, &key);
                for part in [&there.url(), "https://", "insecure-kms-endpoint"] {
                    assert!(ran.stderr().contains(part), "{}", ran.stderr());
                }
            };
            refused(run(&other, "init", &env, &["--kms-key", &key]));
            assert!(!other.vault().exists());
            for name in ["mount", "status", "check"] {
                refused(run(&place, name, &env, &[]));
            }
        }
        let disguised = format!("http://localhost:80@{ELSEWHERE}:1");
        let env = with(&moto.env(), "AWS_ENDPOINT_URL_KMS", &disguised);
        run(&place, "status", &env, &[]).failed(1, "insecure-kms-endpoint");
        assert_eq!(there.seen(), []);
    });
}

/// What is judged is what would be called, not what stands somewhere.
#[test]
fn an_endpoint_that_is_ignored_or_outdone_is_not_what_is_judged() {
    apart(|| {
        let moto = Moto::start();
        let key = format!("aws-kms://{}", moto.create_key());
        let place = Place::new();
        run(&place, "init", &moto.env(), &["--kms-key", &key]).succeeded();
        let elsewhere = format!("http://{ELSEWHERE}:1");
        // The endpoint for KMS comes first.
        let env = with(&moto.env(), "AWS_ENDPOINT_URL", &elsewhere);
        run(&place, "status", &env, &[]).succeeded();
        // AWS itself, which cannot be reached from here.
        for env in ways(&moto.env(), place.path(), &elsewhere) {
            let env = with(&env, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true");
            let soon = ["--kms-timeout", "1s"];
            run(&place, "status", &env, &soon).failed(5, "AWS KMS");
        }
    });
}

#[test]
fn a_setting_lets_a_key_go_unencrypted_to_another_machine() {
    apart(|| {
        let moto = Moto::start();
        let there = Proxy::at(ELSEWHERE, moto.address());
        let key = format!("aws-kms://{}", moto.create_key());
        let env = moto.env_at(&there.url());
        let place = Place::new();
        let flags = ["--kms-key", &key, "--insecure-kms-endpoint"];
        run(&place, "init", &env, &flags).succeeded();
        run(&place, "mount", &env, &["-o", "insecure-kms-endpoint"]).succeeded();
        place
            .run(["umount".as_ref(), place.point().as_os_str()])
            .succeeded();
        let allowed = with(&env, "SECRETFS_INSECURE_KMS_ENDPOINT", "true");
        run(&place, "status", &allowed, &[]).succeeded();
        let seen = there.count();
        assert!(seen >= 3, "{seen}");
        let forbidden = with(&env, "SECRETFS_INSECURE_KMS_ENDPOINT", "false");
        run(&place, "status", &forbidden, &[]).failed(1, "insecure-kms-endpoint");
        assert_eq!(there.count(), seen);
    });
}

#[test]
fn a_proxy_gets_nothing_that_is_for_this_machine() {
    apart(|| {
        let moto = Moto::start();
        let key = format!("aws-kms://{}", moto.create_key());
        let proxy = Proxy::always(Answer::Reset);
        let mut env = without(&moto.env(), "NO_PROXY");
        for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
            env.push((name.to_owned(), proxy.url()));
        }
        let place = Place::new();
        run(&place, "init", &env, &["--kms-key", &key]).succeeded();
        run(&place, "status", &env, &[]).succeeded();
        assert_eq!(proxy.seen(), []);
    });
}

#[test]
fn localhost_is_this_machine_whatever_the_hosts_file_says() {
    apart(|| {
        let moto = Moto::start();
        let key = format!("aws-kms://{}", moto.create_key());
        let place = Place::new();
        let hosts = place.path().join("hosts");
        fs::write(&hosts, format!("{ELSEWHERE} localhost\n")).expect("written");
        let url = format!("http://localhost:{}", moto.address().port());
        let mut init = in_own_namespace(&place);
        init.args(["sh", "-euc"])
            .arg("mount --bind \"$HOSTS\" /etc/hosts; exec \"$@\"")
            .args(["sh", PROGRAM, "init", "--kms-key", &key])
            .arg(place.vault())
            .env("HOSTS", &hosts)
            .envs(moto.env_at(&url));
        Ran(init.output().expect("it runs")).succeeded();
    });
}

#[test]
fn an_endpoint_that_is_not_of_aws_is_logged_once_and_without_a_password() {
    apart(|| {
        let moto = Moto::start();
        let key = format!("aws-kms://{}", moto.create_key());
        let url = moto.url().replace("http://", "http://user:s3cret@");
        let env = moto.env_at(&url);
        let place = Place::new();
        run(&place, "init", &env, &["--kms-key", &key]).succeeded();
        let mut command = place.command();
        command
            .envs(env.iter().map(|(k, v)| (k, v)))
            .args(["mount", "-f"]);
        command.arg(place.vault()).arg(place.point());
        let server = Server::start(command);
        // Through the daemon, and its session.
        for name in ["rotate", "rewrap"] {
            let ran = run(&place, name, &env, &["--wait"]);
            assert!(ran.0.status.success(), "{}", ran.stderr());
        }
        server.signal(libc::SIGTERM);
        let (code, log) = server.ended(Duration::from_secs(20));
        assert_eq!(code, Some(0), "{log}");
        let told = log.matches("the KMS endpoint http://127.0.0.1").count();
        assert_eq!(told, 1, "{log}");
        assert!(!log.contains("s3cret"), "{log}");
    });
}

#[test]
fn whoever_answers_for_kms_sees_the_master_key() {
    apart(|| {
        let moto = Moto::start();
        let key = format!("aws-kms://{}", moto.create_key());
        let endpoint = Proxy::before(moto.address());
        let env = moto.env_at(&endpoint.url());
        let place = Place::new();
        run(&place, "init", &env, &["--kms-key", &key]).succeeded();
        run(&place, "status", &env, &[]).succeeded();
        let seen = endpoint.seen();
        let of = |action: &str| -> Vec<&Value> {
            let those = seen.iter().filter(|seen| seen.action == action);
            those.map(|seen| &seen.body).collect()
        };
        // What opens the vault, as KMS answers when it is mounted, was told when it was wrapped.
        let opens = of("Decrypt").pop().expect("a call");
        let answer = moto.kms(REGION, "Decrypt", opens);
        let sent = &of("Encrypt")[0]["Plaintext"];
        assert_eq!(sent, &answer["Plaintext"]);
        // 256 bits in base64.
        assert_eq!(sent.as_str().map(str::len), Some(44));
    });
}
