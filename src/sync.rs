//! Locks that do not poison, taken in one order.
//!
//! A panic is caught where a request, a job or a thread begins, and what a lock guards here is whole
//! between any two statements that can panic. So a lock that was held meanwhile is taken like any other.
//!
//! Threads that take several locks take them in the order of [`Rank`]: each only while all that they hold
//! stand before it. Then no two can wait for each other. Debug builds check that at every lock, and panic
//! where it is not so, whether or not another thread was in the way; release builds know no ranks.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::time::Duration;

mod order;

pub(crate) use order::Rank;

use order::{Held, Place};

/// As that of the standard library.
pub(crate) struct Mutex<T> {
    place: Place,
    inner: std::sync::Mutex<T>,
}

/// What it guards, for as long as this is there.
pub(crate) struct MutexGuard<'a, T> {
    // Let go of first.
    inner: std::sync::MutexGuard<'a, T>,
    held: Held,
}

impl<T> Mutex<T> {
    pub(crate) const fn new(rank: Rank, value: T) -> Self {
        Self {
            place: Place::new(rank),
            inner: std::sync::Mutex::new(value),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let held = self.place.take();
        MutexGuard {
            inner: self.inner.lock().unwrap_or_else(PoisonError::into_inner),
            held,
        }
    }

    /// Without locking: nobody else can have it.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` when somebody else has it. Nobody waits, so whatever else is held does not matter.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let inner = match self.inner.try_lock() {
            Ok(inner) => inner,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return None,
        };
        Some(MutexGuard {
            inner,
            held: self.place.note(),
        })
    }
}

impl<T: fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// As that of the standard library. To be waited on while nothing else is held.
#[derive(Debug)]
pub(crate) struct Condvar(std::sync::Condvar);

impl Condvar {
    pub(crate) const fn new() -> Self {
        Self(std::sync::Condvar::new())
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }

    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        let MutexGuard { inner, held } = guard;
        let inner = self.0.wait(inner);
        MutexGuard {
            inner: inner.unwrap_or_else(PoisonError::into_inner),
            held,
        }
    }

    /// Waits at most so long.
    pub(crate) fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        time: Duration,
    ) -> MutexGuard<'a, T> {
        let MutexGuard { inner, held } = guard;
        let waited = self.0.wait_timeout(inner, time);
        let (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        MutexGuard { inner, held }
    }

    /// Waits while `goes_on` says so, and at most so long.
    pub(crate) fn wait_timeout_while<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        time: Duration,
        goes_on: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'a, T> {
        let MutexGuard { inner, held } = guard;
        let waited = self.0.wait_timeout_while(inner, time, goes_on);
        let (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        MutexGuard { inner, held }
    }
}

impl Default for Condvar {
    fn default() -> Self {
        Self::new()
    }
}

/// As that of the standard library.
pub(crate) struct RwLock<T> {
    place: Place,
    inner: std::sync::RwLock<T>,
}

/// What it guards, to be looked at for as long as this is there.
pub(crate) struct RwLockReadGuard<'a, T> {
    // Let go of first.
    inner: std::sync::RwLockReadGuard<'a, T>,
    _held: Held,
}

/// What it guards, for as long as this is there.
pub(crate) struct RwLockWriteGuard<'a, T> {
    // Let go of first.
    inner: std::sync::RwLockWriteGuard<'a, T>,
    _held: Held,
}

impl<T> RwLock<T> {
    pub(crate) const fn new(rank: Rank, value: T) -> Self {
        Self {
            place: Place::new(rank),
            inner: std::sync::RwLock::new(value),
        }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        let held = self.place.take();
        RwLockReadGuard {
            inner: self.inner.read().unwrap_or_else(PoisonError::into_inner),
            _held: held,
        }
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        let held = self.place.take();
        RwLockWriteGuard {
            inner: self.inner.write().unwrap_or_else(PoisonError::into_inner),
            _held: held,
        }
    }
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

// In release builds nothing is checked.
#[cfg(all(test, debug_assertions))]
mod tests;
