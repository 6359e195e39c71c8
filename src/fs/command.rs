//! What is written to `.secretfs/control`, and the thread that takes rotations to their end.
//!
//! One write is one command. It is answered once the intent is durable, or has failed; by a worker,
//! because KMS is asked for it, and nothing that serves requests may wait for that.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::crypto::memory;
use crate::keyring::ChangeKind;
use crate::kms::KeyUri;
use crate::os::nice;
use crate::vault::{BLOCKED, Failure, Outcome, Request, Timestamp, Vault, VaultError, rfc3339};

use super::commanders::Right;
use super::{Errno, FileSystem};

/// Longest command, in bytes.
pub(crate) const MAX_COMMAND: usize = 4096;
/// How long after a failure a rotation is gone on with.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// How long after one that could not begin a rotation is tried again that is due.
const BEGIN_AGAIN: Duration = Duration::from_secs(60);
/// The clock may be set meanwhile, so it is looked at now and then.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// What an answer begins with when a record is not what was stored.
pub(crate) const INTEGRITY: &str = "integrity failure: ";

/// What the file shows before there was a command.
const HELP: &str = "no command yet; write one of: rotate, reencrypt (both with --retire-despite, to give up what \
     does not open), rewrap [--yes-leave-aws] [KMS-KEY-URI ...]\n";

/// Takes a command apart.
///
/// # Errors
/// In words, when it is none.
pub fn parse(text: &[u8]) -> Result<Request, String> {
    let text = match text {
        [.., _] if text.len() > MAX_COMMAND => return Err("the command is too long".into()),
        _ => std::str::from_utf8(text).map_err(|_| "the command is not UTF-8")?,
    };
    let mut words = text.split_ascii_whitespace();
    match words.next() {
        Some(name @ ("rotate" | "reencrypt")) => match words.next() {
            None if name == "rotate" => Ok(Request::Rotate),
            None => Ok(Request::Reencrypt),
            Some("--retire-despite") if words.next().is_none() => {
                Ok(Request::Despite(match name {
                    "rotate" => ChangeKind::Rotate,
                    _ => ChangeKind::Reencrypt,
                }))
            }
            Some(_) => Err(format!("`{name}` takes no argument but --retire-despite")),
        },
        Some("rewrap") => {
            let mut leave_aws = false;
            let mut to = Vec::new();
            for word in words {
                match word {
                    "--yes-leave-aws" => leave_aws = true,
                    uri => to.push(uri.parse::<KeyUri>().map_err(|e| e.to_string())?),
                }
            }
            Ok(Request::Rewrap { to, leave_aws })
        }
        Some(_) => {
            Err("unknown command; write one of: rotate, reencrypt, rewrap [KMS-KEY-URI ...]".into())
        }
        None => Err(
            "the command is empty; write one of: rotate, reencrypt, rewrap [KMS-KEY-URI ...]"
                .into(),
        ),
    }
}

/// The thread that drives rotations, or follows those of the writer.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    orders: Mutex<Orders>,
    wake: Condvar,
}

#[derive(Default)]
struct Orders {
    wanted: bool,
    /// The last command and what came of it.
    last: Option<String>,
    /// A command is being begun.
    busy: bool,
}

