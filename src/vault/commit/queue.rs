//! The order of commits: each user who waits for the disk gets a share of its time, however much
//! the others ask for.
//!
//! Each user has a share; all unknown users have one together. A job adds its cost to what its user
//! has had, and the user who has had least comes next. So a user with many large contents delays
//! another user's small one only by the content being stored, not by those that wait. A user who
//! comes back has saved up nothing, and one who stays away owes nothing, so no user waits for ever.
//!
//! The vault's own work has a share like a user's. Threads that wait for a [turn of their
//! own](Queue::push_turn) get it in order of arrival, each for the price of a full batch: a rotation
//! that always wants the next turn delays a user by one turn at a time, and users who always have
//! more jobs delay the rotation by as much as they can store in the time of one turn. Jobs that
//! [no program waits for](Queue::push_later) cost nothing and join others.
//!
//! Within that, jobs keep their order where programs can observe it:
//!
//! - Of one user, quick jobs keep their order among each other, and so do all others. No later job
//!   of the same user overtakes a job that no program awaits, because its program may have gone on.
//!   Quick jobs may overtake an awaited job, and so may any job while it waits for its node.
//! - On one node, jobs of all users keep their order: of two publications the later one stays, and
//!   a close does not undo a time that is set after it.
//! - Between users there is no other order: a job that is reported as done is committed by then, so
//!   anything that another user begins after that comes later. Only jobs that no program awaits are
//!   not reported.
//!
//! A batch has at most [`MAX_BATCH`] jobs, and [`MAX_BYTES`] of contents, or one job with more. A
//! job with several steps comes [back](Queue::resume) after each step except the last. It keeps its
//! place on its node and among its user's jobs until then; other jobs run in between.
//!
//! This module must not know threads or clocks.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::store::NodeId;

use super::ticket::{Kind, Ticket, Whose};

/// Limit on jobs in a transaction, which bounds how many run again after a failure.
pub(super) const MAX_BATCH: usize = 256;
/// Limit on bytes of contents in a transaction of several jobs, which bounds the wait of others.
const MAX_BYTES: u64 = 1 << 20;
/// The cost of a thread's turn: that of a full batch.
const TURN: u64 = MAX_BYTES;

struct Item<J> {
    /// The number in order of submission.
    number: u64,
    ticket: Ticket,
    job: J,
}

/// The waiting jobs of one user.
struct Share<J> {
    /// The cost of the user's jobs so far, on a scale that all users who came at the same time
    /// share.
    had: u64,
    quick: VecDeque<Item<J>>,
    synced: VecDeque<Item<J>>,
    /// Number of jobs in `synced` that no program awaits.
    unattended: usize,
}

impl<J> Share<J> {
    fn new(had: u64) -> Self {
        Self {
            had,
            quick: VecDeque::new(),
            synced: VecDeque::new(),
            unattended: 0,
        }
    }

    /// The number of the first job that no other may overtake.
    fn bar(&self) -> u64 {
        let mut synced = self.synced.iter();
        match self.unattended {
            0 => u64::MAX,
            _ => synced
                .find(|item| item.ticket.is_unattended())
                .map_or(u64::MAX, |item| item.number),
        }
    }

    fn at(&self, place: Place) -> Option<&Item<J>> {
        match place {
            Place::Quick => self.quick.front(),
            Place::Synced(at) => self.synced.get(at),
        }
    }
}

/// The place of a job in a share.
#[derive(Clone, Copy)]
enum Place {
    Quick,
    Synced(usize),
}

/// A job that may be taken next.
struct First {
    /// The cost of its user's jobs, with this one.
    had: u64,
    number: u64,
    ticket: Ticket,
    whose: Whose,
    place: Place,
}

/// The vault's own work.
struct Own<J> {
    /// As in a user's share.
    had: u64,
    /// Threads that wait for a turn, by their numbers.
    turns: VecDeque<u64>,
    /// Jobs that join others, with their numbers.
    later: VecDeque<(u64, J)>,
}

/// The queue, as the module describes.
pub(super) struct Queue<J> {
    shares: BTreeMap<Whose, Share<J>>,
    own: Own<J>,
    /// The numbers of the jobs on each node, in order.
    nodes: HashMap<NodeId, VecDeque<u64>>,
    next: u64,
    /// Number of users' jobs.
    length: usize,
    quick: usize,
    /// The cost of the last served user, at which a new user begins.
    had: u64,
}

