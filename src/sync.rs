//! Locks that do not poison, and that threads take in one order.
//!
//! A panic is caught where a request, a job or a thread begins, and the data under a lock is
//! consistent wherever a statement can panic. So a lock that was held during a panic is taken like
//! any other.
//!
//! A thread that takes several locks takes them in the order of [`Rank`]: each lock comes after all
//! that the thread holds. Then no two threads can wait for each other. Debug builds check this at
//! every lock and panic on a violation, even if no other thread was in the way; release builds have
//! no ranks.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::time::Duration;

mod order;

pub(crate) use order::Rank;

use order::{Held, Place};

/// Like [`std::sync::Mutex`], with a rank.
pub(crate) struct Mutex<T> {
    place: Place,
    inner: std::sync::Mutex<T>,
}

/// Holds a [`Mutex`] until dropped.
pub(crate) struct MutexGuard<'a, T> {
    // Released first.
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

    /// Without locking: no other thread can have it.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that the calling thread may wait for this lock, for callers that wait for it by other
    /// means.
    pub(crate) fn check_order(&self) {
        drop(self.place.take());
    }

    /// `None` if the lock is held. The thread does not wait, so its other locks do not matter.
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

/// Like [`std::sync::Condvar`]. While it waits, a thread must hold no lock that the waking thread
/// needs.
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

    /// Waits at most `time`.
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

    /// Waits while `goes_on` returns true, and at most `time`.
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

/// Like [`std::sync::RwLock`], with a rank.
pub(crate) struct RwLock<T> {
    place: Place,
    inner: std::sync::RwLock<T>,
}

/// Holds a [`RwLock`] for reading until dropped.
pub(crate) struct RwLockReadGuard<'a, T> {
    // Released first.
    inner: std::sync::RwLockReadGuard<'a, T>,
    _held: Held,
}

/// Holds a [`RwLock`] for writing until dropped.
pub(crate) struct RwLockWriteGuard<'a, T> {
    // Released first.
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

// Release builds check nothing.
#[cfg(all(test, debug_assertions))]
mod tests;
