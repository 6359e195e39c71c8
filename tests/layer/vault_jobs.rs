//! Transactions of several jobs: one that fails leaves nothing, wherever it stands among others,
//! and the sums over the vault stay right.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{FileFailurePersistence, TestRunner};
use secretfs::store::Durability;
use secretfs::vault::{
    AttributeChange, Content, Job, Kind, NodeBody, NothingOpen, OpenFiles, Publication, ROOT,
    RenameMode, Tx, Vault, VaultError,
};

use crate::support::layer::{Layer, new_node};
use crate::support::rotating::reencrypt;

const CASES: u32 = 25;

/// A name, in the root or in one of two directories.
type Place = (u8, u8);

#[derive(Clone, Debug)]
enum What {
    Create(Place, Kind),
    Link(Place, Place),
    Unlink(Place),
    Rmdir(Place),
    Rename(Place, Place, RenameMode),
    Mode(Place, u32),
    SetXattr(Place, u8, usize),
    RemoveXattr(Place, u8),
    Publish(Place, usize, bool, Publication),
    Reap(Place),
}

#[derive(Clone, Debug)]
struct Task {
    what: What,
    /// Everything is open meanwhile.
    open: bool,
    /// It gives up after all is done.
    fails: bool,
}

struct AllOpen;

impl OpenFiles for AllOpen {
    fn is_open_or_dying(&self, _node: u64) -> bool {
        true
    }
}

fn task() -> impl Strategy<Value = Task> {
    let place = || (0u8..3, 0u8..4);
    let kind = select(
        &[
            Kind::File,
            Kind::File,
            Kind::Directory,
            Kind::Symlink,
            Kind::Fifo,
        ][..],
    );
    let mode = select(
        &[
            RenameMode::Replace,
            RenameMode::NoReplace,
            RenameMode::Exchange,
        ][..],
    );
    let size = select(&[0usize, 1, 256, 65_536, 65_537, 140_000][..]);
    let how = select(&[Publication::Replacement, Publication::InPlace][..]);
    let what = prop_oneof![
        5 => (place(), kind).prop_map(|(p, k)| What::Create(p, k)),
        2 => (place(), place()).prop_map(|(n, p)| What::Link(n, p)),
        3 => place().prop_map(What::Unlink),
        1 => place().prop_map(What::Rmdir),
        4 => (place(), place(), mode).prop_map(|(f, t, m)| What::Rename(f, t, m)),
        1 => (place(), 0u32..0o10000).prop_map(|(p, m)| What::Mode(p, m)),
        2 => (place(), 0u8..3, select(&[1usize, 30_000, 70_000][..]))
            .prop_map(|(p, x, s)| What::SetXattr(p, x, s)),
        1 => (place(), 0u8..3).prop_map(|(p, x)| What::RemoveXattr(p, x)),
        5 => (place(), size, any::<bool>(), how)
            .prop_map(|(p, s, keep, how)| What::Publish(p, s, keep, how)),
        1 => place().prop_map(What::Reap),
    ];
    let seldom = || prop::bool::weighted(0.3);
    (what, seldom(), seldom()).prop_map(|(what, open, fails)| Task { what, open, fails })
}

fn name(number: u8) -> [u8; 1] {
    [b'a' + number]
}

/// Where names were before a transaction; 0 stands for nowhere.
struct Places(Vec<(u64, Vec<u64>)>);

impl Places {
    fn of(vault: &Vault) -> Self {
        let directories = [b"d0", b"d1"].map(|name| vault.lookup(ROOT, name).unwrap().id);
        let inside = |directory| {
            let ids = (0..4).map(|n| vault.lookup(directory, &name(n)).map_or(0, |n| n.id));
            (directory, ids.collect())
        };
        Self([ROOT].into_iter().chain(directories).map(inside).collect())
    }

    fn directory(&self, (directory, _): Place) -> u64 {
        self.0[usize::from(directory)].0
    }

    /// The node that was there, `NotFound` when none was.
    fn node(&self, (directory, name): Place) -> Result<u64, VaultError> {
        match self.0[usize::from(directory)].1[usize::from(name)] {
            0 => Err(VaultError::NotFound),
            id => Ok(id),
        }
    }
}

