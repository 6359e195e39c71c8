//! What the kernel keeps of contents in its page cache, and for how long.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use crate::support::cache::{Frames, Watch, sent};
use crate::support::process::{Place, wait_for};

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
    for size in [1000, 300 << 10] {
        let path = place.point().join(format!("secret of {size}"));
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

/// What puts pages of a file into the cache that a watch has open. Nobody else has it open: that
/// would be a close that drops pages, too, sooner or later.
type Reader = fn(&Watch);

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
    let sendfile: Reader = |watch| {
        assert!(sent(&watch.file, SIZE) == vec![b'a'; SIZE]);
        assert_eq!(watch.cached(), watch.pages());
    };
    let mmap: Reader = |watch| {
        assert_eq!(watch.cached(), 0);
        assert_eq!(watch.read(0), b'a');
    };
    let memory = Frames::of_this_machine();
    for (what, reader) in [("sendfile", sendfile), ("mmap", mmap)] {
        let mut left: Vec<usize> = (0..SIZE / 4096).collect();
        // A frame that is given back may hold a page of another file at once; not that of the same
        // page again and again.
        for _ in 0..10 {
            let watch = Watch::of(&path, SIZE);
            reader(&watch);
            let frames = watch.frames();
            assert!(frames.iter().all(|frame| memory.holds_a_page(*frame)));
            drop(watch);
            let deadline = Instant::now() + Duration::from_secs(2);
            while !left.is_empty() && Instant::now() < deadline {
                left.retain(|page| memory.holds_a_page(frames[*page]));
            }
            if left.is_empty() {
                break;
            }
        }
        assert!(left.is_empty(), "{what}: pages {left:?} are left");
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
