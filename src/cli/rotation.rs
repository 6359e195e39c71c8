//! The part that `rotate`, `reencrypt` and `rewrap` share: they ask the daemon that has the vault,
//! or do the work.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use super::meant::{mounted_at, must_be_the_one};
use super::progress::{LOOK_EVERY, Shown, blocked};
use crate::control::{DaemonClient, Holder};
use crate::daemon;
use crate::error::{Class, Error};
use crate::keyring::RotationKind;
use crate::store::StoreErrorKind;
use crate::vault::{Failure, OpenOptions, Outcome, Request, Vault, VaultError};

/// Has a request carried out by the mount on `path`, by the daemon that has the vault in `path`
/// mounted, or by this process.
pub(super) fn run(
    path: &Path,
    request: &Request,
    options: OpenOptions,
    wait: bool,
) -> Result<(), Error> {
    let stop = daemon::interruptions()?;
    if let Some(mount) = mounted_at(path) {
        let holder = Holder::of_mount(mount.point, mount.device, &mount.source, mount.user);
        return ask(&holder, request, &options, wait, &stop);
    }
    let options = OpenOptions {
        read_only: false,
        ..options
    };
    let despite = matches!(request, Request::Despite(_));
    let open = || match despite {
        true => Vault::open_to_repair(path, &options),
        false => Vault::open(path, &options),
    };
    let opened = daemon::patiently(open, || is_served(path));
    match opened {
        Ok(vault) => here(&vault, request, &stop),
        Err(error) if error.failure() == Failure::Busy || is_denied(&error) => {
            match DaemonClient::of(path) {
                Ok(Some(client)) => {
                    let holder = Holder::Vault(path.to_owned(), client);
                    ask(&holder, request, &options, wait, &stop)
                }
                _ if is_denied(&error) => Err(error.into()),
                Ok(None) => Err(Error::new(
                    Class::Busy,
                    format!("{error}; to have it do this, name the mount point"),
                )),
                Err(why) => Err(Error::new(Class::Busy, format!("{error}; {why}"))),
            }
        }
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

/// Whether this user may not open the vault's files. Its daemon may still serve the user.
fn is_denied(error: &VaultError) -> bool {
    matches!(error, VaultError::Store(error) if error.kind == StoreErrorKind::Denied)
}

/// Whether a daemon holds the vault and will keep it: one that is releasing it does not answer.
pub(super) fn is_served(path: &Path) -> bool {
    !matches!(DaemonClient::of(path), Ok(None))
}

/// Does the work in this process, on a vault that is not mounted for writing.
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
    tell(request, &format!("{}: done", request.name()))
}

/// The warning after `rotate`, which keeps the data keys.
const NOT_UNDONE: &str = "data keys are what they were: whoever had the old master key and a copy of the vault goes on to \
     have those of all that was in it; after a compromise, replace them with `secretfs reencrypt`";

/// Prints the outcome of a request, and what it does not undo.
fn tell(request: &Request, outcome: &str) -> Result<(), Error> {
    let keeps = matches!(
        request,
        Request::Rotate | Request::Despite(RotationKind::Rotate)
    );
    super::output::print(&match keeps {
        true => format!("{outcome}\n{NOT_UNDONE}\n"),
        false => format!("{outcome}\n"),
    })
}

fn follow(vault: &Vault, shown: &mut Shown, stop: &AtomicBool) -> Result<(), Error> {
    let go_on = daemon::go_on(stop);
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

/// Asks a daemon, and waits for the end if `wait` says so.
fn ask(
    holder: &Holder,
    request: &Request,
    pins: &OpenOptions,
    wait: bool,
    stop: &AtomicBool,
) -> Result<(), Error> {
    let now = holder.status()?;
    // If this user sees only the public part, the command refuses with a clear message.
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
        return fail(
            refusal.class,
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
            return fail(Class::Integrity, blocked_by_status(rotation, trouble));
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

/// Whether the rotation under way is the requested one.
fn is_same(change: &Value, request: &Request) -> bool {
    let anywhere = match request {
        Request::Rewrap { to, .. } => to.is_empty(),
        Request::Rotate | Request::Reencrypt | Request::Despite(_) => true,
    };
    anywhere && *change == request.name()
}

/// A value that a successful rotation of this kind changes.
fn ended(status: &Value, request: &Request) -> Value {
    match request {
        Request::Rotate | Request::Reencrypt | Request::Despite(_) => {
            status["active_generation"].clone()
        }
        Request::Rewrap { .. } => status["events"].clone(),
    }
}

/// Describes the rotation under way.
fn running(status: &Value) -> Option<String> {
    let rotation = &status["rotation"];
    let change = rotation["change"].as_str()?;
    if let (Some(trouble), true) = (rotation["trouble"].as_str(), rotation["blocked"] == true) {
        let why = blocked_by_status(rotation, trouble);
        return Some(format!("{change} is under way; {why}"));
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

/// Describes what blocks a mount's rotation, from its status.
fn blocked_by_status(rotation: &Value, trouble: &str) -> String {
    let records = rotation["records"].as_array().into_iter().flatten();
    let records: Vec<_> = records
        .filter_map(|r| r.as_str().map(str::to_owned))
        .collect();
    let change = rotation["change"].as_str().unwrap_or_default();
    let count = rotation["damaged"].as_u64().unwrap_or_default();
    blocked(change, trouble, count, &records)
}
