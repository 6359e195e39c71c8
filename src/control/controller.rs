//! The controller of one mount: it takes commands for the keys, and reports status and history.
//! Programs reach it through the control files and the socket.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::error::Class;
use crate::fs::{Failures, FileSystem};
use crate::sync::{Mutex, MutexGuard, Rank};
use crate::vault::{Request, Timestamp, Vault, VaultError, rfc3339, with_times};

use super::command::{Commander, OnReply, Refusal, parse};
use super::commanders::{Commanders, Right};
use super::driver::RotationDriver;
use super::status::{Reporter, Shown};
use super::texts::Texts;

/// The content of the control file before the first command.
const HELP: &str = "no command yet; write one of: rotate, reencrypt (both with --retire-despite, to give up what \
     does not open), rewrap [--yes-leave-aws] [KMS-KEY-URI ...]\n";

/// The settings of the control plane.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The time after which the master key is replaced again; `None`: on command only.
    pub rotate_every: Option<Duration>,
    /// One more user who may command the keys.
    pub control_uid: Option<u32>,
    /// Facts for `status` only.
    pub shown: Shown,
}

/// The last command.
#[derive(Default)]
struct LastCommand {
    /// Its time, name and outcome.
    outcome: Option<String>,
    /// A command is beginning.
    busy: bool,
}

/// The controller of one mount, as the module describes.
pub struct Controller {
    vault: Arc<Vault>,
    failures: Arc<Failures>,
    commanders: Commanders,
    driver: RotationDriver,
    reporter: Reporter,
    last: Mutex<LastCommand>,
    /// The texts of the control files. A command makes the lengths that callers were given stale.
    texts: Texts,
}

impl Controller {
    /// Controls the vault that `fs` serves. Starts the thread that drives rotations.
    ///
    /// # Errors
    /// When that thread cannot start.
    pub fn start(fs: &Arc<FileSystem>, settings: Settings) -> std::io::Result<Arc<Self>> {
        let vault = Arc::clone(fs.vault());
        Ok(Arc::new(Self {
            commanders: Commanders::new(settings.control_uid),
            driver: RotationDriver::start(Arc::clone(&vault), settings.rotate_every)?,
            reporter: Reporter::of(fs, settings.shown),
            last: Mutex::new(Rank::LastCommand, LastCommand::default()),
            texts: Texts::default(),
            failures: Arc::clone(fs.failures()),
            vault,
        }))
    }

    /// The vault whose keys the commands change.
    pub(crate) fn vault(&self) -> &Arc<Vault> {
        &self.vault
    }

    /// The users who may command the keys.
    pub(crate) fn commanders(&self) -> &Commanders {
        &self.commanders
    }

    /// The texts of the control files.
    pub(super) fn texts(&self) -> &Texts {
        &self.texts
    }

