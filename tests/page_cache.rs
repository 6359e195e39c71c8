//! What the kernel keeps of contents in its page cache, and for how long.

mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use support::cache::{Watch, holds_a_page, sent};
use support::process::{Place, wait_for};

const SOON: Duration = Duration::from_secs(20);
const SIZE: usize = 400 << 10;

fn mounted() -> Place {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    place
}

fn unmounted_and_clean(place: &Place) {
    for command in ["umount", "check"] {
        let at = match command {
            "umount" => place.point(),
            _ => place.vault(),
        };
        place.run([command.as_ref(), at.as_os_str()]).succeeded();
    }
}

#[test]
fn nothing_that_read_returns_is_in_the_page_cache() {
    let place = mounted();
    let path = place.point().join("secret");
    for size in [1000, 300 << 10] {
        std::fs::write(&path, vec![b'a'; size]).expect("written");
        let watch = Watch::of(&path, size);
        let mut reader = File::open(&path).expect("open");
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).expect("read");
        assert!(bytes == vec![b'a'; size]);
        assert_eq!(watch.cached(), 0);
        // What is there would be seen.
        assert!(sent(&reader, size) == bytes);
        assert_eq!(watch.cached(), watch.pages());
    }
    unmounted_and_clean(&place);
}

/// What puts pages of a file into the cache that a watch has open.
type Reader = fn(&Path, &Watch);

#[test]
fn what_sendfile_and_mmap_put_into_the_page_cache_goes_with_the_last_close() {
    let place = mounted();
    let path = place.point().join("secret");
    std::fs::write(&path, vec![b'a'; SIZE]).expect("written");
    // Holds the kernel's node, so that it is not forgotten with all its pages; opens nothing.
    let node = File::options()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(&path)
        .expect("found");
    let sendfile: Reader = |path, watch| {
        let reader = File::open(path).expect("open");
        assert!(sent(&reader, SIZE) == vec![b'a'; SIZE]);
        assert_eq!(watch.cached(), watch.pages());
    };
    let mmap: Reader = |_, watch| {
        assert_eq!(watch.cached(), 0);
        assert_eq!(watch.read(0), b'a');
    };
    for (what, reader) in [("sendfile", sendfile), ("mmap", mmap)] {
        let mut left = BTreeSet::new();
        // A frame that is given back may hold a page of another file at once; not all of them
        // again and again.
        let gone = (0..10).any(|_| {
            let watch = Watch::of(&path, SIZE);
            reader(&path, &watch);
            left = watch.frames().into_iter().collect();
            assert_eq!(left.len(), watch.pages());
            assert!(left.iter().all(|frame| holds_a_page(*frame)));
            drop(watch);
            let deadline = Instant::now() + Duration::from_secs(2);
            while !left.is_empty() && Instant::now() < deadline {
                left.retain(|frame| holds_a_page(*frame));
            }
            left.is_empty()
        });
        assert!(gone, "{what}: {} pages are left", left.len());
    }
    drop(node);
    unmounted_and_clean(&place);
}

#[test]
fn pages_of_a_replaced_content_go_although_they_are_mapped() {
    let place = mounted();
    let path = place.point().join("secret");
    std::fs::write(&path, vec![b'a'; SIZE]).expect("written");
    let watch = Watch::of(&path, SIZE);
    assert_eq!(watch.read(watch.pages() - 1), b'a');
    assert!(watch.cached() > 0);
    std::fs::write(&path, vec![b'b'; SIZE]).expect("replaced");
    wait_for("the old pages to go", SOON, || watch.cached() == 0);
    drop(watch);
    unmounted_and_clean(&place);
}
