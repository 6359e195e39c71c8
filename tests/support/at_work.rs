//! The writers and readers of `load`, in threads of their own, on one mount.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use super::load::{Dice, Tally, Writer, read};
use super::process::{Place, wait_for};

const PATIENCE: Duration = Duration::from_secs(120);

/// Writers and readers at work.
pub struct Load {
    writers: Vec<JoinHandle<Writer>>,
    readers: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(
        place: &Place,
        writers: Vec<Writer>,
        readers: u32,
        dice: &mut Dice,
        tally: &Arc<Tally>,
    ) -> Self {
        let count = writers.len() as u32;
        let writers = writers.into_iter().map(|mut writer| {
            let tally = Arc::clone(tally);
            std::thread::spawn(move || {
                writer.run(&tally);
                writer
            })
        });
        let readers = (0..readers).map(|_| {
            let (tally, point, seed) = (Arc::clone(tally), place.point(), dice.roll(u64::MAX));
            std::thread::spawn(move || read(&point, count, seed, &tally))
        });
        Self {
            writers: writers.collect(),
            readers: readers.collect(),
        }
    }

    pub fn has_done(&self, more: u64, tally: &Tally) {
        let before = tally.deeds();
        wait_for("the writers", PATIENCE, || {
            // Without a fault none of them ends; with one, joining tells which.
            tally.deeds() >= before + more || self.writers.iter().any(JoinHandle::is_finished)
        });
    }

    /// Waits for the writers, who end with the mount or when told to, then for the readers.
    pub fn ended(self, tally: &Tally) -> Vec<Writer> {
        let join = |thread: JoinHandle<Writer>| thread.join().unwrap_or_else(|e| resume_unwind(e));
        let writers = self.writers.into_iter().map(join).collect();
        tally.stop.store(true, Ordering::Relaxed);
        for reader in self.readers {
            reader.join().unwrap_or_else(|e| resume_unwind(e));
        }
        writers
    }
}
