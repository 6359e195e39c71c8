//! The start order, in one place. Forks come before threads, tokio and keys; hardening comes before
//! opening the vault; success is reported only once the mount answers.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use crate::os::{mountinfo, stdio, sys};
use crate::{config, fs, vault};

use super::detach::{self, Ready, Reporter, Side};
use super::helper::Helper;
use super::log::{self, Destination};
use super::mount::{self, Mount, Mounter};
use super::mount_options::MountOptions;
use super::patience::patiently;
use super::plan::{self, Plan, Request, Target};
use super::point::Point;
use crate::control;
use crate::control::Socket;
use crate::error::{Class, Error};

use super::serve::{self, Mounted};
use super::signals::{self, Event, SignalThread};
use super::{Protection, harden, panics, touch};

/// Mounts. In the background, it returns once the mount answers, and a daemon serves it; in the
/// foreground, it returns when the mount has ended. It calls `announce` once, when the mount
/// answers, with a line for people.
///
/// # Errors
/// When nothing is mounted, or (in the foreground) when the mount did not end in order.
pub fn mount(request: &Request, announce: &dyn Fn(&str)) -> Result<(), Error> {
    if !request.foreground {
        // This comes before the first descriptor that must stay open.
        sys::close_inherited(mount::passed_descriptor(&request.mountpoint)?);
    }
    let (plan, replaced) = checked(request)?;
    let shown_target = plan.shown_target.clone();
    let announcement = |ready| {
        let (vault, point) = (request.vault.display(), &shown_target);
        match ready {
            Ready::Served => format!("{vault} is mounted on {point}"),
            Ready::Counting => format!(
                "{vault} is mounted on {point}, and is still being counted: who uses it waits for the \
                 end of that"
            ),
        }
    };
    signals::block()?;
    if plan.foreground {
        let announce = |ready| announce(&announcement(ready));
        return panics::caught(|| daemon(plan, replaced, None, &announce));
    }
    match detach::fork()? {
        Side::Caller(child) => {
            let ready = child.wait_until_ready(plan.target.point(), plan.patience())?;
            announce(&announcement(ready));
            Ok(())
        }
        Side::Daemon(mut reporter) => {
            let ended = panics::caught(|| daemon(plan, replaced, Some(&mut reporter), &|_| ()));
            // The calling process prints an error of the start; a later one goes to the log.
            if let Err(error) = &ended
                && !reporter.failed(error)
            {
                tracing::error!("{error}");
            }
            std::process::exit(i32::from(ended.is_err()))
        }
    }
}

/// Most dead mounts of one vault to remove from one mount point: each crash leaves one.
const MOST_STALE: usize = 100;

/// Checks the request, and removes dead mounts of the same vault if requested; also returns their
/// number.
fn checked(request: &Request) -> Result<(Plan, usize), Error> {
    let mut replaced = 0;
    loop {
        let plan = plan::check(request)?;
        let Some(point) = plan.point.as_ref().filter(|_| plan.is_stale) else {
            return Ok((plan, replaced));
        };
        if replaced == MOST_STALE {
            return Err(Error::new(
                Class::Busy,
                format!(
                    "{replaced} dead mounts were taken away from {shown}, and there are more; remove them with `umount {shown}`",
                    shown = plan.shown_target
                ),
            ));
        }
        point.detach_dead()?;
        replaced += 1;
    }
}

