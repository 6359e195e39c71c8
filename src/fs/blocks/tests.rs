use super::super::budget::Budget;
use super::*;

const BIG: u64 = 1 << 40;

fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let byte = |at| (seed.wrapping_mul(31).wrapping_add(at as u64) % 251) as u8 + 1;
    (0..length).map(byte).collect()
}

fn written(length: usize, budget: &Arc<Budget>) -> (Blocks, Vec<u8>) {
    let text = bytes(7, length);
    let mut blocks = Blocks::zeroed(0, &budget.of(0)).unwrap();
    blocks.write(0, &text).unwrap();
    (blocks, text)
}

fn read(image: &Image, offset: u64, size: u32) -> Vec<u8> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let done = move |read: Result<&[u8], Errno>| sender.send(read.unwrap().to_vec()).unwrap();
    image.window(offset, size).give(Box::new(done));
    receiver.recv().unwrap()
}

#[track_caller]
fn expect(image: &Image, text: &[u8]) {
    assert!(image.parts().concat() == text);
    assert!(read(image, 0, u32::MAX) == text);
    let size = BLOCK + 4096;
    for offset in (0..=text.len() + BLOCK).step_by(BLOCK - 1000) {
        let start = offset.min(text.len());
        let end = (start + size).min(text.len());
        assert!(
            read(image, offset as u64, size as u32) == text[start..end],
            "{offset}"
        );
    }
}

#[test]
fn what_is_being_read_or_published_stays_as_it_was_whatever_is_changed() {
    let budget = Budget::new(BIG);
    let mut blocks = Blocks::zeroed(0, &budget.of(0)).unwrap();
    let mut text = Vec::new();
    let mut taken: Vec<(Image, Vec<u8>)> = Vec::new();
    let mut state = 1_u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        (state >> 33) as usize % below
    };
    let edges = [
        0,
        1,
        100,
        BLOCK - 1,
        BLOCK,
        BLOCK + 1,
        2 * BLOCK,
        3 * BLOCK + 5,
    ];
    for round in 0..600 {
        let at = match random(3) {
            0 => text.len(),
            1 => edges[random(edges.len())],
            _ => random(4 * BLOCK),
        };
        let length = match random(3) {
            0 => 1 + random(200),
            _ => edges[1 + random(edges.len() - 1)],
        };
        match random(8) {
            0 => {
                let size = at.min(5 * BLOCK);
                blocks.resize(size as u64).unwrap();
                text.resize(size, 0);
            }
            1 => {
                blocks.zero(at as u64, (at + length) as u64).unwrap();
                let end = (at + length).min(text.len());
                text[at.min(end)..end].fill(0);
            }
            2 if taken.len() > 2 => drop(taken.remove(random(taken.len()))),
            2 | 3 => taken.push((blocks.image().clone(), text.clone())),
            _ if at + length <= 6 * BLOCK => {
                let data = bytes(round, length);
                blocks.write(at as u64, &data).unwrap();
                text.resize(text.len().max(at + length), 0);
                text[at..at + length].copy_from_slice(&data);
            }
            _ => {}
        }
        assert_eq!(blocks.len(), text.len() as u64);
        expect(blocks.image(), &text);
        for (image, text) in &taken {
            expect(image, text);
        }
        assert!(budget.used() >= blocks.len());
    }
    drop(taken);
    assert_eq!(budget.used(), blocks.len());
    drop(blocks);
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_copy_is_of_what_is_written_alone_and_counts_as_long_as_it_is_there() {
    let budget = Budget::new(BIG);
    let length = 40 * BLOCK;
    let (mut blocks, mut text) = written(length, &budget);
    assert_eq!(budget.used(), length as u64);
    let image = blocks.image().clone();
    assert_eq!(budget.used(), length as u64);
    blocks.write(3 * BLOCK as u64 + 5, b"over").unwrap();
    blocks.write(3 * BLOCK as u64 + 9, b"written").unwrap();
    assert_eq!(budget.used(), (length + BLOCK) as u64);
    expect(&image, &text);
    text[3 * BLOCK + 5..3 * BLOCK + 16].copy_from_slice(b"overwritten");
    expect(blocks.image(), &text);
    drop(image);
    assert_eq!(budget.used(), length as u64);
    // A read shares the block, too, while it lasts.
    let window = blocks.image().window(0, 10);
    blocks.write(0, b"x").unwrap();
    assert_eq!(budget.used(), (length + BLOCK) as u64);
    drop(window);
    assert_eq!(budget.used(), length as u64);
}

