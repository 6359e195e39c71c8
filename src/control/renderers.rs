//! Threads that render control files. Rendering looks at files, and waits for locks under which others
//! write to the disk: it must not keep the thread that reads requests. The public status has a thread of
//! its own, so that it does not wait for the full one.

use std::sync::mpsc::{Sender, channel};

use crate::fs::Errno;
use crate::sync::{Mutex, Rank};

/// Renders, unless it is given an error.
pub(super) type Job = Box<dyn FnOnce(Result<(), Errno>) + Send>;

/// See the module.
#[derive(Default)]
pub(super) struct Renderers {
    full: Renderer,
    public: Renderer,
}

/// A thread, which starts with its first job. Dropping this ends it, once its jobs are done.
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