impl Shared {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn go_on(&self) -> ControlFlow<()> {
        match self.stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// Waits for an order, at most until `until`; false when it is the end.
    fn wait(&self, until: Option<Instant>) -> bool {
        let mut orders = self.orders();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if std::mem::take(&mut orders.wanted) || left.is_some_and(|left| left.is_zero()) {
                return true;
            }
            orders = match left {
                None => self
                    .wake
                    .wait(orders)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    let waited = self.wake.wait_timeout(orders, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Drives what is begun, and begins what is due.
    fn drive(&self, vault: &Vault, every: Option<Duration>) {
        let mut again = None;
        let mut not_before = Instant::now();
        loop {
            let idle = vault.progress().is_none();
            let due = every.filter(|_| idle).map(|every| {
                let due = Instant::now() + vault.until_rotation(every).min(LONGEST_WAIT);
                due.max(not_before)
            });
            if !self.wait([again, due].into_iter().flatten().min()) {
                return;
            }
            again = None;
            if vault.progress().is_none() {
                let is_due = every.is_some_and(|every| vault.until_rotation(every).is_zero());
                if !is_due || Instant::now() < not_before {
                    continue;
                }
                if let Err(error) = vault.begin(&Request::Rotate) {
                    tracing::warn!("the rotation that is due cannot begin: {error}");
                    not_before = Instant::now() + BEGIN_AGAIN;
                    continue;
                }
                tracing::info!("a rotation is due and has begun");
            }
            again = match vault.drive(&|| self.go_on()) {
                Ok(Outcome::Done) => {
                    tracing::info!("the rotation has ended");
                    None
                }
                Ok(Outcome::Stopped) => return,
                // Asking again would find the same.
                Err(error) if error.failure() == Failure::Integrity => {
                    tracing::error!("the rotation is blocked: {error}; {BLOCKED}");
                    not_before = Instant::now() + LONGEST_WAIT;
                    None
                }
                Err(error) => {
                    tracing::warn!("the rotation will be gone on with: {error}");
                    Some(Instant::now() + TRY_AGAIN)
                }
            };
        }
    }
}

impl Keeper {
    pub(super) fn start(vault: Arc<Vault>, every: Option<Duration>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        // What an earlier mount left is gone on with at once.
        shared.orders().wanted = true;
        let keeper = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("keys".into())
            .spawn(move || {
                memory::keep_stack_in();
                if !vault.await_service() {
                    return;
                }
                match vault.is_read_only() {
                    true => vault.follow(&|| keeper.go_on()),
                    false => {
                        nice::step_back_but_for_locks();
                        keeper.drive(&vault, every);
                    }
                }
            })?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    fn wake(&self) {
        self.shared.orders().wanted = true;
        self.shared.wake.notify_all();
    }

    /// Tells the thread to end. A rotation stays where it is, to be gone on with by the next mount.
    pub(super) fn begin_to_stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        self.begin_to_stop();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the keys' thread has panicked");
        }
    }

    /// The last command and what came of it.
    pub(super) fn last(&self) -> String {
        let last = self.shared.orders().last.clone();
        last.unwrap_or_else(|| HELP.to_owned())
    }

    fn note(&self, command: &str, outcome: &str) {
        let at = Timestamp::now().seconds;
        let time = rfc3339(at).unwrap_or_else(|| "-".to_owned());
        self.shared.orders().last = Some(format!("{at} {time} {command}: {outcome}\n"));
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Why a command was not begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// What whoever writes to the control file is told.
    pub(crate) errno: Errno,
    /// In words.
    pub(crate) why: String,
}

impl Refusal {
    fn new(errno: i32, why: &str) -> Self {
        Self {
            errno: Errno(errno),
            why: why.to_owned(),
        }
    }
}

impl From<VaultError> for Refusal {
    fn from(error: VaultError) -> Self {
        let mut why = error.to_string();
        // EIO alone does not tell a failing disk from a record that somebody changed.
        if error.failure() == Failure::Integrity && !why.starts_with(INTEGRITY) {
            why.insert_str(0, INTEGRITY);
        }
        Self {
            errno: error.into(),
            why,
        }
    }
}

/// Who has something done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub(crate) uid: u32,
    pub(crate) right: Right,
}

/// What a command tells its caller, once it is begun or refused.
pub(crate) type Told = Box<dyn FnOnce(Result<(), Refusal>) + Send>;

impl FileSystem {
    /// Takes a command, from the control file or the socket. `told` is called once, perhaps from
    /// another thread, perhaps before this returns.
    pub(crate) fn command(self: &Arc<Self>, text: &[u8], by: Asker, told: Told) {
        let shown = Arc::clone(self);
        let told = move |begun: Result<(), Refusal>| {
            shown.control.forget_told();
            told(begun);
        };
        let request = match parse(text) {
            Ok(request) => request,
            Err(why) => {
                self.keeper.note("refused", &why);
                return told(Err(Refusal::new(libc::EINVAL, &why)));
            }
        };
        if self.vault.is_read_only() {
            return told(Err(Refusal::new(libc::EROFS, "the mount is read-only")));
        }
        if std::mem::replace(&mut self.keeper.shared.orders().busy, true) {
            let why = "another command is just being begun";
            return told(Err(Refusal::new(libc::EBUSY, why)));
        }
        let beginning = Beginning {
            fs: Arc::clone(self),
            name: request.name(),
            told: Some(Box::new(told)),
        };
        let worker = move || {
            let fs = &beginning.fs;
            // Nothing is changed in a vault that was not counted yet.
            fs.vault.await_verdict_or_end();
            fail::fail_point!("command-begins");
            let outcome = fs
                .must_be_taken_from(by, &request)
                .and_then(|()| fs.vault.begin(&request).map_err(Refusal::from));
            beginning.end(outcome);
        };
        let started = std::thread::Builder::new()
            .name("command".into())
            .spawn(worker);
        if let Err(error) = started {
            // Whoever asks is told as the worker is dropped.
            tracing::error!("no thread for a command: {error}");
        }
    }
}

/// A command that is being begun: no other is meanwhile. However that ends, also if it panics, the next
/// one may be begun, and whoever asked is told.
struct Beginning {
    fs: Arc<FileSystem>,
    name: &'static str,
    /// `None` once it was told.
    told: Option<Told>,
}

impl Beginning {
    fn end(mut self, outcome: Result<(), Refusal>) {
        self.tell(outcome);
    }

    fn tell(&mut self, outcome: Result<(), Refusal>) {
        let Some(told) = self.told.take() else {
            return;
        };
        let keeper = &self.fs.keeper;
        keeper.shared.orders().busy = false;
        keeper.note(self.name, &said(&outcome));
        // One that is blocked is tried again when somebody asks for another.
        keeper.wake();
        told(outcome);
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        let why = "it died while it was begun, and the log says where; `status` tells whether it is \
                   under way; try again if not";
        self.tell(Err(Refusal::new(libc::EIO, why)));
    }
}

impl FileSystem {
    /// Refuses what takes the vault to KMS keys that nobody has named for it, or away from AWS, and is
    /// not asked for by root or the user who mounted, by the command: whoever has those keys can then
    /// read the vault.
    fn must_be_taken_from(&self, by: Asker, request: &Request) -> Result<(), Refusal> {
        let (Request::Rewrap { to, leave_aws }, Right::KnownKeys) = (request, by.right) else {
            return Ok(());
        };
        let what = match (leave_aws, self.vault.first_unknown_key(to)?) {
            (false, None) => return Ok(()),
            (true, _) => "leaving AWS KMS (--yes-leave-aws)".to_owned(),
            (false, Some(key)) => {
                format!("{key}, which the vault is not under and kms-key does not name,")
            }
        };
        let keys = to.iter().map(|key| format!(" --kms-key {key}"));
        let why = format!(
            "{what} is not taken from here, but from root and the user who mounted, by the command: \
             `secretfs rewrap {}{}{}`",
            self.vault.path().display(),
            keys.collect::<String>(),
            if *leave_aws { " --yes-leave-aws" } else { "" },
        );
        tracing::warn!("refused to user {}: {why}", by.uid);
        Err(Refusal::new(libc::EPERM, &why))
    }
}

fn said(outcome: &Result<(), Refusal>) -> String {
    match outcome {
        Ok(()) => "begun; `status` tells how far it is".to_owned(),
        Err(refusal) => format!("failed: {}", refusal.why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_taken_apart_and_anything_else_is_refused_in_words() {
        assert_eq!(parse(b"rotate\n"), Ok(Request::Rotate));
        let despite = Request::Despite(ChangeKind::Reencrypt);
        assert_eq!(parse(despite.to_string().as_bytes()), Ok(despite));
        let to = vec!["local-kms://b".parse().expect("a URI")];
        assert_eq!(
            parse(b"rewrap  local-kms://b\n"),
            Ok(Request::Rewrap {
                to,
                leave_aws: false
            })
        );
        for wrong in [
            &b""[..],
            b"\n",
            b"rotate now",
            b"rotate --retire-despite now",
            b"rewrap nonsense",
            b"\xff",
            &[b'r'; 5000],
        ] {
            assert!(!parse(wrong).expect_err("refused").is_empty());
        }
    }
}
