//! Random requests.

use libc::{O_APPEND, O_EXCL, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use secretfs::vault::{Kind, RenameMode};

use super::{At, End, LIMITS, Place, Process, Request, Run, SIZES, Set};

fn at() -> impl Strategy<Value = At> {
    let name = prop_oneof![60 => 0u8..4, 6 => 4u8..8];
    (any::<Index>(), name).prop_map(|(directory, name)| At(directory, name))
}

fn place() -> impl Strategy<Value = Place> {
    let fixed = select(&SIZES[..]).prop_map(Place::Fixed);
    prop_oneof![3 => Just(Place::Fixed(0)), 3 => fixed, 2 => Just(Place::End)]
}

fn process() -> impl Strategy<Value = Process> {
    prop_oneof![
        6 => Just(Process::This),
        2 => Just(Process::Other),
        1 => Just(Process::Unseen),
    ]
}

fn size() -> impl Strategy<Value = u64> {
    select(&SIZES[..])
}

fn uid() -> impl Strategy<Value = u32> {
    prop_oneof![4 => Just(0u32), 1 => Just(1000u32)]
}

fn mode() -> impl Strategy<Value = u32> {
    select(
        &[
            0o600, 0o644, 0o755, 0o4755, 0o2755, 0o6711, 0o2644, 0o1777, 0,
        ][..],
    )
}

fn open_flags() -> impl Strategy<Value = i32> {
    let access = select(&[O_RDONLY, O_RDONLY, O_WRONLY, O_RDWR][..]);
    let truncate = prop_oneof![2 => Just(0), 1 => Just(O_TRUNC)];
    let append = prop_oneof![4 => Just(0), 1 => Just(O_APPEND)];
    (access, truncate, append).prop_map(|(access, truncate, append)| access | truncate | append)
}

fn contents() -> impl Strategy<Value = Request> {
    use Request::*;
    let i = any::<Index>;
    let writer = || (process(), prop::bool::weighted(0.1));
    prop_oneof![
        8 => (i(), open_flags(), process(), uid()).prop_map(|(f, o, p, u)| Open(f, o, p, u)),
        12 => (i(), place(), size(), any::<u8>(), writer())
            .prop_map(|(h, p, s, seed, w)| Write(h, p, s, seed, w)),
        10 => (i(), place(), prop_oneof![size(), Just(100), Just(4096)], process())
            .prop_map(|(h, p, s, by)| Read(h, p, s, by)),
        5 => i().prop_map(ReadWhole),
        8 => (i(), process(), 1u64..4).prop_map(|(h, p, o)| Flush(h, p, o)),
        2 => i().prop_map(Fsync),
        6 => i().prop_map(Release),
        2 => (i(), size(), uid()).prop_map(|(f, s, u)| Truncate(f, s, u)),
        3 => (i(), size(), uid()).prop_map(|(h, s, u)| TruncateHandle(h, s, u)),
        4 => (i(), process()).prop_map(|(n, p)| Stat(n, p)),
        5 => i().prop_map(StatHandle),
        2 => (i(), (size(), size().prop_map(|s| s.max(1))), select(&[0, 1, 3, 0x10, 0x11, 8][..]))
            .prop_map(|(h, r, m)| Allocate(h, r, m)),
        2 => ((i(), place()), (i(), place()), size()).prop_map(|(f, t, s)| Copy(f, t, s)),
        1 => (i(), size(), any::<bool>()).prop_map(|(h, o, b)| Seek(h, o, b)),
    ]
}

fn names() -> impl Strategy<Value = Request> {
    use Request::*;
    let i = any::<Index>;
    let kind = select(
        &[
            Kind::File,
            Kind::Directory,
            Kind::Directory,
            Kind::Directory,
            Kind::Symlink,
            Kind::Fifo,
            Kind::Socket,
            Kind::CharDevice,
            Kind::BlockDevice,
        ][..],
    );
    let exclusive = prop_oneof![Just(0), Just(O_EXCL)];
    let modes = select(
        &[
            RenameMode::Replace,
            RenameMode::Replace,
            RenameMode::NoReplace,
            RenameMode::Exchange,
        ][..],
    );
    let times = || prop::option::of(select(&[-1i64, 0, 1_700_000_000, 4_000_000_000][..]));
    let owner = || prop::option::of(0u32..3);
    let set = prop_oneof![
        mode().prop_map(Set::Mode),
        (owner(), owner()).prop_map(|(u, g)| Set::Owner(u, g)),
        (times(), times()).prop_map(|(a, m)| Set::Times(a, m)),
    ];
    prop_oneof![
        8 => (at(), mode(), open_flags(), exclusive, process())
            .prop_map(|(a, m, f, e, p)| Create(a, m, f | e, p)),
        5 => (at(), kind, mode()).prop_map(|(a, k, m)| Make(a, k, m)),
        4 => at().prop_map(Lookup),
        4 => (i(), at()).prop_map(|(n, a)| Link(n, a)),
        6 => (at(), prop::bool::weighted(0.3)).prop_map(|(a, d)| Remove(a, d)),
        8 => (at(), at(), modes).prop_map(|(f, t, m)| Rename(f, t, m)),
        4 => (i(), set, uid()).prop_map(|(n, s, u)| Change(n, s, u)),
        3 => (i(), 0u8..6, select(&[0usize, 1, 200, 20_000, 40_000, 65_536][..]),
            select(&[0, 0, libc::XATTR_CREATE, libc::XATTR_REPLACE][..]))
            .prop_map(|(n, x, s, f)| SetXattr(n, x, s, f)),
        1 => (i(), 0u8..6).prop_map(|(n, x)| RemoveXattr(n, x)),
        2 => (i(), 0u8..6).prop_map(|(n, x)| Xattrs(n, x)),
        1 => i().prop_map(OpenDirectory),
        2 => (i(), 1usize..4).prop_map(|(d, n)| ReadDirectory(d, n)),
        1 => i().prop_map(CloseDirectory),
        2 => (i(), 1usize..5, any::<bool>()).prop_map(|(d, n, s)| List(d, n, s)),
    ]
}

pub(super) fn run() -> impl Strategy<Value = Run> {
    let reencrypt = (1u32..8).prop_map(Request::Reencrypt);
    let request = prop_oneof![90 => contents(), 30 => names(), 2 => reencrypt];
    let end = select(&[End::Orderly, End::Aborted, End::Crash][..]);
    let limits = select(&LIMITS[..]);
    (limits, prop::collection::vec(request, 1..60), end).prop_map(|(limits, requests, end)| Run {
        limits,
        requests,
        end,
    })
}
