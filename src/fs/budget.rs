//! The limit on memory for the contents of all open files (`max-memory`), and the share of each
//! user.
//!
//! `limit` is for all users. `held` are bytes that cannot be freed: drafts, and beside a writer the
//! contents of open files. `held(u)` are those of user `u`. A content of `n` bytes may take `more`
//! bytes if
//!
//! ```text
//! held    + more ≤ room(n)                      room(n) = limit              if n ≤ 128 KiB
//! held(u) + more ≤ 3 × (room(n) - held - more)            limit - limit / 8  if not
//! ```
//!
//! The first line keeps an eighth for small contents. The second one gives a lone user three
//! quarters of the room, the next user three quarters of the rest, and so on: however much one user
//! holds, a quarter is left for the others. It does not bind root, nor the daemon's own user. All
//! users that the kernel does not name (`UNKNOWN`) count as one.
//!
//! A handle, with everything written through it, counts for the user who opened it, even if that
//! user has passed the descriptor on. An in-place draft counts for the user whose handle began it.
//! Several users may hold the same content: it exists once, and counts for each of them.
//!
//! A content that is kept only to avoid decrypting it again uses free memory, counts for nobody,
//! and gives way to bytes that must be held.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Errno;
use crate::sync::{Mutex, MutexGuard, Rank};

/// Contents up to this many bytes count as small: some memory is kept for them.
pub(super) const SMALL: u64 = 128 * 1024;
/// Stands for all users that the kernel does not name.
pub(super) const UNKNOWN: u32 = u32::MAX;
/// There would be room if kept contents were freed. No program ever gets this errno.
pub(super) const CROWDED: Errno = Errno(libc::EAGAIN);

/// Interval between two log lines about refusals, since a refused program keeps asking.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// A limit in bytes, and the use of each user.
#[derive(Debug)]
pub(super) struct Budget {
    limit: u64,
    /// The user of the daemon.
    own: u32,
    /// Bytes that are held, and those that are kept beside them.
    used: AtomicU64,
    shares: Mutex<Shares>,
}

#[derive(Debug, Default)]
struct Shares {
    held: u64,
    /// The held bytes of each user.
    of_users: HashMap<u32, u64>,
    refusal_logged: Option<Instant>,
}

impl Shares {
    fn of(&self, user: u32) -> u64 {
        self.of_users.get(&user).copied().unwrap_or(0)
    }

    fn add(&mut self, user: u32, bytes: u64) {
        if bytes > 0 {
            *self.of_users.entry(user).or_default() += bytes;
        }
    }

    fn subtract(&mut self, user: u32, bytes: u64) {
        if let Some(held) = self.of_users.get_mut(&user) {
            *held = held.saturating_sub(bytes);
            if *held == 0 {
                self.of_users.remove(&user);
            }
        }
    }
}

/// Why a reservation was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Too much is held, by all users or by the one who asks.
    Full,
    /// Kept contents, which can be freed, are in the way.
    Crowded,
}

impl Refused {
    /// The errno for a writer.
    pub(super) fn no_space(self) -> Errno {
        match self {
            Self::Full => Errno(libc::ENOSPC),
            Self::Crowded => CROWDED,
        }
    }
}

/// The holder of reserved bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    /// Nobody: the bytes can be freed.
    Nobody,
    User(u32),
    /// Several users, each with a [`Share`].
    Several,
}

