//! The log: to stderr in the foreground, to syslog or a file in the background. Only events of
//! secretfs itself pass: events of libraries name files and show requests. No event may hold a
//! secret, a key, content or the name of a file in a vault; paths of vaults and mount points are
//! fine.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tracing::{Level, Metadata, level_filters::LevelFilter};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;
use crate::error::{Class, Error};
use crate::os::sys;
use crate::sync::{Mutex, Rank};

/// The destination of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// The standard error output.
    Stderr,
    /// The system log, over /dev/log.
    Syslog,
    /// A file, to append to.
    File(PathBuf),
}

/// The only sink of this process; a hang-up reopens it.
static SINK: OnceLock<Sink> = OnceLock::new();

const DEV_LOG: &str = "/dev/log";

/// Starts logging. Callers call it once.
///
/// # Errors
/// When the log file cannot be opened.
pub(crate) fn start(
    destination: Destination,
    format: LogFormat,
    level: LevelFilter,
) -> Result<(), Error> {
    let colour = destination == Destination::Stderr && io::stderr().is_terminal();
    let timeless = destination == Destination::Syslog;
    let sink = SINK.get_or_init(|| Sink {
        file: Mutex::new(Rank::LogFile, None),
        destination,
    });
    sink.open()?;
    let layer = tracing_subscriber::fmt::layer()
        .with_target(false)
        .with_ansi(colour)
        .with_writer(sink);
    let layer = match (format, timeless) {
        (LogFormat::Json, _) => layer.json().flatten_event(true).boxed(),
        (LogFormat::Human, true) => layer.without_time().with_level(false).boxed(),
        (LogFormat::Human, false) => layer.boxed(),
    };
    let ours_only = Targets::new().with_target("secretfs", level);
    // A second call (in a test process) changes nothing, and does no harm.
    let _ = tracing_subscriber::registry()
        .with(layer.with_filter(ours_only))
        .try_init();
    Ok(())
}

/// Reopens the log file, after logrotate has moved it.
pub(crate) fn reopen() {
    match SINK.get().map(Sink::open) {
        Some(Ok(())) => tracing::info!("the log was reopened"),
        // This goes into the file that is still open.
        Some(Err(error)) => tracing::error!("{error}; the log goes on where it was"),
        None => {}
    }
}

struct Sink {
    destination: Destination,
    file: Mutex<Option<File>>,
}

impl Sink {
    fn open(&self) -> Result<(), Error> {
        if let Destination::File(path) = &self.destination {
            let file = open_file(path)?;
            *self.file.lock() = Some(file);
        }
        Ok(())
    }

    /// A log that cannot be written must not stop the file system: errors are dropped.
    fn write_line(&self, level: Level, line: &[u8]) {
        match &self.destination {
            Destination::Stderr => drop(io::stderr().lock().write_all(line)),
            Destination::File(_) => {
                let file = self.file.lock();
                if let Some(mut file) = file.as_ref() {
                    let _ = file.write_all(line);
                }
            }
            Destination::Syslog => drop(send_to_syslog(level, line)),
        }
    }
}

/// Opens or creates the file. It refuses a symlink or file of another user at the path, because the
/// log would be appended to a file of that user's choice.
fn open_file(path: &Path) -> Result<File, Error> {
    let fail = |why: &dyn std::fmt::Display| {
        Error::new(
            Class::Failed,
            format!(
                "cannot open the log file {}: {why}; see log-file",
                path.display()
            ),
        )
    };
    let directory = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(fail(&"it is a directory")),
    };
    let above = std::fs::metadata(directory).map_err(|e| fail(&e))?;
    let own = nix::unistd::geteuid().as_raw();
    let is_trusted = |uid: u32| uid == own || uid == 0;
    let others_write = above.mode() & 0o022 != 0 && above.mode() & libc::S_ISVTX == 0;
    if !is_trusted(above.uid()) || others_write {
        return Err(fail(
            &"other users can put what they like into its directory; choose one that only its owner can write",
        ));
    }
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        // A FIFO without a reader must not block the daemon's start.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|e| match e.raw_os_error() {
            Some(libc::ELOOP) => fail(&"it is a symlink; name the file itself"),
            _ => fail(&e),
        })?;
    let found = file.metadata().map_err(|e| fail(&e))?;
    if !is_trusted(found.uid()) || (found.is_file() && found.nlink() > 1) {
        return Err(fail(
            &"it belongs to another user, or has another name somewhere else (a hard link); remove it",
        ));
    }
    Ok(file)
}

/// Sends one datagram as in RFC 3164. A new connection per line survives a restart of the log
/// daemon.
fn send_to_syslog(level: Level, line: &[u8]) -> io::Result<usize> {
    const DAEMON: u8 = 3 << 3;
    let severity = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    };
    let mut datagram = format!(
        "<{}>{} secretfs[{}]: ",
        DAEMON | severity,
        sys::syslog_time(),
        std::process::id()
    )
    .into_bytes();
    datagram.extend_from_slice(line.trim_ascii());
    let socket = UnixDatagram::unbound()?;
    socket.connect(DEV_LOG)?;
    // A full log must not stop the file system either.
    socket.set_nonblocking(true)?;
    socket.send(&datagram)
}

impl MakeWriter<'_> for &'static Sink {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line {
            sink: self,
            level: Level::INFO,
            bytes: Vec::new(),
        }
    }

    fn make_writer_for(&self, meta: &Metadata<'_>) -> Line {
        Line {
            sink: self,
            level: *meta.level(),
            bytes: Vec::new(),
        }
    }
}

/// One line, built from one event and passed on whole.
struct Line {
    sink: &'static Sink,
    level: Level,
    bytes: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.sink.write_line(self.level, &self.bytes);
    }
}