#[test]
fn a_change_that_has_no_room_for_its_copies_changes_nothing() {
    let length = 3 * BLOCK - 100;
    // An eighth of the limit is kept for others.
    let budget = Budget::new((length + BLOCK + 150) as u64 * 8 / 7);
    let (mut blocks, mut text) = written(length, &budget);
    let image = blocks.image().clone();
    let full = Err(Errno(libc::ENOSPC));
    let data = bytes(9, BLOCK + 300);
    // Two blocks, then the last one and the bytes to add.
    assert_eq!(blocks.write(0, &data[..BLOCK + 1]), full);
    assert_eq!(blocks.write(length as u64 - 50, &data[..220]), full);
    assert_eq!(blocks.write(length as u64 - 10, &data[..BLOCK + 300]), full);
    assert_eq!(blocks.zero(10, length as u64), full);
    assert_eq!(blocks.len(), length as u64);
    expect(blocks.image(), &text);
    expect(&image, &text);
    blocks.write(1, &data[..BLOCK - 1]).unwrap();
    text[1..BLOCK].copy_from_slice(&data[..BLOCK - 1]);
    // Cutting a shared block needs a copy, too.
    assert_eq!(blocks.resize(length as u64 - 200), full);
    expect(blocks.image(), &text);
    drop(image);
    blocks.write(0, &data[..BLOCK + 1]).unwrap();
    blocks.resize(length as u64 - 200).unwrap();
    assert_eq!(budget.used(), length as u64 - 200);
}

#[test]
fn a_small_content_takes_little_memory_and_growing_moves_no_other_block() {
    let budget = Budget::new(BIG);
    let (mut blocks, _) = written(32, &budget);
    let room = |blocks: &Blocks, index: usize| {
        let block: Option<&Arc<Block>> = blocks.image.slots[index].as_ref();
        block.map(|block| (block.bytes.as_ptr(), block.bytes.capacity()))
    };
    assert!(room(&blocks, 0).is_some_and(|(_, room)| room == 64));
    blocks.write(32, &bytes(1, 4 * BLOCK)).unwrap();
    let before: Vec<_> = (0..4).map(|index| room(&blocks, index)).collect();
    for _ in 0..BLOCK / 50 {
        blocks.write(blocks.len(), &[b'x'; 100]).unwrap();
    }
    let after: Vec<_> = (0..4).map(|index| room(&blocks, index)).collect();
    assert_eq!(before, after);
    assert!(after.iter().flatten().all(|(_, room)| *room >= BLOCK));
}

#[test]
fn what_is_zero_takes_no_memory_and_counts_all_the_same() {
    let budget = Budget::new(BIG);
    let mut blocks = Blocks::zeroed(0, &budget.of(0)).unwrap();
    blocks.resize(8 << 30).unwrap();
    assert!(blocks.image.slots.iter().all(Option::is_none));
    assert_eq!(budget.used(), 8 << 30);
    blocks.write(4 << 30, b"in the middle").unwrap();
    assert_eq!(blocks.image.slots.iter().flatten().count(), 1);
    assert_eq!(budget.used(), 8 << 30);
    assert_eq!(read(blocks.image(), (4 << 30) - 2, 8), b"\0\0in the");
    blocks.resize(5).unwrap();
    assert_eq!(budget.used(), 5);
    assert_eq!(read(blocks.image(), 0, 8), [0; 5]);
}
