//! What `rotate` and `rewrap` have in common: asking the mount that has the vault, or doing the work.

use std::io::{IsTerminal, Read as _, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use crate::daemon::{self, Class, Error};
use crate::vault::{BLOCKED, Failure, OpenOptions, Outcome, Request, Vault, VaultError};

/// How long a daemon that has just been unmounted may take to let go of its vault.
const GRACE: Duration = Duration::from_secs(5);
/// How often progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Does what is asked for: by the mount on `path`, by the mount that holds the vault in `path`, or
/// here.
pub(super) fn run(
    path: &Path,
    request: &Request,
    options: OpenOptions,
    wait: bool,
) -> Result<(), Error> {
    let stop = daemon::interruptions()?;
    let mount = daemon::absolute(path).and_then(|path| daemon::mount_at(&path));
    if let Ok(Some(mount)) = mount
        && mount.is_secretfs()
    {
        return by_mount(&mount.point, request, &options, wait, &stop);
    }
    let options = OpenOptions {
        read_only: false,
        ..options
    };
    let despite = matches!(request, Request::Despite(_));
    let opened = patiently(path, || match despite {
        true => Vault::open_to_mend(path, &options),
        false => Vault::open(path, &options),
    });
    match opened {
        Ok(vault) => here(&vault, request, &stop),
        Err(error) if error.failure() == Failure::Busy => match mount_of(path) {
            Some(point) => by_mount(&point, request, &options, wait, &stop),
            None => Err(error.into()),
        },
        Err(error) if error.failure() == Failure::NotAVault => Err(Error::new(
            Class::NotAVault,
            format!(
                "{} is no vault, and nothing is mounted there; name the vault's directory, or mount \
                 it first ({error})",
                path.display()
            ),
        )),
        Err(error) => Err(error.into()),
    }
}

/// Tries once more while somebody holds the vault who has it not mounted: a daemon that is just
/// letting go of it.
pub(super) fn patiently<T>(
    path: &Path,
    mut open: impl FnMut() -> Result<T, VaultError>,
) -> Result<T, VaultError> {
    let deadline = Instant::now() + GRACE;
    loop {
        match open() {
            Err(error)
                if error.failure() == Failure::Busy
                    && mount_of(path).is_none()
                    && Instant::now() < deadline => {}
            opened => return opened,
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Does the work in this process, on a vault that nobody has mounted for writing.
fn here(vault: &Vault, request: &Request, stop: &AtomicBool) -> Result<(), Error> {
    let mut shown = Shown::new(request.name());
    let earlier = vault.progress();
    let joins = earlier.as_ref();
    let joins = joins.is_some_and(|earlier| *request == Request::Despite(earlier.change));
    if earlier.is_some() && !joins {
        shown.say("an earlier rotation was not finished; it goes first");
        follow(vault, &mut shown, stop)?;
    }
    vault.begin(request)?;
    follow(vault, &mut shown, stop)?;
    shown.end();
    super::output::print(&format!("{}: done\n", request.name()))
}

fn follow(vault: &Vault, shown: &mut Shown, stop: &AtomicBool) -> Result<(), Error> {
    let go_on = || match stop.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    let ended = std::thread::scope(|scope| {
        let drive = scope.spawn(|| vault.drive(&go_on));
        while !drive.is_finished() {
            if let Some(progress) = vault.progress() {
                let phase = serde_json::to_value(progress.phase).unwrap_or_default();
                shown.update(
                    phase.as_str().unwrap_or_default(),
                    progress.done,
                    progress.total,
                );
            }
            std::thread::sleep(LOOK_EVERY / 10);
        }
        drive.join()
    });
    match ended {
        Ok(Ok(Outcome::Done)) => Ok(()),
        Ok(Ok(Outcome::Stopped)) => Err(Error::new(
            Class::Interrupted,
            "interrupted; what was begun goes on with the next mount for writing, or the next \
             command on the vault",
        )),
        Ok(Err(error)) => match vault.progress() {
            Some(progress) if progress.blocked => Err(Error::new(
                Class::Integrity,
                blocked(progress.change, &error, progress.damaged, &progress.records),
            )),
            _ => Err(error.into()),
        },
        Err(_) => Err(Error::new(Class::Internal, "the rotation has panicked")),
    }
}

/// What is in the way, and what can be done.
fn blocked(
    change: impl std::fmt::Display,
    trouble: impl std::fmt::Display,
    count: u64,
    records: &[String],
) -> String {
    const SHOWN: usize = 10;
    let named = records[..records.len().min(SHOWN)].join(", ");
    let more = match count.saturating_sub(SHOWN as u64) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let records = match count {
        0 => String::new(),
        _ => format!(" (in the way: {named}{more})"),
    };
    format!("{change} is blocked: {trouble}{records}; {BLOCKED}")
}

/// Asks the daemon of a mount.
fn by_mount(
    point: &Path,
    request: &Request,
    pins: &OpenOptions,
    wait: bool,
    stop: &AtomicBool,
) -> Result<(), Error> {
    let control = point.join(".secretfs/control");
    let now = status(point)?;
    must_be_the_one(point, &now, pins)?;
    let before = ended(&now, request);
    let shown_control = control.display();
    let fail = |class, why: String| Err(Error::new(class, why));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .open(&control)
        .and_then(|mut file| file.write_all(request.to_string().as_bytes()));
    let joined = match &written {
        Ok(()) if matches!(request, Request::Despite(_)) => !now["rotation"].is_null(),
        Err(error) if wait && error.raw_os_error() == Some(nix::libc::EBUSY) => {
            status(point).is_ok_and(|status| is_same(&status["rotation"]["change"], request))
        }
        _ => false,
    };
    if let Err(error) = written
        && !joined
    {
        let why = match last_words(&control) {
            Some(words) if error.raw_os_error() != Some(nix::libc::EBUSY) => words,
            _ => error.to_string(),
        };
        let running = status(point).ok().map(|status| running(&status));
        let why = match (error.raw_os_error(), running) {
            (Some(nix::libc::EBUSY), Some(running)) if !running.is_empty() => running,
            _ => why,
        };
        return fail(class_of(&error, &why), format!("{shown_control}: {why}"));
    }
    if !wait {
        return super::output::print(&format!(
            "{} has begun; `secretfs status {}` tells how far it is\n",
            request.name(),
            point.display()
        ));
    }
    let mut shown = Shown::new(request.name());
    if joined {
        shown.say("one is under way already; this waits for its end");
    }
    let mut entered = Value::Null;
    loop {
        if stop.load(Ordering::Relaxed) {
            return fail(
                Class::Interrupted,
                format!("interrupted; {} goes on in the mount", request.name()),
            );
        }
        let status = status(point)?;
        let rotation = &status["rotation"];
        if rotation.is_null() {
            break;
        }
        entered = rotation["to"].clone();
        let number = |name: &str| rotation[name].as_u64().unwrap_or_default();
        let phase = rotation["phase"].as_str().unwrap_or_default();
        let trouble = rotation["trouble"].as_str();
        match trouble {
            None => shown.update(phase, number("done"), number("total")),
            Some(trouble) => shown.say(trouble),
        }
        if let (Some(trouble), true) = (trouble, rotation["blocked"] == true) {
            return fail(Class::Integrity, blocked_as_told(rotation, trouble));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    shown.end();
    let status = status(point)?;
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
    super::output::print(&format!("{}: done\n", request.name()))
}

/// A mount is asked only if it is that of the vault that is meant, and can do it.
fn must_be_the_one(point: &Path, status: &Value, pins: &OpenOptions) -> Result<(), Error> {
    let shown = point.display();
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

fn status(point: &Path) -> Result<Value, Error> {
    let file = point.join(".secretfs/status");
    let fail = |why: String| Error::new(Class::Failed, format!("{}: {why}", file.display()));
    let text = std::fs::read_to_string(&file).map_err(|e| {
        let gone = matches!(
            e.raw_os_error(),
            Some(nix::libc::ENOENT | nix::libc::ENOTCONN | nix::libc::ECONNABORTED)
        );
        fail(match gone {
            true => "the mount has ended; what was begun is finished by the next mount for \
                     writing, or by the next command on the vault"
                .to_owned(),
            false => e.to_string(),
        })
    })?;
    serde_json::from_str(&text).map_err(|e| fail(e.to_string()))
}

/// What is under way, in words; empty when nothing is.
fn running(status: &Value) -> String {
    let rotation = &status["rotation"];
    let Some(change) = rotation["change"].as_str() else {
        return String::new();
    };
    if let (Some(trouble), true) = (rotation["trouble"].as_str(), rotation["blocked"] == true) {
        return format!(
            "{change} is under way; {}",
            blocked_as_told(rotation, trouble)
        );
    }
    let now = std::time::UNIX_EPOCH
        .elapsed()
        .unwrap_or_default()
        .as_secs();
    let began = rotation["started"].as_u64().unwrap_or(now);
    format!(
        "{change} is under way since {} s, {} of {} keys done; wait until it has ended",
        now.saturating_sub(began),
        rotation["done"],
        rotation["total"]
    )
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
    at.parse::<i64>().ok().map(|_| words.to_owned())
}

fn class_of(error: &std::io::Error, why: &str) -> Class {
    match error.raw_os_error() {
        Some(nix::libc::EINVAL) => Class::Usage,
        Some(nix::libc::EBUSY) => Class::Busy,
        Some(nix::libc::ENOKEY | nix::libc::EKEYREVOKED | nix::libc::EACCES) => Class::KeyDenied,
        Some(nix::libc::ETIMEDOUT) => Class::KmsUnreachable,
        Some(nix::libc::EIO) if why.contains("integrity failure") => Class::Integrity,
        _ => Class::Failed,
    }
}

/// Where a vault is mounted for writing, as far as it can be seen from here.
fn mount_of(vault: &Path) -> Option<PathBuf> {
    let vault = vault.canonicalize().ok()?;
    let mounts = daemon::mounts().ok()?;
    let mut mounts = mounts.into_iter();
    let mount = mounts.find(|m| m.is_secretfs() && !m.read_only && m.source == vault)?;
    Some(mount.point)
}

/// Progress: a bar on a terminal, otherwise a line for each state.
struct Shown {
    bar: Option<ProgressBar>,
    name: &'static str,
    last: String,
}

impl Shown {
    fn new(name: &'static str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = "{prefix} {msg} [{bar:30}] {human_pos}/{human_len} {eta}";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar.set_prefix(name);
            bar
        });
        Self {
            bar,
            name,
            last: String::new(),
        }
    }

    fn update(&mut self, phase: &str, done: u64, total: u64) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(total);
                bar.set_position(done);
                bar.set_message(phase.to_owned());
            }
            None => self.say(phase),
        }
    }

    /// Says something once.
    fn say(&mut self, words: &str) {
        if self.last == words {
            return;
        }
        words.clone_into(&mut self.last);
        match &self.bar {
            Some(bar) => bar.println(words),
            // There is nobody to tell that this failed.
            None => drop(writeln!(std::io::stderr(), "{}: {words}", self.name)),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