/// Runs the daemon, from the helper's fork to the end. `replaced`: number of dead mounts that were
/// removed. `reporter`: in the background only.
fn daemon(
    mut plan: Plan,
    replaced: usize,
    reporter: Option<&mut Reporter>,
    announce: &dyn Fn(Ready),
) -> Result<(), Error> {
    // The mount closes it: it would keep the file system below busy.
    let point = plan.point.take();
    let plan = &plan;
    let settings = &plan.settings;

    // 1. The last fork: after hardening, fusermount3 could not gain its privileges.
    let mounter = mounter(plan)?;

    // 2. Harden: from here on, no other process can look into this one. Threads may start after
    //    this.
    log::start(
        log_destination(plan),
        settings.log_format,
        settings.log_level,
    )?;
    if replaced > 0 {
        tracing::warn!(
            vault = %plan.vault.display(),
            mountpoint = %plan.shown_target,
            replaced,
            "took away what was left of a mount of this vault whose daemon was gone"
        );
    }
    let protection = harden::harden(settings.require_mlock)?;
    let (tell, events) = mpsc::channel();
    let signal_thread = SignalThread::start(plan.foreground, tell.clone())?;

    // 3. Open and unlock the vault. The first key is in memory when this returns.
    let vault = open_vault(plan)?;
    vault.on_alarm(tell_systemd);
    let (door, controller) = serve_vault(vault, plan, protection)
        .map_err(|e| Error::new(Class::System, format!("cannot start a thread: {e}")))?;

    // 4. Mount, and serve before reporting: a mount answers only once it is served.
    let on = point.zip(mounter);
    let mounted = mount_and_serve(plan, on, &door, &signal_thread, tell);
    let (mount, ready) = match mounted {
        Ok(mounted) => mounted,
        Err(e) => {
            let _ = door.finish(fs::Ending::Orderly);
            return Err(e);
        }
    };
    let socket = Socket::open(controller);
    signal_thread.serving();

    // 5. Report to the calling process, systemd and the log.
    announce(ready);
    if let Some(reporter) = reporter {
        detach::leave_session();
        reporter.ready(ready);
        stdio::point_at_null();
    }
    let _ = sd_notify::notify(&[
        sd_notify::NotifyState::Ready,
        sd_notify::NotifyState::MainPid(std::process::id()),
    ]);
    tell_log(plan, protection);

    // 6. Serve until the end.
    let mounted = Mounted {
        socket,
        door,
        mount,
        events,
        drain_timeout: settings.drain_timeout,
    };
    mounted.until_the_end()
}

/// The mounter: this process if it may mount, otherwise a helper that runs fusermount3.
fn mounter(plan: &Plan) -> Result<Option<Mounter>, Error> {
    match &plan.target {
        Target::Passed(_) => Ok(None),
        Target::Point(_) if harden::may_mount() => Ok(Some(Mounter::System)),
        Target::Point(point) => {
            let helper = Helper::fork(point, &mount_options(plan))?;
            Ok(Some(Mounter::Helper(Arc::new(helper))))
        }
    }
}

fn mount_options(plan: &Plan) -> MountOptions {
    MountOptions {
        source: plan.vault.clone(),
        read_only: plan.settings.read_only,
        allow_other: plan.settings.allow_other,
        exec: plan.settings.exec,
    }
}

fn mount_and_serve(
    plan: &Plan,
    on: Option<(Point, Mounter)>,
    door: &Arc<fs::FrontDoor>,
    signal_thread: &Arc<SignalThread>,
    tell: mpsc::Sender<Event>,
) -> Result<(Option<Arc<Mount>>, Ready), Error> {
    let (mount, device) = match (&plan.target, on) {
        (Target::Point(_), Some((point, mounter))) => {
            let (mount, device) = Mount::new(&point, &mount_options(plan), mounter)?;
            (Some(Arc::new(mount)), device)
        }
        (Target::Passed(fd), _) => {
            let device = sys::take_passed(*fd).map_err(|e| {
                Error::new(
                    Class::Failed,
                    format!("no open descriptor was passed as /dev/fd/{fd}: {e}"),
                )
            })?;
            (None, device)
        }
        (Target::Point(_), None) => {
            return Err(Error::new(
                Class::Internal,
                "internal error: nobody to mount",
            ));
        }
    };
    if let Some(mount) = &mount {
        signal_thread.mounted(mount);
        door.fs().attach_device(mount.device());
    }
    // From here on, an error drops `mount`, which unmounts.
    mount::check_device(&device, mount.is_none())?;
    serve::start(door, device, &plan.settings, mount.is_some(), tell)?;
    touch::start(door.fs(), mount.as_ref(), plan.settings.read_only)?;
    let ready = match door.vault().is_awaited() {
        true => Ready::Counting,
        false => Ready::Served,
    };
    if plan.foreground && ready == Ready::Served {
        // In the background, the calling process asks instead.
        plan.target.point().map_or(Ok(()), detach::answers)?;
    }
    Ok((mount, ready))
}

