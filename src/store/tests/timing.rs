//! What a transaction costs. Prints, judges nothing: run with `--ignored --nocapture`.

use std::time::Instant;

use super::*;

#[test]
#[ignore = "measures"]
fn what_transactions_cost() {
    let vault = Vault::new();
    let store = vault.writer();
    put(&store, |tx| {
        for id in 1..20_000 {
            tx.put_node(id, &record(1, &[7; 400]))?;
            tx.insert_version(id, 1, &record(1, &[7; 150]), &mut chunks(&[300]))?;
        }
        Ok(())
    })
    .unwrap();
    let time = |what: &str, runs: u32, run: &mut dyn FnMut(u64)| {
        (1..=u64::from(runs / 10)).for_each(&mut *run);
        let start = Instant::now();
        (1..=u64::from(runs)).for_each(run);
        println!("{what}: {:?}", start.elapsed() / runs);
    };
    time("read, one node, always the same", 50_000, &mut |_| {
        get(&store, |tx| tx.node(77)).unwrap().unwrap();
    });
    time("read, one node of 20,000", 50_000, &mut |i| {
        get(&store, |tx| tx.node(1 + i * 7919 % 19_999))
            .unwrap()
            .unwrap();
    });
    time(
        "read, node, version and first chunk of 20,000",
        50_000,
        &mut |i| {
            let id = 1 + i * 7919 % 19_999;
            get(&store, |tx| {
                tx.node(id)?;
                tx.version_and_first_chunk(id, 1)
            })
            .unwrap()
            .unwrap();
        },
    );
    time("foreign_changes", 50_000, &mut |_| {
        store.foreign_changes().unwrap();
    });
    for (what, durability) in [("Soon", Durability::Soon), ("Now", Durability::Now)] {
        time(
            &format!("write {what}, one node and the state"),
            2_000,
            &mut |i| {
                write(&store, durability, |tx: &mut dyn Write| {
                    tx.put_state(&i.to_be_bytes())?;
                    tx.put_node(1 + i, &record(2, &[i as u8; 400]))
                })
                .unwrap();
            },
        );
    }
    time("sync with nothing to do", 10_000, &mut |_| {
        store.sync().unwrap()
    });
    time("write Soon and sync", 1_000, &mut |i| {
        write(&store, Durability::Soon, |tx: &mut dyn Write| {
            tx.put_state(&i.to_be_bytes())
        })
        .unwrap();
        store.sync().unwrap();
    });
    let reader = vault.reader();
    time("read in a read-only store, one node", 50_000, &mut |i| {
        get(&reader, |tx| tx.node(1 + i * 7919 % 19_999))
            .unwrap()
            .unwrap();
    });
    time("foreign_changes in a read-only store", 50_000, &mut |_| {
        reader.foreign_changes().unwrap();
    });
    time("open and close for reading", 200, &mut |_| {
        drop(vault.reader())
    });
}
