//! What `rotate` and `rewrap` have in common: asking the mount that has the vault, or doing the work.

use std::io::{IsTerminal, Read as _, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use crate::daemon::{self, Class, Error};
use crate::vault::{Failure, OpenOptions, Request, Vault};

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
    let mount = daemon::absolute(path).and_then(|path| daemon::mount_at(&path));
    if let Ok(Some(mount)) = mount
        && mount.is_secretfs()
    {
        return by_mount(&mount.point, request, wait);
    }
    let options = OpenOptions {
        read_only: false,
        ..options
    };
    let deadline = Instant::now() + GRACE;
    loop {
        match Vault::open(path, &options) {
            Ok(vault) => return here(&vault, request),
            Err(error) if error.failure() == Failure::Busy => {
                if let Some(point) = mount_of(path) {
                    return by_mount(&point, request, wait);
                }
                // Held but not mounted: a daemon is just letting go of it.
                if Instant::now() > deadline {
                    return Err(error.into());
                }
                std::thread::sleep(LOOK_EVERY);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Does the work in this process, on a vault that nobody has mounted for writing.
fn here(vault: &Vault, request: &Request) -> Result<(), Error> {
    let mut shown = Shown::new(request.name());
    if vault.progress().is_some() {
        shown.say("an earlier rotation was not finished; it goes first");
        follow(vault, &mut shown)?;
    }
    vault.begin(request)?;
    follow(vault, &mut shown)?;
    shown.end();
    super::output::print(&format!("{}: done\n", request.name()))
}

fn follow(vault: &Vault, shown: &mut Shown) -> Result<(), Error> {
    let ended = std::thread::scope(|scope| {
        let drive = scope.spawn(|| vault.drive(&|| ControlFlow::Continue(())));
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
        Ok(result) => Ok(result.map(drop)?),
        Err(_) => Err(Error::new(Class::Internal, "the rotation has panicked")),
    }
}

/// Asks the daemon of a mount.
fn by_mount(point: &Path, request: &Request, wait: bool) -> Result<(), Error> {
    let control = point.join(".secretfs/control");
    let shown_control = control.display();
    let fail = |class, why: String| Err(Error::new(class, why));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .open(&control)
        .and_then(|mut file| file.write_all(request.to_string().as_bytes()));
    if let Err(error) = written {
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
    loop {
        let status = status(point)?;
        let rotation = &status["rotation"];
        if rotation.is_null() {
            break;
        }
        let number = |name: &str| rotation[name].as_u64().unwrap_or_default();
        let phase = rotation["phase"].as_str().unwrap_or_default();
        shown.update(phase, number("done"), number("total"));
        if let Some(trouble) = rotation["trouble"].as_str() {
            shown.say(trouble);
            if trouble.starts_with("integrity failure") {
                return fail(
                    Class::Integrity,
                    format!("the rotation is blocked: {trouble}"),
                );
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
    shown.end();
    super::output::print(&format!("{}: done\n", request.name()))
}

fn status(point: &Path) -> Result<Value, Error> {
    let file = point.join(".secretfs/status");
    let fail = |why: String| Error::new(Class::Failed, format!("{}: {why}", file.display()));
    let text = std::fs::read_to_string(&file).map_err(|e| fail(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| fail(e.to_string()))
}

/// What is under way, in words; empty when nothing is.
fn running(status: &Value) -> String {
    let rotation = &status["rotation"];
    let Some(change) = rotation["change"].as_str() else {
        return String::new();
    };
    format!(
        "{change} is under way, {} of {} keys done; wait until it has ended",
        rotation["done"], rotation["total"]
    )
}

/// What the daemon says of the last command.
fn last_words(control: &Path) -> Option<String> {
    let mut text = String::new();
    let file = std::fs::File::open(control).ok()?;
    file.take(4096).read_to_string(&mut text).ok()?;
    let (_, words) = text.trim_end().split_once(' ')?;
    Some(words.to_owned())
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