impl Budget {
    pub(super) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            own: nix::unistd::geteuid().as_raw(),
            used: AtomicU64::new(0),
            shares: Mutex::new(Rank::Budget, Shares::default()),
        })
    }

    /// Bytes that are held, and those that are kept beside them.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Reserves `bytes` that can be freed, if there is room.
    pub(super) fn keep(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        self.keep_within(bytes, self.limit)
    }

    /// The same if at most half of the limit is used then.
    pub(super) fn keep_if_half_is_free(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        self.keep_within(bytes, self.limit / 2)
    }

    fn keep_within(self: &Arc<Self>, bytes: u64, most: u64) -> Option<Reservation> {
        self.add(bytes, most).then(|| Reservation {
            budget: Arc::clone(self),
            bytes,
            holder: Holder::Nobody,
        })
    }

    /// The account of `user`.
    pub(super) fn of(self: &Arc<Self>, user: u32) -> Account {
        Account {
            budget: Arc::clone(self),
            user,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock()
    }

    fn add(&self, bytes: u64, most: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= most);
        let used = &self.used;
        used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .is_ok()
    }

    /// The room for all contents of up to `length` bytes.
    fn room(&self, length: u64) -> u64 {
        match length <= SMALL {
            true => self.limit,
            false => self.limit - self.limit / 8,
        }
    }

    /// Lets `user` hold `own` more bytes of a content of `length` bytes, `fresh` of which nobody
    /// holds yet.
    fn take(&self, user: u32, (own, fresh): (u64, u64), length: u64) -> Result<(), Refused> {
        let room = self.room(length);
        let mut shares = self.lock();
        let mine = shares.of(user).saturating_add(own);
        let free = match fresh {
            // The bytes exist already, however much was taken since.
            0 => Some(room.saturating_sub(shares.held)),
            _ => shares
                .held
                .checked_add(fresh)
                .and_then(|held| room.checked_sub(held)),
        };
        let is_bound = user != 0 && user != self.own;
        match free {
            Some(free) if !is_bound || mine <= free.saturating_mul(3) => {}
            _ => {
                self.log_refusal(shares, user);
                return Err(Refused::Full);
            }
        }
        if fresh > 0 && !self.add(fresh, room) {
            return Err(Refused::Crowded);
        }
        shares.held += fresh;
        shares.add(user, own);
        Ok(())
    }

    fn give_back(&self, holder: Holder, bytes: u64) {
        if bytes == 0 {
            return;
        }
        if holder != Holder::Nobody {
            let mut shares = self.lock();
            shares.held = shares.held.saturating_sub(bytes);
            if let Holder::User(user) = holder {
                shares.subtract(user, bytes);
            }
        }
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn log_refusal(&self, mut shares: MutexGuard<'_, Shares>, user: u32) {
        if shares
            .refusal_logged
            .is_some_and(|at| at.elapsed() < LOG_EVERY)
        {
            return;
        }
        shares.refusal_logged = Some(Instant::now());
        let (own, held) = (shares.of(user), shares.held);
        drop(shares);
        let user = match user {
            UNKNOWN => "users that the kernel does not name".to_owned(),
            user => format!("user {user}"),
        };
        tracing::warn!(
            "{user} cannot have more memory for open files: of the {} bytes that there are for all \
             (max-memory) {held} are taken, {own} of them by it, and an eighth is kept for small secrets; \
             have it close files, or raise max-memory",
            self.limit
        );
    }
}

/// The account of one user.
#[derive(Clone, Debug)]
pub(super) struct Account {
    budget: Arc<Budget>,
    user: u32,
}

impl Account {
    /// An empty reservation.
    pub(super) fn nothing(&self) -> Reservation {
        Reservation {
            budget: Arc::clone(&self.budget),
            bytes: 0,
            holder: Holder::User(self.user),
        }
    }

    /// Reserves `bytes` for a content of `length` bytes.
    pub(super) fn reserve(&self, bytes: u64, length: u64) -> Result<Reservation, Refused> {
        let mut reservation = self.nothing();
        reservation.grow(bytes, length)?;
        Ok(reservation)
    }

    /// Reserves a whole content that other users may share later.
    pub(super) fn reserve_shared(&self, bytes: u64) -> Result<(Reservation, Share), Refused> {
        self.budget.take(self.user, (bytes, bytes), bytes)?;
        let reservation = Reservation {
            budget: Arc::clone(&self.budget),
            bytes,
            holder: Holder::Several,
        };
        Ok((reservation, self.share_of(bytes)))
    }

    /// Joins the holders of a content.
    pub(super) fn share(&self, bytes: u64) -> Result<Share, Refused> {
        self.budget.take(self.user, (bytes, 0), bytes)?;
        Ok(self.share_of(bytes))
    }

    fn share_of(&self, bytes: u64) -> Share {
        Share {
            account: self.clone(),
            bytes,
        }
    }
}

/// Reserved bytes of the budget, released when dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Arc<Budget>,
    bytes: u64,
    holder: Holder,
}