    fn lock_last(&self) -> MutexGuard<'_, LastCommand> {
        self.last.lock()
    }

    /// The status of the mount and its vault.
    pub(crate) fn status(&self) -> Value {
        self.reporter.full()
    }

    /// The part of the status that every user may see.
    pub(super) fn public_status(&self) -> Value {
        self.reporter.public()
    }

    /// The key-management history, one object per event.
    ///
    /// # Errors
    /// When the history is unreadable, or is not what was stored. This logs and counts the error.
    pub(crate) fn audit(&self) -> Result<Vec<Value>, VaultError> {
        let events = self.vault.history();
        let events = events.inspect_err(|error| self.failures.note(error))?;
        let events = events.iter().map(serde_json::to_value);
        Ok(events.filter_map(Result::ok).map(with_times).collect())
    }

    /// The last command and its outcome.
    pub(super) fn last_command(&self) -> String {
        let last = self.lock_last().outcome.clone();
        last.unwrap_or_else(|| HELP.to_owned())
    }

    fn note(&self, command: &str, outcome: &str) {
        let at = Timestamp::now().seconds;
        let time = rfc3339(at).unwrap_or_else(|| "-".to_owned());
        self.lock_last().outcome = Some(format!("{at} {time} {command}: {outcome}\n"));
    }

    /// Asks the rotation driver to stop. A rotation stays where it is; the next mount continues it.
    pub(super) fn begin_to_end(&self) {
        self.driver.begin_to_stop();
    }

    /// Waits until the rotation driver has stopped.
    pub(super) fn end(&self) {
        self.driver.stop();
    }

    /// Takes a command from the control file or the socket. It calls `reply` once, perhaps from
    /// another thread, perhaps before it returns.
    pub(crate) fn command(self: &Arc<Self>, text: &[u8], by: Commander, reply: OnReply) {
        let controller = Arc::clone(self);
        let reply = move |begun: Result<(), Refusal>| {
            controller.texts.forget_promises();
            reply(begun);
        };
        let request = match parse(text) {
            Ok(request) => request,
            Err(why) => {
                self.note("refused", &why);
                return reply(Err(Refusal::new(Class::Usage, libc::EINVAL, why)));
            }
        };
        if self.vault.is_read_only() {
            let why = "the mount is read-only";
            return reply(Err(Refusal::new(Class::Failed, libc::EROFS, why)));
        }
        if std::mem::replace(&mut self.lock_last().busy, true) {
            let why = "another command is just being begun";
            return reply(Err(Refusal::new(Class::Busy, libc::EBUSY, why)));
        }
        let beginning = Beginning {
            controller: Arc::clone(self),
            name: request.name(),
            reply: Some(Box::new(reply)),
        };
        let worker = move || {
            let outcome = beginning.controller.begin(by, &request);
            beginning.end(outcome);
        };
        let started = std::thread::Builder::new()
            .name("command".into())
            .spawn(worker);
        if let Err(error) = started {
            // Dropping the closure answers the caller.
            tracing::error!("no thread for a command: {error}");
        }
    }

    /// Begins the command, if `by` has the right to it.
    fn begin(&self, by: Commander, request: &Request) -> Result<(), Refusal> {
        // Until the vault is counted, no command changes it.
        self.vault.await_verdict_or_end();
        fail::fail_point!("command-begins");
        self.must_be_taken_from(by, request)?;
        let begun = self.vault.begin(request);
        begun.map_err(|error| self.refuse(&error))
    }

    /// Logs a failure, and returns the refusal for it. The failure does not count as a damaged
    /// read: no reader got anything, and a KMS that answers with another key proves nothing about
    /// the vault.
    pub(super) fn refuse(&self, error: &VaultError) -> Refusal {
        self.failures.log(error);
        Refusal::from(error)
    }

    /// Refuses a rewrap to KMS keys that the mount does not name, or away from AWS, unless root or
    /// the user who mounted asks for it with the command: a holder of the new keys can read the
    /// vault.
    fn must_be_taken_from(&self, by: Commander, request: &Request) -> Result<(), Refusal> {
        let (Request::Rewrap { to, leave_aws }, Right::KnownKeys) = (request, by.right) else {
            return Ok(());
        };
        let unknown = self.vault.first_unknown_key(to);
        let unknown = unknown.map_err(|error| self.refuse(&error))?;
        let what = match (leave_aws, unknown) {
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
        Err(Refusal::new(Class::NotPermitted, libc::EPERM, why))
    }
}

/// A command that is beginning, the only one at a time. However this ends, even by a panic, the
/// caller gets an answer and the next command may begin.
struct Beginning {
    controller: Arc<Controller>,
    name: &'static str,
    /// `None` once it is called.
    reply: Option<OnReply>,
}

impl Beginning {
    fn end(mut self, outcome: Result<(), Refusal>) {
        self.answer(outcome);
    }

    fn answer(&mut self, outcome: Result<(), Refusal>) {
        let Some(reply) = self.reply.take() else {
            return;
        };
        let controller = &self.controller;
        controller.lock_last().busy = false;
        controller.note(self.name, &in_words(&outcome));
        // A new command makes the driver try a blocked rotation again.
        controller.driver.wake();
        reply(outcome);
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        let why = "it died while it was begun, and the log says where; `status` tells whether it is \
                   under way; try again if not";
        self.answer(Err(Refusal::new(Class::Internal, libc::EIO, why)));
    }
}

fn in_words(outcome: &Result<(), Refusal>) -> String {
    match outcome {
        Ok(()) => "begun; `status` tells how far it is".to_owned(),
        Err(refusal) => format!("failed: {}", refusal.why),
    }
}