impl<J> Default for Queue<J> {
    fn default() -> Self {
        Self {
            shares: BTreeMap::new(),
            own: Own {
                had: 0,
                turns: VecDeque::new(),
                later: VecDeque::new(),
            },
            nodes: HashMap::new(),
            next: 0,
            length: 0,
            quick: 0,
            had: 0,
        }
    }
}

impl<J> Queue<J> {
    /// Whether no user's job waits.
    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether there are quick jobs.
    pub(super) fn has_quick(&self) -> bool {
        self.quick > 0
    }

    /// Whether a quick job may overtake all queued jobs.
    pub(super) fn may_overtake(&self, ticket: &Ticket) -> bool {
        if self.is_empty() {
            return true;
        }
        let is_free = |share: &Share<J>| share.quick.is_empty() && share.unattended == 0;
        self.shares.get(&ticket.whose).is_none_or(is_free)
            && ticket
                .node
                .is_none_or(|node| !self.nodes.contains_key(&node))
    }

    pub(super) fn push(&mut self, ticket: Ticket, job: J) {
        let number = self.next_number();
        if let Some(node) = ticket.node {
            self.nodes.entry(node).or_default().push_back(number);
        }
        self.insert(ticket, number, job);
    }

    /// Takes back a job that has [further steps](Ticket::next_step), before any other job is taken.
    pub(super) fn resume(&mut self, ticket: Ticket, job: J) {
        let numbers = ticket.node.and_then(|node| self.nodes.get(&node));
        match numbers.and_then(VecDeque::front) {
            Some(number) => self.insert(ticket, *number, job),
            // Without a node, only the order of its user matters.
            None => self.push(ticket, job),
        }
    }

    /// Notes that a job with further steps will not come back.
    pub(super) fn give_up(&mut self, ticket: &Ticket) {
        if let (Some(node), Some(_)) = (ticket.node, ticket.next_step()) {
            self.leave_node(node);
        }
    }

    fn next_number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    fn insert(&mut self, ticket: Ticket, number: u64, job: J) {
        self.length += 1;
        let had = self.had;
        let share = self.shares.entry(ticket.whose);
        let share = share.or_insert_with(|| Share::new(had));
        let item = Item {
            number,
            ticket,
            job,
        };
        match ticket.kind {
            Kind::Quick => {
                self.quick += 1;
                share.quick.push_back(item);
            }
            Kind::Awaited | Kind::Unattended => {
                share.unattended += usize::from(ticket.is_unattended());
                let before = |other: &Item<J>| other.number < number;
                let at = share.synced.partition_point(before);
                share.synced.insert(at, item);
            }
        }
    }

    /// Queues a thread for a turn of its own; returns its number, by which
    /// [`take_turn`](Self::take_turn) names it.
    pub(super) fn push_turn(&mut self) -> u64 {
        let number = self.next_number();
        if self.own.turns.is_empty() {
            self.own.had = self.had;
        }
        self.own.turns.push_back(number);
        number
    }

    /// Whether the next turn belongs to a thread.
    pub(super) fn is_turn_next(&self) -> bool {
        let Some(turn) = self.own.turns.front() else {
            return false;
        };
        match self.first(|queue, share| queue.next_of(share)) {
            Some(job) => (self.own.had.saturating_add(TURN), *turn) < (job.had, job.number),
            None => self.own.later.front().is_none_or(|(job, _)| turn < job),
        }
    }

    /// Takes the thread that has waited longest out of the queue, for its turn.
    pub(super) fn take_turn(&mut self) -> Option<u64> {
        let number = self.own.turns.pop_front()?;
        self.own.had = self.own.had.saturating_add(TURN);
        // A turn may come before jobs that wait for the committer; a user who comes then must not
        // begin behind them.
        let first = self.first(|queue, share| queue.next_of(share));
        let most = first.map_or(u64::MAX, |job| job.had);
        self.had = self.had.max(self.own.had.min(most));
        Some(number)
    }

    /// Number of threads that wait for a turn.
    #[cfg(test)]
    pub(super) fn turns(&self) -> usize {
        self.own.turns.len()
    }

    /// Queues a job that no program waits for.
    pub(super) fn push_later(&mut self, job: J) {
        let number = self.next_number();
        self.own.later.push_back((number, job));
    }

    /// Number of queued jobs that no program waits for.
    pub(super) fn later(&self) -> usize {
        self.own.later.len()
    }

    /// The next batch; empty without jobs.
    pub(super) fn take(&mut self) -> Vec<J> {
        let mut batch = self.take_of(|queue, share| queue.next_of(share));
        // Programs wait for at most as many of the vault's own jobs as of theirs, plus one.
        let room = match batch.len() {
            count if count > 0 && self.later() < MAX_BATCH => count + 1,
            _ => MAX_BATCH,
        };
        let room = room.min(MAX_BATCH - batch.len()).min(self.later());
        batch.extend(self.own.later.drain(..room).map(|(_, job)| job));
        batch
    }

