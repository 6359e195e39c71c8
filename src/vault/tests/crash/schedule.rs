//! One schedule: two writers and a rotation up to a power cut, and what is there after it.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::memory::{Flaw, Moment};
use crate::store::{Durability, NodeId};

use super::super::super::check::check_records;
use super::super::super::{Outcome, Request, Tx, Vault, VaultError};
use super::deeds::{Deed, Files, found};
use super::ground::{Ground, Template, WRITERS, must_be_under};
use super::turns::{Numbers, Turns, own_number};

/// The number of the thread that drives the rotation.
const ROTATION: usize = WRITERS;
/// Limit on the deeds of a writer before a power cut.
const MOST: usize = 100;
/// The deeds of a writer without one.
const ENOUGH: usize = 12;

/// What a schedule was.
#[derive(Debug)]
pub(super) struct Schedule {
    /// The number of changes that were committed before the power cut.
    pub(super) changes: usize,
    /// The intent to rotate was acknowledged.
    pub(super) has_rotated: bool,
    /// The power cut ended a rotation.
    pub(super) was_rotating: bool,
    /// A number that differs between schedules.
    pub(super) trace: u64,
}

impl Schedule {
    /// Runs the schedule of a seed. An error describes the broken promise.
    pub(super) fn run(template: &Template, seed: u64, flaw: Option<Flaw>) -> Result<Self, String> {
        let mut numbers = Numbers::of(seed);
        let ground = Ground::Memory(template.medium.copy(flaw));
        let cut_after = 10 + numbers.below(16);
        Self::run_on(template, ground, (cut_after, MOST), numbers)
    }

    /// Runs writers and a rotation on the store in the template's files, without a power cut.
    pub(super) fn run_in_files(template: &Template, seed: u64) -> Result<Self, String> {
        let of_all = WRITERS * ENOUGH;
        Self::run_on(template, Ground::Files, (of_all, ENOUGH), Numbers::of(seed))
    }

    fn run_on(
        template: &Template,
        ground: Ground,
        (cut_after, most): (usize, usize),
        mut numbers: Numbers,
    ) -> Result<Self, String> {
        let shares = vec![2, 2, 1 + numbers.below(4)];
        let witness = Arc::new(Witness {
            turns: Turns::new(Numbers::of(numbers.next()), shares),
            is_cut: AtomicBool::new(false),
            ground,
            most,
            seen: Mutex::new(Seen {
                cut_after,
                moments_left: numbers.below(16),
                numbers: Numbers::of(numbers.next()),
                ..Seen::default()
            }),
        });
        let watching = Arc::clone(&witness);
        let vault = template
            .open(&witness.ground, move |moment| {
                watching.at(moment);
                Ok(())
            })
            .map_err(|error| format!("the vault cannot be opened: {error}"))?;
        let request = match numbers.below(5) {
            0 => Request::Rewrap {
                to: Vec::new(),
                leave_aws: false,
            },
            1 | 2 => Request::Reencrypt,
            _ => Request::Rotate,
        };
        let seeds: [u64; WRITERS + 1] = std::array::from_fn(|_| numbers.next());
        let outcomes = std::thread::scope(|scope| {
            let run = |number: usize| {
                let (witness, vault, request) = (&witness, &vault, &request);
                let numbers = Numbers::of(seeds[number]);
                scope.spawn(move || {
                    witness.turns.take(number, || match number {
                        ROTATION => witness.rotate(vault, request, numbers),
                        writer => {
                            witness.write(vault, writer, template.directories[writer], numbers)
                        }
                    })
                })
            };
            let threads: [_; WRITERS + 1] = std::array::from_fn(run);
            threads.map(|thread| thread.join())
        });
        for outcome in outcomes {
            outcome.map_err(|_| "a thread panicked before the power cut")??;
        }
        must_find_nothing(&vault)?;
        drop(vault);
        if !witness.is_cut() {
            witness.cut(&mut witness.seen());
        }
        let schedule = witness.schedule();
        witness.must_recover(template, &request)?;
        Ok(schedule)
    }
}

/// Fails if a vault has found a record that is not as it should be.
fn must_find_nothing(vault: &Vault) -> Result<(), String> {
    let findings = vault.findings();
    match findings.count {
        0 => Ok(()),
        _ => Err(format!("findings: {findings:?}")),
    }
}