impl Reservation {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Moves up to `bytes` to another reservation of the same account.
    pub(super) fn pass_on(&mut self, bytes: u64, other: &mut Self) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        other.bytes += bytes;
    }

    /// Reserves `more` bytes for a content that then has `length` bytes. Only for a content with
    /// one holder.
    pub(super) fn grow(&mut self, more: u64, length: u64) -> Result<(), Refused> {
        if more == 0 {
            return Ok(());
        }
        let Holder::User(user) = self.holder else {
            return Err(Refused::Full);
        };
        self.budget.take(user, (more, more), length)?;
        self.bytes += more;
        Ok(())
    }

    /// Releases all but `bytes`.
    pub(super) fn shrink(&mut self, bytes: u64) {
        let less = self.bytes.saturating_sub(bytes);
        self.bytes -= less;
        self.budget.give_back(self.holder, less);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

/// A user's share in a content.
#[derive(Debug)]
pub(super) struct Share {
    account: Account,
    bytes: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        let Account { budget, user } = &self.account;
        budget.lock().subtract(*user, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const USER: u32 = 4_000_001;

    fn taken(account: &Account, each: u64) -> Vec<Reservation> {
        std::iter::from_fn(|| account.reserve(each, each).ok()).collect()
    }

    #[test]
    fn one_user_has_three_quarters_and_the_next_three_quarters_of_what_is_left() {
        let budget = Budget::new(256 * MIB);
        let first = taken(&budget.of(USER), MIB);
        assert_eq!(first.len(), 168);
        let second = taken(&budget.of(USER + 1), MIB);
        assert_eq!(second.len(), 42);
        let unknown = taken(&budget.of(UNKNOWN), MIB);
        assert_eq!(unknown.len(), 10);
        drop(first);
        assert!(!taken(&budget.of(USER + 1), MIB).is_empty());
        drop((second, unknown));
        assert_eq!(budget.used(), 0);
        assert!(budget.lock().of_users.is_empty() && budget.lock().held == 0);
    }

    #[test]
    fn an_eighth_is_kept_for_small_contents_from_root_too() {
        let budget = Budget::new(256 * MIB);
        let all = taken(&budget.of(0), MIB);
        assert_eq!(all.len(), 224);
        assert_eq!(
            budget.of(USER).reserve(1, SMALL + 1).err(),
            Some(Refused::Full)
        );
        let small = taken(&budget.of(USER), SMALL);
        assert_eq!(small.len(), 24 * 8);
        assert!(!taken(&budget.of(USER + 1), SMALL).is_empty());
    }

    #[test]
    fn what_is_in_memory_already_can_be_had_though_small_contents_have_taken_the_rest() {
        let budget = Budget::new(256 * MIB);
        let (content, first) = budget.of(0).reserve_shared(100 * MIB).unwrap();
        let rest = taken(&budget.of(0), SMALL);
        assert_eq!(rest.len(), 156 * 8);
        let second = budget.of(0).share(100 * MIB);
        assert!(second.is_ok());
        drop((content, first, second, rest));
        assert!(budget.lock().of_users.is_empty() && budget.used() == 0);
    }

    #[test]
    fn what_several_users_hold_is_there_once_and_counts_for_each() {
        let budget = Budget::new(256 * MIB);
        let (content, first) = budget.of(USER).reserve_shared(100 * MIB).unwrap();
        let second = budget.of(USER + 1).share(100 * MIB).unwrap();
        assert_eq!(budget.used(), 100 * MIB);
        // Each user's share counts as if it were alone.
        assert_eq!(
            budget.of(USER + 1).share(300 * MIB).err(),
            Some(Refused::Full)
        );
        drop(first);
        assert_eq!(budget.lock().of(USER), 0);
        assert_eq!(budget.lock().of(USER + 1), 100 * MIB);
        drop((content, second));
        assert!(budget.lock().of_users.is_empty() && budget.used() == 0);
    }

    #[test]
    fn what_can_be_given_up_is_told_from_what_is_held() {
        let budget = Budget::new(256 * MIB);
        let kept = budget.keep(200 * MIB).unwrap();
        assert!(budget.keep_if_half_is_free(1).is_none() && budget.keep(57 * MIB).is_none());
        assert_eq!(
            budget.of(USER).reserve(100 * MIB, 100 * MIB).err(),
            Some(Refused::Crowded)
        );
        // This user would get no more without it either.
        assert_eq!(
            budget.of(USER).reserve(169 * MIB, 169 * MIB).err(),
            Some(Refused::Full)
        );
        drop(kept);
        assert!(budget.of(USER).reserve(100 * MIB, 100 * MIB).is_ok());
    }
}
