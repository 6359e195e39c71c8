//! Has a rotation done by the daemon that holds the vault, and waits for it: through the socket in the
//! vault's directory, or where there is none through the control files of its mount.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use serde_json::Value;

use super::change::{LOOK_EVERY, Shown, blocked, tell};
use crate::control::{Answer, Asked, DaemonClient, INTEGRITY};
use crate::daemon::{self, MountInfo};
use crate::error::{Class, Error};
use crate::vault::{OpenOptions, Request};

/// Who has the vault mounted, and how it is asked.
pub(super) enum Holder {
    /// The mount here.
    Mount(PathBuf),
    /// Whoever listens in the directory of the vault that this path stands for.
    Vault(PathBuf, DaemonClient),
}

/// Who is asked for what is to be done on a mount: whoever listens in the directory of its vault, if
/// that is its daemon. A mount may call itself what it likes.
pub(super) fn holder_of(mount: MountInfo) -> Holder {
    let device = format!("{}:{}", mount.device.0, mount.device.1);
    match DaemonClient::of_mount(&mount.source, mount.user) {
        Ok(Some(client)) if serves(&client, &device) => Holder::Vault(mount.point, client),
        _ => Holder::Mount(mount.point),
    }
}

fn serves(client: &DaemonClient, device: &str) -> bool {
    match client.status() {
        Ok(Asked::Answered(Answer::Status(status))) => status["device"] == device,
        _ => false,
    }
}

/// A command that was not begun.
struct Refusal {
    /// The errno's name.
    errno: String,
    why: String,
}

impl Refusal {
    fn is_busy(&self) -> bool {
        self.errno == "EBUSY"
    }

    fn class(&self) -> Class {
        match self.errno.as_str() {
            "EINVAL" => Class::Usage,
            "EBUSY" => Class::Busy,
            "EPERM" => Class::NotPermitted,
            "ENOKEY" | "EKEYREVOKED" | "EACCES" => Class::KeyDenied,
            "ETIMEDOUT" => Class::KmsUnreachable,
            "EIO" if self.why.contains(INTEGRITY) => Class::Integrity,
            _ => Class::Failed,
        }
    }
}

impl Holder {
    fn path(&self) -> &Path {
        match self {
            Self::Mount(path) | Self::Vault(path, _) => path,
        }
    }

    fn status(&self) -> Result<Value, Error> {
        match self {
            Self::Mount(point) => status_of_mount(point),
            Self::Vault(path, client) => match client.status()? {
                Asked::Answered(Answer::Status(status)) => Ok(status),
                other => Err(unexpected(path, other)),
            },
        }
    }

    fn command(&self, request: &Request) -> Result<Result<(), Refusal>, Error> {
        let request = request.to_string();
        match self {
            Self::Mount(point) => {
                let control = point.join(".secretfs/control");
                let opened = std::fs::OpenOptions::new().write(true).open(&control);
                if let Err(error) = &opened
                    && error.kind() == io::ErrorKind::PermissionDenied
                {
                    let may = "only root, the user of its daemon, and whom control-uid names may command it";
                    let message = format!("cannot open {}: {error}; {may}", control.display());
                    return Err(Error::new(Class::NotPermitted, message));
                }
                let written = opened.and_then(|mut file| file.write_all(request.as_bytes()));
                Ok(written.map_err(|error| {
                    let errno = error.raw_os_error().unwrap_or_default();
                    // When it is busy, the last words are about what it is busy with.
                    let words = last_words(&control).filter(|_| errno != nix::libc::EBUSY);
                    Refusal {
                        errno: format!("{:?}", Errno::from_raw(errno)),
                        why: words.unwrap_or_else(|| error.to_string()),
                    }
                }))
            }
            Self::Vault(path, client) => match client.command(&request)? {
                Asked::Answered(Answer::Begun) => Ok(Ok(())),
                Asked::Answered(Answer::Refused { errno, why }) => Ok(Err(Refusal { errno, why })),
                other => Err(unexpected(path, other)),
            },
        }
    }
}

/// The mount of secretfs that `path` is.
pub(super) fn mounted_at(path: &Path) -> Option<MountInfo> {
    // What cannot be looked up is told when it is opened.
    let mount = daemon::absolute(path).and_then(|path| daemon::mount_at(&path));
    mount.ok().flatten().filter(MountInfo::is_secretfs)
}