fn work(tx: &mut Tx<'_>, task: &Task, places: &Places) -> Result<(), VaultError> {
    let open: &dyn OpenFiles = if task.open { &AllOpen } else { &NothingOpen };
    let directory = |place| places.directory(place);
    match &task.what {
        What::Create(at, kind) => {
            tx.create(directory(*at), &name(at.1), &new_node(*kind, 0o755))?;
        }
        What::Link(node, at) => tx.link(places.node(*node)?, directory(*at), &name(at.1))?,
        What::Unlink(at) => drop(tx.unlink(directory(*at), &name(at.1), open)?),
        What::Rmdir(at) => drop(tx.rmdir(directory(*at), &name(at.1), open)?),
        What::Rename(from, to, mode) => {
            let (old, new) = (name(from.1), name(to.1));
            tx.rename(
                (directory(*from), &old),
                (directory(*to), &new),
                *mode,
                open,
            )?;
        }
        What::Mode(node, mode) => {
            let change = AttributeChange {
                mode: Some(*mode),
                ..AttributeChange::default()
            };
            tx.set_attributes(places.node(*node)?, &change)?;
        }
        What::SetXattr(node, number, size) => {
            let (node, value) = (places.node(*node)?, vec![7; *size]);
            tx.set_xattr(node, &name(*number), &value, (false, false))?;
        }
        What::RemoveXattr(node, number) => tx.remove_xattr(places.node(*node)?, &name(*number))?,
        What::Publish(node, size, keep, how) => {
            let (node, content) = (places.node(*node)?, vec![*size as u8; *size]);
            let keep: &[u64] = if *keep { &[1, 2, 3, 4, 5] } else { &[] };
            tx.publish(node, &content, *how, None, keep)?;
        }
        What::Reap(node) => tx.reap(places.node(*node)?, &[], open)?,
    }
    match task.fails {
        true => Err(VaultError::NotPermitted),
        false => Ok(()),
    }
}

/// Runs all tasks in one transaction; tells which of them were done.
fn transact(vault: &Vault, tasks: &[Task]) -> Vec<bool> {
    let places = Places::of(vault);
    let mut runs: Vec<_> = tasks
        .iter()
        .map(|task| |tx: &mut Tx<'_>| work(tx, task, &places))
        .collect();
    let mut jobs: Vec<Job<'_>> = runs.iter_mut().map(|run| run as Job<'_>).collect();
    let outcomes = vault.transact(Durability::Soon, &mut jobs).unwrap();
    outcomes.iter().map(Result::is_ok).collect()
}

/// All that can be seen of a vault but numbers of nodes and times.
fn view(vault: &Vault, directory: u64, path: &str, seen: &mut Vec<String>) {
    for entry in vault.list(directory, None, 1000, false).unwrap().entries {
        let node = vault.node(entry.node).unwrap();
        let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
        let a = &node.attributes;
        let xattrs: Vec<_> = a.xattrs.iter().map(|(n, v)| (n, v.len())).collect();
        let body = match &a.body {
            NodeBody::File(file) => {
                let content = match vault.content(node.id, u64::MAX).unwrap().1 {
                    Content::Whole { bytes, .. } => Some((bytes.len(), bytes.first().copied())),
                    _ => None,
                };
                format!("{file:?} {content:?}")
            }
            NodeBody::Directory(directory) => format!("{}", directory.entries),
            other => format!("{other:?}"),
        };
        let links = node.visible_links();
        let shown = format!(
            "{path} {:?} {:o} {links} {xattrs:?} {body}",
            node.kind, a.mode
        );
        seen.push(shown);
        if node.kind == Kind::Directory {
            view(vault, node.id, &path, seen);
        }
    }
}

fn seen(vault: &Vault) -> (Vec<String>, u64, u64, usize) {
    let mut seen = Vec::new();
    view(vault, ROOT, "", &mut seen);
    seen.sort();
    let state = vault.state();
    let orphans = vault.orphans(None, 1000).unwrap().len();
    (seen, state.nodes, state.versions, orphans)
}

/// Every row of every table.
fn rows(layer: &Layer) -> Vec<String> {
    use rusqlite::{Connection, OpenFlags, types::Value};
    let path = layer.vault().join("vault.db");
    let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let texts = |sql: &str| -> Vec<String> {
        let mut statement = database.prepare(sql).unwrap();
        let columns = statement.column_count();
        let row = |row: &rusqlite::Row<'_>| {
            let values = (0..columns).map(|i| row.get::<_, Value>(i).unwrap());
            Ok(values
                .map(|value| format!("{value:?}|"))
                .collect::<String>())
        };
        let rows = statement.query_map([], row).unwrap();
        rows.map(Result::unwrap).collect()
    };
    let tables = texts("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name");
    let name = |table: &String| {
        table
            .trim_start_matches("Text(\"")
            .trim_end_matches("\")|")
            .to_owned()
    };
    let mut all = Vec::new();
    for table in tables.iter().map(name) {
        let mut rows = texts(&format!("SELECT * FROM \"{table}\""));
        rows.sort();
        all.extend(rows.into_iter().map(|row| format!("{table}: {row}")));
    }
    all
}

