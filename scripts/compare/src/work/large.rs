//! Reads a large file from its beginning to its end.

use std::fs::File;
use std::io::{Read, Write};
use std::time::Instant;

use super::read::end;
use crate::Failure;
use crate::bench::{Bench, Row, Target, Unit};
use crate::content::{fill, is_right};
use crate::kind::Kind;
use crate::mounted::Mounted;

const LENGTH: usize = 64 << 20;
const NUMBER: u64 = 64;

pub fn measure(bench: &mut Bench) -> Result<(), Failure> {
    let targets = [Target::TimesAsFast(Kind::GocryptfsX, 1.0)];
    let what = "open and read a file of 64 MiB to its end, by 128 KiB";
    let mut row = Row::new("large", what, Unit::MegabytesPerSecond, &targets);
    let mut content = vec![0; LENGTH];
    fill(NUMBER, &mut content);
    let mut kinds = bench.kinds(&Kind::ALL);
    // What is only read has no use for a database.
    kinds.retain(|kind| *kind != Kind::FloorSqlite);
    let mut mounts = Vec::new();
    for kind in kinds {
        let mounted = bench.empty(kind, "large")?.mount_for(true)?;
        let path = mounted.point.join("large");
        if !path.exists() {
            let mut file = File::create(path)?;
            file.write_all(&content)?;
            file.sync_all()?;
        }
        mounted.settle()?;
        mounts.push(mounted);
    }
    bench.each_round(row.name, bench.rounds, &mut mounts, |_, mounted, _| {
        let seconds = read(mounted, &mut content)?;
        row.add(mounted.kind, LENGTH as f64 / 1e6 / seconds);
        Ok(())
    })?;
    bench.rows.push(row);
    end(mounts)
}

fn read(mounted: &Mounted, buffer: &mut [u8]) -> Result<f64, Failure> {
    buffer.fill(0);
    let start = Instant::now();
    let mut file = File::open(mounted.point.join("large"))?;
    let mut length = 0;
    while length < buffer.len() {
        let end = buffer.len().min(length + 128 * 1024);
        match file.read(&mut buffer[length..end])? {
            0 => break,
            more => length += more,
        }
    }
    drop(file);
    let took = start.elapsed().as_secs_f64();
    if length == LENGTH && is_right(NUMBER, buffer, LENGTH) {
        Ok(took)
    } else {
        let name = mounted.kind.name();
        Err(Failure(format!("{name}: wrong content of the large file")))
    }
}
