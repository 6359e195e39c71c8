//! Threads that render control files. Rendering reads files, and waits for locks that other threads
//! hold while they write to the disk, so it must not block the thread that reads requests. The
//! public status has a thread of its own and does not wait for the full one.

use std::sync::mpsc::{Sender, channel};

use crate::fs::Errno;
use crate::sync::{Mutex, Rank};

/// A rendering; with an error, it only passes the error on.
pub(super) type Job = Box<dyn FnOnce(Result<(), Errno>) + Send>;

/// The rendering threads, as the module describes.
#[derive(Default)]
pub(super) struct Renderers {
    full: Renderer,
    public: Renderer,
}

/// A thread that starts with its first job. Dropping this ends it after its last job.
struct Renderer(Mutex<Option<Sender<Job>>>);

impl Default for Renderer {
    fn default() -> Self {
        Self(Mutex::new(Rank::Renderer, None))
    }
}

impl Renderers {
    /// Runs `job` on the thread for the full or the public texts.
    pub(super) fn run(&self, in_full: bool, job: Job) {
        match in_full {
            true => self.full.run("status", job),
            false => self.public.run("public-status", job),
        }
    }
}

impl Renderer {
    fn run(&self, name: &str, job: Job) {
        let mut jobs = self.0.lock();
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
            // The thread is dead; the next job starts another.
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
