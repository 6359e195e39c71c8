//! The log: to stderr in the foreground, to syslog or a file in the background. Only events of
//! secretfs itself are let through: those of libraries name files and show requests. No event may
//! hold a secret, a key, content or the name of a file in a vault; paths of vaults and mount
//! points are fine.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing::{Level, Metadata, level_filters::LevelFilter};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;

use super::error::{Class, Error};
use super::sys;

/// Where the log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// The standard error output.
    Stderr,
    /// The system's log, over /dev/log.
    Syslog,
    /// The end of a file.
    File(PathBuf),
}

/// The one sink of this process, so that a hang-up can reopen it.
static SINK: OnceLock<Sink> = OnceLock::new();

const DEV_LOG: &str = "/dev/log";

/// Starts logging. May be called once.
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
        file: Mutex::new(None),
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
    // A second call (in a test process) changes nothing, which is harmless.
    let _ = tracing_subscriber::registry()
        .with(layer.with_filter(ours_only))
        .try_init();
    Ok(())
}

/// Opens the log file anew, after logrotate has moved it.
pub(crate) fn reopen() {
    if let Some(sink) = SINK.get()
        && sink.open().is_ok()
    {
        tracing::info!("the log was reopened");
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
            *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        }
        Ok(())
    }

    /// A log that cannot be written must not stop the file system: errors are dropped.
    fn write_line(&self, level: Level, line: &[u8]) {
        match &self.destination {
            Destination::Stderr => drop(io::stderr().lock().write_all(line)),
            Destination::File(_) => {
                let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(mut file) = file.as_ref() {
                    let _ = file.write_all(line);
                }
            }
            Destination::Syslog => drop(send_to_syslog(level, line)),
        }
    }
}

fn open_file(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| {
            Error::new(
                Class::Failed,
                format!(
                    "cannot open the log file {}: {e}; see log-file",
                    path.display()
                ),
            )
        })
}

/// One datagram as in RFC 3164. Connecting for each line survives a restart of the log daemon.
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

/// Collects one event, and hands it on whole.
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
