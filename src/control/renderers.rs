//! Threads that render control files. To tell how a mount is, files are looked at, and locks are waited
//! for under which others write to the disk: nothing of that may keep the thread that reads requests.
//! What everybody may see does not wait for what only those see who may command.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};

use crate::fs::Errno;

/// What is to be done, unless it is told that it cannot.
pub(super) type Job = Box<dyn FnOnce(Result<(), Errno>) + Send>;

/// See the module.
#[derive(Default)]
pub(super) struct Renderers {
    full: Renderer,
    public: Renderer,
}

/// A thread, from its first job on. It ends when this is dropped, once it has done what it was given.
#[derive(Default)]
struct Renderer(Mutex<Option<Sender<Job>>>);

impl Renderers {
    /// Has `job` done by the thread for what is shown in full, or to everybody.
    pub(super) fn run(&self, in_full: bool, job: Job) {
        match in_full {
            true => self.full.run("status", job),
            false => self.public.run("public-status", job),
        }
    }
}

impl Renderer {
    fn run(&self, name: &str, job: Job) {
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if jobs.is_none() {
            match start(name) {
                Ok(sender) => *jobs = Some(sender),
                Err(error) => {
                    drop(jobs);
                    tracing::error!("no thread to render the files of .secretfs: {error}");
                    return job(Err(Errno(libc::ENOMEM)));
                }
            }
        }
        let refused = jobs.as_ref().and_then(|jobs| jobs.send(job).err());
        if let Some(refused) = refused {
            // The thread has died; the next one is asked of another.
            *jobs = None;
            drop(jobs);
            (refused.0)(Err(Errno(libc::EIO)));
        }
    }
}

fn start(name: &str) -> std::io::Result<Sender<Job>> {
    let (sender, jobs) = channel::<Job>();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || jobs.into_iter().for_each(|job| job(Ok(()))))?;
    Ok(sender)
}