fn founded() -> (Layer, Vault) {
    let layer = Layer::in_memory();
    let vault = Vault::open(&layer.vault(), &layer.options()).unwrap();
    for name in [b"d0", b"d1"] {
        let mut job = |tx: &mut Tx<'_>| {
            tx.create(ROOT, name, &new_node(Kind::Directory, 0o755))
                .map(drop)
        };
        vault.transact(Durability::Soon, &mut [&mut job]).unwrap();
    }
    (layer, vault)
}

/// How many directories have names under two keys.
fn under_way(vault: &Vault) -> usize {
    let Places(directories) = Places::of(vault);
    let has_two = |(id, _): &&(u64, _)| {
        let node = vault.node(*id).unwrap();
        let remainder = &node.directory().unwrap().remainder;
        let left = remainder.as_ref().map_or(0, |remainder| remainder.entries);
        0 < left && left < node.directory().unwrap().entries
    };
    directories.iter().filter(has_two).count()
}

/// Whether the sums over the vault are being made anew: the system node has two keys.
fn is_summing(layer: &Layer) -> bool {
    let database = rusqlite::Connection::open(layer.vault().join("vault.db")).unwrap();
    let sql = "SELECT length(value) FROM node WHERE id = 0";
    let length: i64 = database.query_row(sql, [], |row| row.get(0)).unwrap();
    length > 1 + 8 + 72 + 8 + (24 + 256 + 16)
}

/// `check` may come after any transaction, beside a mount or after its death.
fn whole(layer: &Layer) {
    let report = layer.check();
    assert_eq!(report.problem_count, 0, "{:?}", report.problems);
}

/// Plays them, and tells how often directories had names under two keys meanwhile, and how often the
/// sums over the vault were being made anew.
fn play(transactions: &[Vec<Task>], reencrypts: bool) -> [usize; 2] {
    let ((layer, vault), (other_layer, other)) = (founded(), founded());
    let mut found = [0; 2];
    for (round, tasks) in transactions.iter().enumerate() {
        if reencrypts {
            // Now and then hardly further than to the first names.
            reencrypt(&vault, 1 + 4 * (round % 4) as u32);
            found[0] += under_way(&vault);
            found[1] += usize::from(is_summing(&layer));
        }
        let before = rows(&layer);
        let done = transact(&vault, tasks);
        if !done.contains(&true) {
            assert!(
                rows(&layer) == before,
                "jobs that failed have left something"
            );
        }
        vault.recount().unwrap();
        whole(&layer);
        // The same without those that failed comes to the same.
        let succeeded = tasks.iter().zip(&done).filter(|(_, done)| **done);
        let succeeded: Vec<_> = succeeded.map(|(task, _)| task.clone()).collect();
        let all_done = transact(&other, &succeeded);
        assert!(!all_done.contains(&false), "they succeeded beside failures");
        assert_eq!(seen(&vault), seen(&other));
    }
    if reencrypts {
        reencrypt(&vault, u32::MAX);
        assert_eq!((vault.is_rotating(), under_way(&vault)), (false, 0));
        assert_eq!(seen(&vault), seen(&other));
    }
    drop((vault, other));
    for layer in [layer, other_layer] {
        whole(&layer);
        layer.open().finish();
        whole(&layer);
    }
    found
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok();
    ProptestConfig {
        cases: cases.and_then(|n| n.parse().ok()).unwrap_or(CASES),
        max_shrink_iters: 400,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource(
            "proptest-regressions",
        ))),
        source_file: Some(file!()),
        ..ProptestConfig::default()
    }
}

#[test]
fn a_file_that_goes_before_its_old_versions_were_reaped_is_no_problem_for_a_check() {
    let (layer, vault) = founded();
    let task = |what| Task {
        what,
        open: false,
        fails: false,
    };
    let at = (0, 0);
    let publish = |keep| task(What::Publish(at, 10, keep, Publication::Replacement));
    for what in [
        task(What::Create(at, Kind::File)),
        publish(false),
        publish(true),
        task(What::Unlink(at)),
    ] {
        assert_eq!(transact(&vault, &[what]), [true]);
        whole(&layer);
    }
    assert!(vault.orphans(None, 1).unwrap().is_empty());
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_job_that_fails_leaves_nothing_and_the_others_are_done(
        transactions in prop::collection::vec(prop::collection::vec(task(), 1..6), 1..12)
    ) {
        play(&transactions, false);
    }
}

#[test]
fn jobs_do_the_same_while_names_move_and_sums_are_made_anew() {
    let found = Cell::new([0; 2]);
    let transactions = prop::collection::vec(prop::collection::vec(task(), 1..6), 4..12);
    let played = TestRunner::new(config()).run(&transactions, |transactions| {
        let [moving, summing] = play(&transactions, true);
        found.update(|[m, s]| [m + moving, s + summing]);
        Ok(())
    });
    played.unwrap();
    println!("{found:?}");
    assert!(found.get().iter().all(|times| *times > 0), "{found:?}");
}