/// Sees what the threads of a schedule do, and cuts the power.
struct Witness {
    turns: Turns,
    ground: Ground,
    is_cut: AtomicBool,
    /// Limit on the deeds of a writer.
    most: usize,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    numbers: Numbers,
    /// The power is cut so many moments after so many changes.
    cut_after: usize,
    moments_left: usize,
    /// The deed whose last transaction a writer runs.
    ending: [Option<usize>; WRITERS],
    /// The writers of the committed deeds, in order.
    order: Vec<usize>,
    /// The number of deeds in that order that are acknowledged as durable.
    acknowledged: usize,
    /// The files of each writer after each of its deeds.
    files: [Vec<Files>; WRITERS],
    /// The intent to rotate was acknowledged.
    has_begun: bool,
    has_finished: bool,
    trace: DefaultHasher,
}

impl Witness {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Acquire)
    }

    fn cut(&self, seen: &mut Seen) {
        self.is_cut.store(true, Ordering::Release);
        let numbers = &mut seen.numbers;
        let mut survivors = 0;
        self.ground.cut_power(|pending| {
            survivors = numbers.below(pending + 1);
            survivors
        });
        survivors.hash(&mut seen.trace);
    }

    /// A store calls this at each moment.
    fn at(&self, moment: Moment) {
        let Some(number) = own_number() else { return };
        if self.is_cut() {
            return;
        }
        let mut seen = self.seen();
        (number, format!("{moment:?}")).hash(&mut seen.trace);
        if moment == Moment::Committed && number < WRITERS && seen.ending[number].is_some() {
            seen.order.push(number);
        }
        if seen.order.len() >= seen.cut_after {
            match seen.moments_left.checked_sub(1) {
                Some(left) => seen.moments_left = left,
                None => self.cut(&mut seen),
            }
        }
        drop(seen);
        // A rotation may hold the vault's turn to commit here; a writer does not.
        if number < WRITERS && matches!(moment, Moment::Sync | Moment::Synced) {
            self.turns.pass();
        }
    }

    /// Turns an error into one of the schedule, unless the power was cut.
    fn unless_cut<T>(&self, result: Result<T, VaultError>) -> Result<Option<T>, String> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(_) if self.is_cut() => Ok(None),
            Err(error) => Err(format!("it failed before the power cut: {error}")),
        }
    }

    /// The work of a writer.
    fn write(
        &self,
        vault: &Vault,
        writer: usize,
        directory: NodeId,
        mut numbers: Numbers,
    ) -> Result<(), String> {
        let mut files = Files::default();
        self.seen().files[writer].push(files.clone());
        for number in 1..=self.most {
            self.turns.pass();
            let deed = Deed::choose(&files, &mut numbers);
            files = deed.done(&files);
            self.seen().files[writer].push(files.clone());
            let durability = match numbers.below(3) {
                0 => Durability::Soon,
                _ => Durability::Now,
            };
            let done = self.deed(vault, (writer, directory), (&deed, number), durability);
            if self.unless_cut(done)?.is_none() {
                return Ok(());
            }
            if numbers.below(4) == 0 {
                let before = self.seen().order.len();
                if self.unless_cut(vault.sync())?.is_none() {
                    return Ok(());
                }
                self.acknowledge(before);
            }
            if numbers.below(4) == 0 {
                let Some(is) = self.unless_cut(found(vault, directory))? else {
                    return Ok(());
                };
                if is != (number, files.clone()) {
                    return Err(format!(
                        "writer {writer} does not see its deed {number}: {deed:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    fn deed(
        &self,
        vault: &Vault,
        (writer, directory): (usize, NodeId),
        (deed, number): (&Deed, usize),
        durability: Durability,
    ) -> Result<(), VaultError> {
        if deed.has_pieces() {
            let mut begin = |tx: &mut Tx<'_>| deed.begin(tx, directory);
            let done = vault.transact(Durability::Soon, &mut [&mut begin])?;
            done.into_iter().collect::<Result<(), VaultError>>()?;
            self.turns.pass();
        }
        self.seen().ending[writer] = Some(number);
        let mut end = |tx: &mut Tx<'_>| deed.end(tx, directory, number);
        let done = vault.transact(durability, &mut [&mut end]);
        self.seen().ending[writer] = None;
        done?.into_iter().collect::<Result<(), VaultError>>()?;
        // A store in files calls no hook, and no other thread has run since the commit.
        if matches!(self.ground, Ground::Files) {
            self.seen().order.push(writer);
        }
        if durability == Durability::Now {
            let seen = self.seen();
            let own = seen.order.iter().rposition(|of| *of == writer);
            drop(seen);
            self.acknowledge(own.map_or(0, |own| own + 1));
        }
        Ok(())
    }

    fn acknowledge(&self, deeds: usize) {
        let mut seen = self.seen();
        seen.acknowledged = seen.acknowledged.max(deeds);
    }

    /// The work of the thread that drives a rotation.
    fn rotate(&self, vault: &Vault, request: &Request, mut numbers: Numbers) -> Result<(), String> {
        // Begin at any time, or most rotations would end before the power cut.
        let begin_after = numbers.below(self.seen().cut_after);
        while self.seen().order.len() < begin_after && !self.is_cut() {
            self.turns.pass();
        }
        if self.unless_cut(vault.begin(request))?.is_none() {
            return Ok(());
        }
        self.seen().has_begun = true;
        let go_on = || {
            self.turns.pass();
            match self.is_cut() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let outcome = self.unless_cut(vault.drive(&go_on))?;
        self.seen().has_finished = outcome == Some(Outcome::Done);
        Ok(())
    }

    fn schedule(&self) -> Schedule {
        let seen = self.seen();
        Schedule {
            changes: seen.order.len(),
            has_rotated: seen.has_begun,
            was_rotating: seen.has_begun && !seen.has_finished,
            trace: seen.trace.finish(),
        }
    }

    // --- after the power cut -----------------------------------------------------------------

    /// Opens the vault from what is on the medium, and holds it to the promises.
    fn must_recover(&self, template: &Template, request: &Request) -> Result<(), String> {
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
        let open = |what: &str| {
            let opened = template.open(&self.ground, |_| Ok(()));
            opened.map_err(|error| failed(what, &error))
        };
        let vault = open("the vault cannot be opened after the power cut")?;
        self.must_be_whole(&vault, template)?;
        let is_new = vault.keyring().active() > 1 || matches!(request, Request::Rewrap { .. });
        if self.seen().has_begun && !is_new && !vault.is_rotating() {
            return Err("the rotation that was begun is gone".into());
        }
        let driven = vault.drive(&|| ControlFlow::Continue(()));
        driven.map_err(|error| failed("the rotation does not go on", &error))?;
        if vault.is_rotating() {
            return Err("the rotation does not end".into());
        }
        must_be_under(&vault, vault.keyring().active())?;
        self.must_be_whole(&vault, template)?;
        vault
            .sync()
            .map_err(|error| failed("the vault cannot be synced", &error))?;
        drop(vault);
        self.ground.cut_power(|_| 0);
        let vault = open("the vault cannot be opened after the rotation")?;
        self.must_be_whole(&vault, template)
    }

    /// Fails unless the vault is as after some of the deeds, with all that were acknowledged.
    fn must_be_whole(&self, vault: &Vault, template: &Template) -> Result<(), String> {
        let report = check_records(vault.records()).map_err(|e| format!("no check: {e}"))?;
        if let Some(problem) = report.problems.first() {
            return Err(format!("a problem: {}", problem.what));
        }
        let seen = self.seen();
        let mut numbers = [0; WRITERS];
        for (writer, directory) in template.directories.into_iter().enumerate() {
            let (number, files) = found(vault, directory)
                .map_err(|error| format!("the files of writer {writer} are unreadable: {error}"))?;
            if seen.files[writer].get(number) != Some(&files) {
                return Err(format!(
                    "the files of writer {writer} are not those after its deed {number}"
                ));
            }
            numbers[writer] = number;
        }
        let survived = numbers.iter().sum::<usize>();
        if survived < seen.acknowledged {
            return Err(format!(
                "{} deeds were acknowledged, and {survived} are there",
                seen.acknowledged
            ));
        }
        let first = seen.order.get(..survived).unwrap_or_default();
        let of = |writer| first.iter().filter(|of| **of == writer).count();
        if (0..WRITERS).any(|writer| of(writer) != numbers[writer]) {
            return Err(format!(
                "deeds {numbers:?} are there without earlier ones: {first:?}"
            ));
        }
        drop(seen);
        must_find_nothing(vault)
    }
}
