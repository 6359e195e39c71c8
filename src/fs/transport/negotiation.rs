//! The handshake with the kernel about features.

use std::io;
use std::time::Duration;

use fuser::{InitFlags, KernelConfig};

use super::convert::MAX_TRANSFER;

/// Requests the features that the file system needs, and those that make it faster if the kernel
/// has them.
///
/// # Errors
/// When the kernel lacks a feature that the file system needs.
pub(super) fn negotiate(config: &mut KernelConfig, is_idmapped: bool) -> io::Result<()> {
    // Without this feature, O_TRUNC would arrive as a truncation by path, which publishes.
    config
        .add_capabilities(InitFlags::FUSE_ATOMIC_O_TRUNC)
        .map_err(|_| io::Error::other("the kernel's FUSE cannot open and truncate at once"))?;
    if is_idmapped {
        let idmap = config.add_capabilities(InitFlags::FUSE_ALLOW_IDMAP);
        idmap.map_err(|_| {
            io::Error::other(
                "the kernel does not let FUSE mounts be idmapped (Linux does from 6.12 on); \
                 mount without -o idmap",
            )
        })?;
    }
    for wanted in [
        InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        InitFlags::FUSE_DONT_MASK,
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_READDIRPLUS_AUTO,
        InitFlags::FUSE_PARALLEL_DIROPS,
        // An asynchronous writer does not wait, and its thread may have another user by the time of
        // the look-up.
        match is_idmapped {
            true => InitFlags::empty(),
            false => InitFlags::FUSE_ASYNC_DIO,
        },
        InitFlags::FUSE_EXPORT_SUPPORT,
    ] {
        // Older kernels lack some of these.
        let _ = config.add_capabilities(wanted);
    }
    // With more background requests than this, the kernel holds back the next: an OPEN would
    // overtake an earlier RELEASE, which publishes.
    let _ = config.set_max_background(u16::MAX);
    // These calls fail only for values out of range, and then use the nearest valid value.
    let _ = config.set_max_write(MAX_TRANSFER);
    let _ = config.set_time_granularity(Duration::from_nanos(1));
    Ok(())
}
