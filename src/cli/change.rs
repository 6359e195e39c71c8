//! What `rotate`, `reencrypt` and `rewrap` have in common: asking the daemon that has the vault, or
//! doing the work.

use std::io::{IsTerminal, Write as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::asked::{self, Holder};
use crate::control::DaemonClient;
use crate::daemon;
use crate::error::{Class, Error};
use crate::keyring::ChangeKind;
use crate::store::StoreErrorKind;
use crate::vault::{BLOCKED, Failure, OpenOptions, Outcome, Request, Vault, VaultError};

/// How long a daemon that has just been unmounted may take to let go of its vault.
const GRACE: Duration = Duration::from_secs(5);
/// How often progress is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Does what is asked for: by the mount on `path`, by whoever has the vault in `path` mounted, or here.
pub(super) fn run(
    path: &Path,
    request: &Request,
    options: OpenOptions,
    wait: bool,
) -> Result<(), Error> {
    let stop = daemon::interruptions()?;
    if let Some(mount) = asked::mounted_at(path) {
        let holder = asked::holder_of(mount);
        return asked::to(&holder, request, &options, wait, &stop);
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
        Err(error) if error.failure() == Failure::Busy || is_denied(&error) => {
            match DaemonClient::of(path) {
                Ok(Some(client)) => {
                    let holder = Holder::Vault(path.to_owned(), client);
                    asked::to(&holder, request, &options, wait, &stop)
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

/// Whether the vault's files are not this user's to open; its daemon may serve him all the same.
fn is_denied(error: &VaultError) -> bool {
    matches!(error, VaultError::Store(error) if error.kind == StoreErrorKind::Denied)
}

/// Tries once more while somebody holds the vault who cannot be asked: a daemon that is just letting
/// go of it.
pub(super) fn patiently<T>(
    path: &Path,
    mut open: impl FnMut() -> Result<T, VaultError>,
) -> Result<T, VaultError> {
    let deadline = Instant::now() + GRACE;
    loop {
        match open() {
            Err(error)
                if error.failure() == Failure::Busy
                    && matches!(DaemonClient::of(path), Ok(None))
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
    tell(request, &format!("{}: done", request.name()))
}

/// What `rotate` leaves as it was, and what does not.
const NOT_UNDONE: &str = "data keys are what they were: whoever had the old master key and a copy of the vault goes on to \
     have those of all that was in it; after a compromise, replace them with `secretfs reencrypt`";

/// Tells what has become of a request, and what it does not do.
pub(super) fn tell(request: &Request, outcome: &str) -> Result<(), Error> {
    let keeps = matches!(
        request,
        Request::Rotate | Request::Despite(ChangeKind::Rotate)
    );
    super::output::print(&match keeps {
        true => format!("{outcome}\n{NOT_UNDONE}\n"),
        false => format!("{outcome}\n"),
    })
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
pub(super) fn blocked(
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

/// Progress: a bar on a terminal, otherwise a line for each state.
pub(super) struct Shown {
    bar: Option<ProgressBar>,
    name: &'static str,
    last: String,
}

impl Shown {
    pub(super) fn new(name: &'static str) -> Self {
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

    pub(super) fn update(&mut self, phase: &str, done: u64, total: u64) {
        match &self.bar {
            Some(bar) => {
                // A bar of which nobody knows the length yet would be drawn full.
                if total > 0 {
                    bar.set_length(total);
                }
                bar.set_position(done);
                bar.set_message(phase.to_owned());
            }
            None => self.say(phase),
        }
    }

    /// Says something once.
    pub(super) fn say(&mut self, words: &str) {
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

    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
