//! The handshake with the kernel: which features it grants.

use std::io;
use std::time::Duration;

use fuser::{InitFlags, KernelConfig};

use super::convert::MAX_TRANSFER;

/// Agrees on what the file system relies on, and on what makes it faster where the kernel can do it.
///
/// # Errors
/// When the kernel lacks what the file system relies on.
pub(super) fn negotiate(config: &mut KernelConfig, is_idmapped: bool) -> io::Result<()> {
    // Without this one, O_TRUNC would arrive as a truncation by path, which publishes.
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
        // An asynchronous writer does not wait, and may be another when it is asked who it is.
        match is_idmapped {
            true => InitFlags::empty(),
            false => InitFlags::FUSE_ASYNC_DIO,
        },
        InitFlags::FUSE_EXPORT_SUPPORT,
    ] {
        // Older kernels do without.
        let _ = config.add_capabilities(wanted);
    }
    // As long as there are more requests under way that nobody waits for, the kernel holds back
    // the next: a RELEASE, which publishes, would be overtaken by an OPEN made after it.
    let _ = config.set_max_background(u16::MAX);
    // These only fail for values out of range, and then keep the nearest in range.
    let _ = config.set_max_write(MAX_TRANSFER);
    let _ = config.set_time_granularity(Duration::from_nanos(1));
    Ok(())
}
