//! Which jobs are committed next: whoever waits for the disk is given a share of its time, however
//! much the others ask of it.
//!
//! There is a share for each user; those who are not known have one together. What the daemon does of
//! its own accord is not in here. A job costs what its user has had more of then, and the one comes
//! next with which its user has had least. So a user with many large contents delays the small one of
//! another by that which is being stored, and not by those that wait; who comes back has not saved
//! anything up meanwhile, and who stays away owes nothing, so nobody waits for ever.
//!
//! Within that, order is kept where programs can tell:
//!
//! - Of one user, quick jobs among each other, and all others among each other, are taken in the order
//!   in which they were submitted. A job that nobody awaits is overtaken by nothing that its user
//!   submits later: its program may have gone on. One that is awaited may be overtaken by quick ones, and
//!   by any while it waits for its node.
//! - On one node, jobs are taken in the order in which they were submitted, whoever's they are: of two
//!   publications the later one stays, and a time that is set after a content was closed is not undone.
//! - Beyond that, users are not held to each other's order: what one is told to be done is committed by
//!   then, so that whatever another begins after that comes later. Only what nobody awaits is not told.
//!
//! A batch has at most [`MAX_BATCH`] jobs, and [`MAX_BYTES`] of contents, or one job with more. A job
//! that is done in several steps comes [back](Queue::resume) after each but the last, and keeps its
//! place until then: on its node, and among what its user has submitted. Others come in between.
//!
//! It must know of no threads and no clocks.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::store::NodeId;

use super::ticket::{Kind, Ticket, Whose};

/// Most jobs in a transaction: bounds what one failure makes run again.
pub(super) const MAX_BATCH: usize = 256;
/// Most bytes of contents in a transaction of several jobs: bounds how long others wait for it.
const MAX_BYTES: u64 = 1 << 20;

struct Item<J> {
    /// In the order of submission.
    number: u64,
    ticket: Ticket,
    job: J,
}

/// What one user waits for.
struct Share<J> {
    /// The cost of what the user has had, counted from where everybody was who came at the same time.
    had: u64,
    quick: VecDeque<Item<J>>,
    synced: VecDeque<Item<J>>,
    /// How many of the latter nobody awaits.
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

    /// The number of the first job that nothing overtakes.
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

/// Where in a share a job is.
#[derive(Clone, Copy)]
enum Place {
    Quick,
    Synced(usize),
}

/// See the module.
pub(super) struct Queue<J> {
    shares: BTreeMap<Whose, Share<J>>,
    /// The numbers of the jobs on a node, in their order.
    nodes: HashMap<NodeId, VecDeque<u64>>,
    next: u64,
    length: usize,
    quick: usize,
    /// What whoever was served last has had by then: there, who comes begins.
    had: u64,
}

impl<J> Default for Queue<J> {
    fn default() -> Self {
        Self {
            shares: BTreeMap::new(),
            nodes: HashMap::new(),
            next: 0,
            length: 0,
            quick: 0,
            had: 0,
        }
    }
}

impl<J> Queue<J> {
    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether there are quick jobs.
    pub(super) fn has_quick(&self) -> bool {
        self.quick > 0
    }

    /// Whether a quick job may be done before all that is queued.
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
        let number = self.next;
        self.next += 1;
        if let Some(node) = ticket.node {
            self.nodes.entry(node).or_default().push_back(number);
        }
        self.insert(ticket, number, job);
    }

    /// Takes back a job that was taken and has [further steps](Ticket::next_step), before anything else
    /// is taken.
    pub(super) fn resume(&mut self, ticket: Ticket, job: J) {
        let numbers = ticket.node.and_then(|node| self.nodes.get(&node));
        match numbers.and_then(VecDeque::front) {
            Some(number) => self.insert(ticket, *number, job),
            // Of no node: there is no order to be kept but its user's.
            None => self.push(ticket, job),
        }
    }

    /// A job that was taken and has further steps will not come back.
    pub(super) fn give_up(&mut self, ticket: &Ticket) {
        if let (Some(node), Some(_)) = (ticket.node, ticket.next_step()) {
            self.leave_node(node);
        }
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

    /// What is committed next; nothing if there is nothing.
    pub(super) fn take(&mut self) -> Vec<J> {
        self.take_of(|queue, share| queue.next_of(share))
    }

    /// The same of quick jobs alone.
    pub(super) fn take_quick(&mut self) -> Vec<J> {
        match self.has_quick() {
            true => self.take_of(|queue, share| queue.next_quick_of(share)),
            false => Vec::new(),
        }
    }

    /// All that is left, in no order.
    pub(super) fn drain(&mut self) -> Vec<J> {
        let shares = std::mem::take(self).shares;
        let items = shares
            .into_values()
            .flat_map(|share| share.quick.into_iter().chain(share.synced));
        items.map(|item| item.job).collect()
    }

    fn take_of(&mut self, next_of: impl Fn(&Self, &Share<J>) -> Option<Place>) -> Vec<J> {
        let (mut batch, mut bytes) = (Vec::new(), 0_u64);
        while batch.len() < MAX_BATCH {
            let candidates = self.shares.iter().filter_map(|(whose, share)| {
                let place = next_of(self, share)?;
                let item = share.at(place)?;
                let had = share.had.saturating_add(item.ticket.cost());
                Some((had, item.number, item.ticket, *whose, place))
            });
            let first = candidates.min_by_key(|(had, number, ..)| (*had, *number));
            let Some((had, _, ticket, whose, place)) = first else {
                break;
            };
            bytes = bytes.saturating_add(ticket.bytes);
            if bytes > MAX_BYTES && !batch.is_empty() {
                break;
            }
            self.had = self.had.max(had);
            batch.extend(self.remove(whose, place, had));
            // What may not overtake it waits for all its steps.
            if ticket.next_step().is_some() {
                break;
            }
        }
        batch
    }

    /// The next job of a share, if any need not wait for its node.
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

    /// Whether nothing is to be done before on the same node.
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

    /// What is first on a node is done.
    fn leave_node(&mut self, node: NodeId) {
        if let Some(numbers) = self.nodes.get_mut(&node) {
            numbers.pop_front();
            if numbers.is_empty() {
                self.nodes.remove(&node);
            }
        }
    }
}