/// Refuses a mount, for commands that look at what is stored.
///
/// # Errors
/// When `path` is where a vault is mounted.
pub(super) fn must_be_a_vault(path: &Path) -> Result<(), Error> {
    match mounted_at(path) {
        Some(_) => Err(Error::new(
            Class::NotAVault,
            format!(
                "{} is where a vault is mounted, not the vault: name its directory",
                path.display()
            ),
        )),
        None => Ok(()),
    }
}

/// What the daemon that has the vault in `path` mounted for writing tells; `None` when there is none
/// that may be asked and believed.
///
/// # Errors
/// What it refuses, and why.
pub(super) fn told(
    path: &Path,
    ask: impl FnOnce(&DaemonClient) -> Result<Asked, Error>,
) -> Result<Option<Answer>, Error> {
    let Ok(Some(client)) = DaemonClient::of(path) else {
        return Ok(None);
    };
    match ask(&client)? {
        Asked::Answered(answer @ (Answer::Status(_) | Answer::Audit(_))) => Ok(Some(answer)),
        Asked::Gone => Ok(None),
        other => Err(unexpected(path, other)),
    }
}

/// What it means when an answer is not that to the question.
fn unexpected(vault: &Path, asked: Asked) -> Error {
    let shown = vault.display();
    match asked {
        Asked::Gone => Error::new(Class::Failed, format!("{shown}: {GONE}")),
        Asked::Answered(Answer::Refused { errno, why }) => {
            let refusal = Refusal { errno, why };
            Error::new(refusal.class(), format!("{shown}: {}", refusal.why))
        }
        Asked::Answered(_) => Error::new(
            Class::Failed,
            format!("{shown}: the daemon that has it mounted gives an answer to something else"),
        ),
    }
}

const GONE: &str = "the mount has ended; what was begun is finished by the next mount for writing, or \
                    by the next command on the vault";

/// Asks a daemon.
pub(super) fn to(
    holder: &Holder,
    request: &Request,
    pins: &OpenOptions,
    wait: bool,
    stop: &AtomicBool,
) -> Result<(), Error> {
    let now = holder.status()?;
    // Who is shown the public part alone is refused when he asks, in clear words.
    if now["view"] != "public" {
        must_be_the_one(holder.path(), &now, pins)?;
    }
    let before = ended(&now, request);
    let shown = holder.path().display();
    let fail = |class, why: String| Err(Error::new(class, why));
    let asked = holder.command(request)?;
    let joined = match &asked {
        Ok(()) => matches!(request, Request::Despite(_)) && !now["rotation"].is_null(),
        Err(refusal) if wait && refusal.is_busy() => {
            let status = holder.status();
            status.is_ok_and(|status| is_same(&status["rotation"]["change"], request))
        }
        Err(_) => false,
    };
    if let Err(refusal) = asked
        && !joined
    {
        let running = match refusal.is_busy() {
            true => holder.status().ok().and_then(|status| running(&status)),
            false => None,
        };
        let class = refusal.class();
        return fail(
            class,
            format!("{shown}: {}", running.unwrap_or(refusal.why)),
        );
    }
    if !wait {
        let begun = "has begun; `secretfs status";
        return tell(
            request,
            &format!("{} {begun} {shown}` tells how far it is", request.name()),
        );
    }
    let mut progress = Shown::new(request.name());
    if joined {
        progress.say("one is under way already; this waits for its end");
    }
    let mut entered = Value::Null;
    let status = loop {
        if stop.load(Ordering::Relaxed) {
            return fail(
                Class::Interrupted,
                format!("interrupted; {} goes on in the mount", request.name()),
            );
        }
        let status = holder.status()?;
        let rotation = &status["rotation"];
        if rotation.is_null() {
            break status;
        }
        entered = rotation["to"].clone();
        let number = |name: &str| rotation[name].as_u64().unwrap_or_default();
        let phase = rotation["phase"].as_str().unwrap_or_default();
        let trouble = rotation["trouble"].as_str();
        match trouble {
            None => progress.update(phase, number("done"), number("total")),
            Some(trouble) => progress.say(trouble),
        }
        if let (Some(trouble), true) = (trouble, rotation["blocked"] == true) {
            return fail(Class::Integrity, blocked_as_told(rotation, trouble));
        }
        std::thread::sleep(LOOK_EVERY);
    };
    progress.end();
    let done = match joined {
        true => entered.is_null() || status["active_generation"] == entered,
        false => ended(&status, request) != before,
    };
    if !done {
        return fail(
            Class::Failed,
            format!(
                "{} was given up: the new key could not be unwrapped; nothing was changed, and the \
                 history says so ({})",
                request.name(),
                status["last_event"]["event"].as_str().unwrap_or_default()
            ),
        );
    }
    tell(request, &format!("{}: done", request.name()))
}

