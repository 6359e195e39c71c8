//! What programs ask of the file system: names, extended attributes, offsets, sizes, targets and
//! flags of any kind, in any order.

use std::sync::{Mutex, PoisonError};

use secretfs::fs::{Errno, SetAttributes};
use secretfs::vault::{Kind, ROOT, RenameMode};

use layer::{Layer, Served};

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "../../support/layer.rs"]
mod layer;

/// Inputs that one vault serves.
const TERM: u32 = 1000;

struct World {
    layer: Layer,
    served: Served,
    left: u32,
}

pub(super) fn run(input: &[u8]) {
    static WORLD: Mutex<Option<World>> = Mutex::new(None);
    let mut world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    let mut now = world.take().unwrap_or_else(|| {
        let layer = Layer::in_memory();
        World {
            served: layer.open_with(1 << 18, 1 << 20),
            layer,
            left: TERM,
        }
    });
    let handles = ask(&now.served, input);
    for fh in handles {
        now.served.release(fh);
    }
    empty(&now.served, ROOT);
    now.left -= 1;
    if now.left > 0 {
        *world = Some(now);
        return;
    }
    now.served.finish();
    let report = now.layer.check();
    assert_eq!(report.problem_count, 0, "{:?}", report.problems);
}

/// The rest of an input.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// A number, of which the small ones and the largest are likely.
    fn number(&mut self) -> Option<u64> {
        let (shift, low) = (self.byte()?, self.byte()?);
        let number = u64::from(low) << (shift % 64);
        Some(if shift & 0x80 == 0 {
            number
        } else {
            u64::MAX - number
        })
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        // 300 are more than a name may have.
        let length = usize::from(self.byte()?);
        let length = if length > 250 { 300 } else { length };
        let (bytes, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        Some(bytes)
    }
}

fn ask(fs: &Served, input: &[u8]) -> Vec<u64> {
    let mut bytes = Bytes(input);
    let mut nodes = vec![ROOT];
    let mut handles = Vec::new();
    for _ in 0..24 {
        if step(fs, &mut bytes, &mut nodes, &mut handles).is_none() {
            break;
        }
    }
    handles
}

fn step(
    fs: &Served,
    bytes: &mut Bytes<'_>,
    nodes: &mut Vec<u64>,
    handles: &mut Vec<u64>,
) -> Option<()> {
    let operation = bytes.byte()?;
    let node = nodes[usize::from(bytes.byte()?) % nodes.len()];
    let handle = handles.get(usize::from(operation >> 5)).copied();
    match operation % 19 {
        0 => {
            let name = bytes.bytes()?;
            let created = fs.try_create(node, name, 0o644, libc::O_RDWR);
            sane(name, &created);
            if let Ok((ino, fh)) = created {
                nodes.push(ino);
                handles.push(fh);
            }
        }
        1 => {
            let (kind, name) = (bytes.byte()?, bytes.bytes()?);
            let kind = Kind::from_number(kind % 10).unwrap_or(Kind::Directory);
            if kind != Kind::System {
                let made = fs.make(node, name, kind);
                sane(name, &made);
                nodes.extend(made.map(|attr| attr.ino));
            }
        }
        2 => {
            let (name, value) = (bytes.bytes()?, bytes.bytes()?);
            let flags = i32::from(bytes.byte()?);
            if fs.set_xattr(node, name, value, flags).is_ok() {
                assert_eq!(fs.0.get_xattr(node, name).as_deref(), Ok(value));
            }
        }
        3 => {
            let _ = fs.0.get_xattr(node, bytes.bytes()?);
        }
        4 => {
            let listed = fs.0.list_xattrs(node);
            assert!(listed.is_err() || listed.is_ok_and(|names| names.len() <= 1 << 16));
        }
        5 => {
            let _ = fs.remove_xattr(node, bytes.bytes()?);
        }
        6 => {
            let name = bytes.bytes()?;
            sane(name, &fs.lookup(node, name));
        }
        7 => {
            let (name, mode) = (bytes.bytes()?, bytes.byte()?);
            let to = nodes[usize::from(mode) % nodes.len()];
            let mode = match mode % 3 {
                0 => RenameMode::Replace,
                1 => RenameMode::NoReplace,
                _ => RenameMode::Exchange,
            };
            let _ = fs.rename((node, name), (to, bytes.bytes()?), mode);
        }
        8 => {
            let _ = fs.unlink(node, bytes.bytes()?);
        }
        9 => {
            let _ = fs.rmdir(node, bytes.bytes()?);
        }
        10 => {
            let parent = nodes[usize::from(bytes.byte()?) % nodes.len()];
            let _ = fs.link(node, parent, bytes.bytes()?);
        }
        11 => {
            let (offset, data) = (bytes.number()?, bytes.bytes()?);
            if let Some(fh) = handle
                && fs.write(fh, offset, data) == Ok(data.len() as u32)
                && !data.is_empty()
            {
                let read = fs.read(fh, offset, data.len() as u32);
                assert_eq!(read.as_deref(), Ok(data));
            }
        }
        12 => {
            let (offset, size) = (bytes.number()?, bytes.number()?);
            let size = u32::try_from(size).unwrap_or(u32::MAX);
            if let Some(fh) = handle {
                let read = fs.read(fh, offset, size);
                assert!(read.is_err() || read.is_ok_and(|read| read.len() <= size as usize));
            }
        }
        13 => {
            let set = SetAttributes {
                size: Some(bytes.number()?),
                mode: Some(u32::from(bytes.byte()?) << 4),
                ..SetAttributes::default()
            };
            let _ = fs.setattr(node, handle, set);
        }
        14 => {
            let (offset, length) = (bytes.number()?, bytes.number()?);
            let mode = i32::from(bytes.byte()?);
            if let Some(fh) = handle {
                let _ = fs.allocate(fh, (offset, length), mode);
            }
        }
        15 => {
            let (from, to, length) = (bytes.number()?, bytes.number()?, bytes.number()?);
            if let (Some(fh), Some(other)) = (handle, handles.first()) {
                let _ = fs.copy_range((fh, from), (*other, to), length);
            }
        }
        16 => {
            if let Some(fh) = handle {
                let _ = fs.flush(fh);
            }
        }
        17 => handles.extend(fs.open(node, i32::from(bytes.byte()?) << 6)),
        _ => {
            let _ = fs.list(node);
            let _ = fs.getattr(node, handle);
        }
    }
    Some(())
}

/// What is no name is never taken for one.
fn sane<T>(name: &[u8], outcome: &Result<T, Errno>) {
    let impossible = name.is_empty() || name.contains(&b'/') || name.contains(&0);
    assert!(!(impossible || name.len() > 255) || outcome.is_err());
}

/// Removes everything below a directory.
fn empty(fs: &Served, directory: u64) {
    for (name, ino) in fs.list(directory).expect("listed") {
        if fs.unlink(directory, &name).is_err() {
            empty(fs, ino);
            fs.rmdir(directory, &name).expect("it is empty");
        }
    }
}