    /// The next batch of quick jobs only.
    pub(super) fn take_quick(&mut self) -> Vec<J> {
        match self.has_quick() {
            true => self.take_of(|queue, share| queue.next_quick_of(share)),
            false => Vec::new(),
        }
    }

    /// All remaining jobs, in no order. Threads still wait for their turns.
    pub(super) fn drain(&mut self) -> Vec<J> {
        let later = std::mem::take(&mut self.own.later);
        let shares = std::mem::take(&mut self.shares);
        self.nodes.clear();
        (self.length, self.quick) = (0, 0);
        let items = shares
            .into_values()
            .flat_map(|share| share.quick.into_iter().chain(share.synced));
        let jobs = items.map(|item| item.job);
        jobs.chain(later.into_iter().map(|(_, job)| job)).collect()
    }

    fn take_of(&mut self, next_of: impl Fn(&Self, &Share<J>) -> Option<Place>) -> Vec<J> {
        let (mut batch, mut bytes) = (Vec::new(), 0_u64);
        while batch.len() < MAX_BATCH {
            let Some(first) = self.first(&next_of) else {
                break;
            };
            bytes = bytes.saturating_add(first.ticket.bytes);
            if bytes > MAX_BYTES && !batch.is_empty() {
                break;
            }
            self.had = self.had.max(first.had);
            batch.extend(self.remove(first.whose, first.place, first.had));
            // Jobs that must not overtake it wait for all its steps.
            if first.ticket.next_step().is_some() {
                break;
            }
        }
        batch
    }

    /// Of the jobs that `next_of` returns, the one whose user will have had least.
    fn first(&self, next_of: impl Fn(&Self, &Share<J>) -> Option<Place>) -> Option<First> {
        let candidates = self.shares.iter().filter_map(|(whose, share)| {
            let place = next_of(self, share)?;
            let item = share.at(place)?;
            Some(First {
                had: share.had.saturating_add(item.ticket.cost()),
                number: item.number,
                ticket: item.ticket,
                whose: *whose,
                place,
            })
        });
        candidates.min_by_key(|first| (first.had, first.number))
    }

    /// The next job of a share that need not wait for its node.
    fn next_of(&self, share: &Share<J>) -> Option<Place> {
        let (mut synced, mut bar) = (None, u64::MAX);
        for (at, item) in share.synced.iter().enumerate() {
            if self.is_in_turn(item) {
                synced = Some((item.number, Place::Synced(at)));
                break;
            }
            if item.ticket.is_unattended() {
                bar = item.number;
                break;
            }
        }
        let quick = share.quick.front().filter(|item| item.number < bar);
        let quick = quick.filter(|item| self.is_in_turn(item));
        let quick = quick.map(|item| (item.number, Place::Quick));
        let first = quick.into_iter().chain(synced).min_by_key(|(n, _)| *n);
        first.map(|(_, place)| place)
    }

    fn next_quick_of(&self, share: &Share<J>) -> Option<Place> {
        let item = share.quick.front()?;
        (self.is_in_turn(item) && item.number < share.bar()).then_some(Place::Quick)
    }

    /// Whether the job is the next one on its node.
    fn is_in_turn(&self, item: &Item<J>) -> bool {
        let node = item.ticket.node.and_then(|node| self.nodes.get(&node));
        node.is_none_or(|numbers| numbers.front() == Some(&item.number))
    }

    fn remove(&mut self, whose: Whose, place: Place, had: u64) -> Option<J> {
        let share = self.shares.get_mut(&whose)?;
        share.had = had;
        let item = match place {
            Place::Quick => share.quick.pop_front(),
            Place::Synced(at) => share.synced.remove(at),
        }?;
        share.unattended -= usize::from(item.ticket.is_unattended());
        if share.quick.is_empty() && share.synced.is_empty() {
            self.shares.remove(&whose);
        }
        self.length -= 1;
        self.quick -= usize::from(item.ticket.is_quick());
        if let Some(node) = item.ticket.node
            && item.ticket.more == 0
        {
            self.leave_node(node);
        }
        Some(item.job)
    }

    /// Removes the first job of a node.
    fn leave_node(&mut self, node: NodeId) {
        if let Some(numbers) = self.nodes.get_mut(&node) {
            numbers.pop_front();
            if numbers.is_empty() {
                self.nodes.remove(&node);
            }
        }
    }
}