/// A mount is asked only if it is that of the vault that is meant, and can do it.
pub(super) fn must_be_the_one(
    path: &Path,
    status: &Value,
    pins: &OpenOptions,
) -> Result<(), Error> {
    let shown = path.display();
    let vault = status["vault"].as_str().unwrap_or_default();
    if let Some(pinned) = &pins.pinned_vault_id
        && pinned != vault
    {
        let why =
            format!("{shown} is a mount of vault {vault}, but vault-id={pinned} was asked for");
        return Err(Error::new(Class::Integrity, why));
    }
    let pinned = |key: &str| pins.pinned_keys.iter().any(|pin| pin.as_str() == key);
    let generations = status["generations"].as_array().into_iter().flatten();
    let mut wraps = generations.flat_map(|g| g["wraps"].as_array().into_iter().flatten());
    if !pins.pinned_keys.is_empty()
        && let Some(wrap) = wraps.find(|wrap| !pinned(wrap["kms_key"].as_str().unwrap_or_default()))
    {
        let key = wrap["kms_key"].as_str().unwrap_or_default();
        let why =
            format!("the vault mounted on {shown} is under {key}, which kms-key does not name");
        return Err(Error::new(Class::Integrity, why));
    }
    if status["mode"] == "read-only" {
        let why = format!(
            "the mount on {shown} is read-only; name the mount for writing, or the vault's directory"
        );
        return Err(Error::new(Class::Failed, why));
    }
    Ok(())
}

/// Whether what is under way is what is asked for.
fn is_same(change: &Value, request: &Request) -> bool {
    let anywhere = match request {
        Request::Rewrap { to, .. } => to.is_empty(),
        Request::Rotate | Request::Reencrypt | Request::Despite(_) => true,
    };
    anywhere && *change == request.name()
}

/// What is another once a rotation of this kind has ended well.
fn ended(status: &Value, request: &Request) -> Value {
    match request {
        Request::Rotate | Request::Reencrypt | Request::Despite(_) => {
            status["active_generation"].clone()
        }
        Request::Rewrap { .. } => status["events"].clone(),
    }
}

fn status_of_mount(point: &Path) -> Result<Value, Error> {
    let file = point.join(".secretfs/status");
    let fail = |why: String| Error::new(Class::Failed, format!("{}: {why}", file.display()));
    let text = std::fs::read_to_string(&file).map_err(|e| {
        let gone = matches!(
            e.raw_os_error(),
            Some(nix::libc::ENOENT | nix::libc::ENOTCONN | nix::libc::ECONNABORTED)
        );
        fail(match gone {
            true => GONE.to_owned(),
            false => e.to_string(),
        })
    })?;
    serde_json::from_str(&text).map_err(|e| fail(e.to_string()))
}

/// What is under way, in words.
fn running(status: &Value) -> Option<String> {
    let rotation = &status["rotation"];
    let change = rotation["change"].as_str()?;
    if let (Some(trouble), true) = (rotation["trouble"].as_str(), rotation["blocked"] == true) {
        let told = blocked_as_told(rotation, trouble);
        return Some(format!("{change} is under way; {told}"));
    }
    let now = std::time::UNIX_EPOCH
        .elapsed()
        .unwrap_or_default()
        .as_secs();
    let began = rotation["started"].as_u64().unwrap_or(now);
    Some(format!(
        "{change} is under way since {} s, {} of {} keys done; wait until it has ended",
        now.saturating_sub(began),
        rotation["done"],
        rotation["total"]
    ))
}

/// What is in the way of a mount's rotation.
fn blocked_as_told(rotation: &Value, trouble: &str) -> String {
    let records = rotation["records"].as_array().into_iter().flatten();
    let records: Vec<_> = records
        .filter_map(|r| r.as_str().map(str::to_owned))
        .collect();
    let change = rotation["change"].as_str().unwrap_or_default();
    let count = rotation["damaged"].as_u64().unwrap_or_default();
    blocked(change, trouble, count, &records)
}

/// What the daemon says of the last command.
fn last_words(control: &Path) -> Option<String> {
    let mut text = String::new();
    let file = std::fs::File::open(control).ok()?;
    file.take(4096).read_to_string(&mut text).ok()?;
    let (at, words) = text.trim_end().split_once(' ')?;
    // Before the first command it says something else.
    at.parse::<i64>().ok()?;
    let (_time, words) = words.split_once(' ')?;
    Some(words.to_owned())
}
