//! The periodic tasks of a mount: it updates the vault's anchor on this host, records findings in
//! the history, and counts a vault that another process may have changed.

use std::sync::Arc;
use std::time::Duration;

use crate::os::nice::lower_priority;
use crate::vault::{Footprint, Vault, VaultError};

use super::askers::Askers;
use super::reaping::Reaping;
use super::routine::Routine;

/// Interval between updates of the anchor. With the time to store it, the anchor is never more than
/// five seconds behind.
const ANCHOR_EVERY: Duration = Duration::from_secs(2);

/// Starts the threads. They end with the file system.
pub(super) fn start(
    vault: &Arc<Vault>,
    askers: &Arc<Askers>,
    reaping: &Arc<Reaping>,
    verify_every: Duration,
) -> std::io::Result<[Routine; 2]> {
    let mut logged = None;
    let (anchored, askers) = (Arc::clone(vault), Arc::clone(askers));
    let anchor = move || {
        let vault = &anchored;
        askers.expire();
        if !vault.await_verdict_or_end() || vault.is_condemned() && vault.is_read_only() {
            return;
        }
        // Do this even if the vault is condemned: acknowledged commits are certain.
        log_once(&mut logged, vault.keep_anchor());
        if !vault.is_condemned() {
            record_findings(vault);
        }
    };
    let mut lookback = Lookback {
        reaping: Arc::clone(reaping),
        vault: Arc::clone(vault),
        // The files at the count before the mount are unknown: at worst, there is one count more.
        counted: None,
        is_begun: false,
    };
    let look = move || lookback.look();
    Ok([
        Routine::start("anchor", ANCHOR_EVERY, anchor)?,
        Routine::start("recount", verify_every, look)?,
    ])
}

/// Logs a failure, unless it repeats the last one.
fn log_once(logged: &mut Option<String>, result: Result<(), VaultError>) {
    let failed = result.err().map(|error| error.to_string());
    if let Some(error) = failed.as_ref().filter(|_| failed != *logged) {
        tracing::warn!("{error}; this host does not remember how far the vault has come");
    }
    *logged = failed;
}

fn record_findings(vault: &Vault) {
    if let Err(error) = vault.record_findings() {
        tracing::warn!("the history does not say yet what was found: {error}");
    }
}

struct Lookback {
    reaping: Arc<Reaping>,
    vault: Arc<Vault>,
    /// The state of the files at the last count.
    counted: Option<Footprint>,
    is_begun: bool,
}

impl Lookback {
    fn look(&mut self) {
        if !std::mem::replace(&mut self.is_begun, true) {
            lower_priority();
            let is_served = self.vault.await_service() && !self.vault.is_condemned();
            if is_served && !self.vault.is_read_only() {
                self.reap_left_overs();
            }
        }
        match (self.vault.is_read_only(), self.vault.is_condemned()) {
            (true, false) if !self.vault.is_salvage() => self.count_afresh(),
            // The operator may have restored the vault.
            (false, true) => record_findings(&self.vault),
            // A writer knows the state of the vault.
            _ => {}
        }
    }

    fn count_afresh(&mut self) {
        let now = match self.vault.footprint() {
            Ok(now) if self.counted.as_ref() == Some(&now) => return,
            Ok(now) => now,
            Err(error) => return tracing::warn!("the vault cannot be counted anew: {error}"),
        };
        match self.vault.count_afresh() {
            Ok(()) => self.counted = Some(now),
            // It has been logged.
            Err(_) if self.vault.is_condemned() => {}
            Err(error) => tracing::warn!("the vault cannot be counted anew: {error}"),
        }
    }

    fn reap_left_overs(&self) {
        match self.vault.left_over() {
            Ok(nodes) => nodes.into_iter().for_each(|node| self.reaping.reap(node)),
            Err(error) => tracing::warn!("left-overs cannot be looked for: {error}"),
        }
    }
}