/// Opens the vault. If another process holds it but no visible mount writes to it, its daemon is
/// about to release it.
fn open_vault(plan: &Plan) -> Result<Arc<vault::Vault>, Error> {
    let options = vault::OpenOptions {
        mountpoint: plan.target.point().map(Into::into),
        ..vault::OpenOptions::of(&plan.settings)
    };
    let open = || vault::Vault::open_to_serve(&plan.vault, &options, verify(&plan.settings));
    Ok(patiently(open, || is_mounted_for_writing(plan))?)
}

fn is_mounted_for_writing(plan: &Plan) -> bool {
    // The holder may have its own mount namespace. Its claims are not trusted; they decide only how
    // long to wait.
    let holder = crate::store::holder(&plan.vault).ok().flatten();
    let seen_by_it = holder.and_then(|holder| mountinfo::mounts_of(holder.pid).ok());
    mountinfo::mounts()
        .ok()
        .into_iter()
        .chain(seen_by_it)
        .flatten()
        .any(|m| m.is_secretfs() && !m.read_only && m.source == plan.vault)
}

/// When to count the vault.
fn verify(settings: &config::Settings) -> vault::Verify {
    match settings.verify_in_background {
        true => vault::Verify::Background,
        false => vault::Verify::Before(settings.verify_within),
    }
}

/// Creates the file system of a vault, its control plane, and the front door to both.
fn serve_vault(
    vault: Arc<vault::Vault>,
    plan: &Plan,
    protection: Protection,
) -> std::io::Result<(Arc<fs::FrontDoor>, Arc<control::Controller>)> {
    let fs = fs::FileSystem::new(vault, file_system_settings(plan))?;
    let controller = control::Controller::start(&fs, control_settings(plan, protection))?;
    let door = fs::FrontDoor::new(fs, control::ControlFiles::of(&controller));
    Ok((door, controller))
}

fn file_system_settings(plan: &Plan) -> fs::Settings {
    let settings = &plan.settings;
    fs::Settings {
        ttl: settings.ttl,
        max_secret_size: settings.max_secret_size,
        max_memory: settings.max_memory,
        end_patience: Duration::from_secs(1),
        // With the time to store it, that is five seconds at most.
        appends_after: Duration::from_secs(4),
        verify_every: settings.verify_every,
    }
}

fn control_settings(plan: &Plan, protection: Protection) -> control::Settings {
    let settings = &plan.settings;
    control::Settings {
        rotate_every: settings.rotate_every,
        control_uid: settings.control_uid,
        shown: control::Shown {
            mountpoint: match plan.target.point() {
                Some(point) => point.display().to_string(),
                None => plan.shown_target.clone(),
            },
            verify: match settings.verify_in_background {
                true => "background",
                false => "before",
            },
            max_memory_from: settings.max_memory_from.name(),
            protection: serde_json::json!(protection),
        },
    }
}

fn log_destination(plan: &Plan) -> Destination {
    match &plan.settings.log_file {
        Some(file) => Destination::File(file.clone()),
        None if plan.foreground => Destination::Stderr,
        None => Destination::Syslog,
    }
}

/// Makes `systemctl status` show the finding.
fn tell_systemd(found: &str) {
    let status = format!("integrity failure: {}", found.replace('\n', " "));
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Status(&status)]);
}

fn tell_log(plan: &Plan, protection: Protection) {
    tracing::info!(
        vault = %plan.vault.display(),
        mountpoint = %plan.shown_target,
        read_only = plan.settings.read_only,
        locked = %protection.locked,
        "mounted"
    );
    if let Some(warning) = plan.settings.memory_warning() {
        tracing::warn!("{warning}");
    }
    for option in &plan.not_granted {
        tracing::warn!("the option `{option}` is not granted: mounts are always nodev and nosuid");
    }
}
