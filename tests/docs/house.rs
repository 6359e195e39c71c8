//! The plan of the house, and that the sources keep to it: which room stands above which, who may know
//! what of the world outside, in how many files a type may be written, and how long a file may be.

mod reader;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use reader::{House, Import};

/// The rooms, from the top floor down. A room imports only from floors below its own, never from its own.
const FLOORS: &[&[&str]] = &[
    &["cli"],
    &["daemon"],
    &["control"],
    &["fs"],
    &["vault"],
    &["keyring", "config"],
    &["kms"],
    &["aws", "crypto", "store"],
    &["codec", "error", "manual", "os", "sync"],
];

/// Files without a room: where the program and the library begin.
const DOORS: &[&str] = &["lib.rs", "main.rs"];

/// Who may name which crates: files, or folders with a slash at the end.
const FUSER: &[&str] = &["fs/transport/"];
const RUSQLITE: &[&str] = &["store/sqlite/"];
const TOKIO_AND_AWS: &[&str] = &["aws/", "kms/"];

/// Files above the store that may speak of what is behind its door, each with the reason.
const TALKS_OF_SQLITE: &[(&str, &str)] = &[];

/// Files that may name a lock of the standard library, which has no rank and whose order nobody checks.
const LOCKS_WITHOUT_RANK: &[(&str, &str)] = &[
    ("sync.rs", "ranked locks are made of them"),
    (
        "daemon/panics.rs",
        "the panic hook takes one whatever is held",
    ),
];

/// Files that still import from each other in a circle. A list to be emptied: who takes part no longer
/// must be taken off it, and nobody may be put on it.
const IN_CIRCLES: &[&str] = &[];

/// Most files in which the functions of one type are written: one, and another for how it is made, or for
/// what is asked of it from outside. What a third would add is a type or a function of its own.
const MOST_FILES: usize = 2;

/// Most lines of a file.
const LONGEST: usize = 500;

/// Files that are longer, with as many lines as each may have: to be split, and never to grow.
const LONGER: &[(&str, usize)] = &[("kms/local/tests.rs", 557), ("vault/tests.rs", 683)];

fn house() -> House {
    House::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

/// A house of these files, for planting a fault.
fn built_of(files: &[(&str, &str)]) -> House {
    House::of(
        files
            .iter()
            .map(|(path, text)| ((*path).into(), (*text).into())),
    )
}

/// The room that a file is in: its folder, or itself.
fn room_of(path: &str) -> &str {
    let room = path.split('/').next().unwrap_or(path);
    room.strip_suffix(".rs").unwrap_or(room)
}

fn floor_of(path: &str) -> Option<usize> {
    let room = room_of(path);
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// Imports that do not lead to a lower floor, and files that stand on none.
fn not_downward(house: &House) -> Vec<String> {
    let is_inside = |import: &Import| room_of(&import.from) == room_of(&import.to);
    let wrong = |import: &Import| {
        // The list begins at the top.
        let above = floor_of(&import.from).zip(floor_of(&import.to));
        !is_inside(import) && above.is_none_or(|(from, to)| from >= to)
    };
    let homeless = house
        .lengths()
        .filter(|(path, _)| floor_of(path).is_none() && !DOORS.contains(path))
        .map(|(path, _)| format!("{path} is in no room of the plan"));
    let imports = house.imports().into_iter().filter(wrong);
    let imports = imports.map(|one| format!("{} imports {} from {}", one.from, one.name, one.to));
    homeless.chain(imports).collect()
}

#[test]
fn imports_point_only_downward() {
    let house = house();
    assert!(house.imports().len() > 1000, "the reader sees too little");
    let wrong = not_downward(&house);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn an_import_that_points_up_or_sideways_is_seen_in_whatever_form() {
    let vault = ("vault/mod.rs", "mod tx; pub use tx::Tx; pub fn open() {}");
    let tx = ("vault/tx.rs", "pub struct Tx;");
    for text in [
        "use crate::vault::Tx;",
        "use crate::{codec, vault::{self, Tx as Other}};",
        "use crate::vault; fn f() { vault::open() }",
        "fn f() -> super::vault::Tx { loop {} }",
        "fn f() { println!(\"{}\", [crate::vault::open()].len()) }",
        "fn f() { use crate::vault::Tx; }",
    ] {
        let house = built_of(&[vault, tx, ("crypto/mod.rs", text)]);
        assert_eq!(not_downward(&house).len(), 1, "{text}");
    }
    let sideways = [
        ("crypto/mod.rs", "use crate::store::f;"),
        ("store/mod.rs", "pub fn f() {}"),
    ];
    assert_eq!(not_downward(&built_of(&sideways)).len(), 1);
    let down = [
        ("vault/mod.rs", "use crate::store::f;"),
        ("store/mod.rs", "pub fn f() {}"),
    ];
    assert!(not_downward(&built_of(&down)).is_empty());
    let in_a_test = [
        vault,
        tx,
        (
            "codec.rs",
            "#[cfg(test)] mod tests { use crate::vault::Tx; }",
        ),
    ];
    assert!(not_downward(&built_of(&in_a_test)).is_empty());
    assert_eq!(not_downward(&built_of(&[("attic.rs", "")])).len(), 1);
}

/// Files that name one of these crates and may not.
fn strangers<'h>(house: &'h House, is_wanted: impl Fn(&str) -> bool, may: &[&str]) -> Vec<&'h str> {
    let mut naming = house.naming(is_wanted);
    naming.retain(|path| {
        let is_of = |one: &&str| path == one || one.ends_with('/') && path.starts_with(*one);
        !may.iter().any(is_of)
    });
    naming
}

/// Files above the store's floor that speak of SQLite and may not, and those that may and do not.
fn behind_the_door(house: &House, may: &[(&str, &str)]) -> Vec<String> {
    let store = floor_of("store/mod.rs");
    let mut saying = house.saying(|word| word.contains("sqlite") || word == "wal");
    saying.retain(|path| floor_of(path) < store);
    let may: Vec<&str> = may.iter().map(|(path, _)| *path).collect();
    let new = saying.iter().filter(|path| !may.contains(path));
    let new = new.map(|path| format!("{path} speaks of SQLite, which only the store knows"));
    let gone = may.iter().filter(|path| !saying.contains(path));
    let gone = gone.map(|path| format!("{path} does not speak of it: take it off the list"));
    new.chain(gone).collect()
}

#[test]
fn nothing_above_the_store_speaks_of_what_is_behind_its_door() {
    let wrong = behind_the_door(&house(), TALKS_OF_SQLITE);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_word_of_what_is_behind_the_door_is_seen_in_code_and_in_comments() {
    for text in [
        "// The WAL grows.",
        "fn adopt_wal() {}",
        "type A = SqliteStore;",
        "const A: &str = \"vault.db-wal\";",
    ] {
        let house = built_of(&[
            ("vault/a.rs", text),
            ("store/a.rs", text),
            ("os/a.rs", text),
        ]);
        assert_eq!(behind_the_door(&house, &[]).len(), 1, "{text}");
        let listed = [("vault/a.rs", "")];
        assert!(behind_the_door(&house, &listed).is_empty(), "{text}");
    }
    let house = built_of(&[("vault/a.rs", "// It walks along the wall.")]);
    assert!(behind_the_door(&house, &[]).is_empty());
    assert_eq!(behind_the_door(&house, &[("vault/a.rs", "")]).len(), 1);
}

/// The cipher library of that name speaks with nobody.
fn is_tokio_or_aws(name: &str) -> bool {
    name == "tokio" || name.starts_with("aws_") && name != "aws_lc_rs"
}

#[test]
fn fuser_is_known_only_to_the_transport() {
    let none: [&str; 0] = [];
    assert_eq!(strangers(&house(), |name| name == "fuser", FUSER), none);
}

#[test]
fn rusqlite_is_known_only_to_store_sqlite() {
    let none: [&str; 0] = [];
    assert_eq!(
        strangers(&house(), |name| name == "rusqlite", RUSQLITE),
        none
    );
}

#[test]
fn tokio_and_aws_are_known_only_to_aws_and_kms() {
    let none: [&str; 0] = [];
    assert_eq!(strangers(&house(), is_tokio_or_aws, TOKIO_AND_AWS), none);
}

#[test]
fn a_crate_is_seen_where_it_may_not_be_known() {
    for text in [
        "use aws_config::SdkConfig;",
        "fn f() { tokio::task::yield_now(); }",
        "fn f() -> aws_types::SdkConfig { loop {} }",
        "fn f() { assert!(tokio::runtime::Handle::try_current().is_ok()) }",
    ] {
        let house = built_of(&[("vault/tx.rs", text), ("aws/session.rs", text)]);
        let found = strangers(&house, is_tokio_or_aws, TOKIO_AND_AWS);
        assert_eq!(found, ["vault/tx.rs"], "{text}");
    }
}

/// Files that name a lock of the standard library and may not, and those that may and do not.
fn unranked(house: &House, may: &[(&str, &str)]) -> Vec<String> {
    let mut naming = BTreeSet::new();
    for lock in ["Mutex", "MutexGuard", "RwLock", "Condvar"] {
        naming.extend(house.naming_path(&["std", "sync", lock]));
    }
    let may: BTreeSet<&str> = may.iter().map(|(path, _)| *path).collect();
    let new = naming.difference(&may);
    let new = new.map(|path| format!("{path} names a lock of std: take one of crate::sync"));
    let gone = may.difference(&naming);
    let gone = gone.map(|path| format!("{path} names no lock of std: take it off the list"));
    new.chain(gone).collect()
}

#[test]
fn locks_have_a_rank_wherever_one_can_be() {
    let wrong = unranked(&house(), LOCKS_WITHOUT_RANK);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_lock_without_a_rank_is_seen_in_whatever_form() {
    for text in [
        "use std::sync::{Arc, Mutex};",
        "use std::sync::*;",
        "use std::sync; static A: sync::RwLock<u8> = sync::RwLock::new(0);",
        "struct A { a: std::sync::Condvar }",
    ] {
        let house = built_of(&[("fs/a.rs", text)]);
        assert_eq!(unranked(&house, &[]).len(), 1, "{text}");
        assert!(unranked(&house, &[("fs/a.rs", "")]).is_empty(), "{text}");
    }
    let house = built_of(&[(
        "fs/a.rs",
        "use std::sync::{Arc, mpsc}; use crate::sync::Mutex;",
    )]);
    assert!(unranked(&house, &[]).is_empty());
    assert_eq!(unranked(&house, &[("fs/a.rs", "")]).len(), 1);
}

/// The files that take part in a circle of imports, each with what it imports from others of it.
fn in_circles(house: &House) -> BTreeMap<String, BTreeSet<String>> {
    let imports = house.imports();
    let mut arrows: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for one in &imports {
        arrows.entry(&one.from).or_default().insert(&one.to);
    }
    let reached_from = |start: &str| {
        let mut reached = BTreeSet::new();
        let mut left = vec![start];
        while let Some(file) = left.pop() {
            for to in arrows.get(file).into_iter().flatten() {
                if reached.insert(*to) {
                    left.push(to);
                }
            }
        }
        reached
    };
    let reached: BTreeMap<&str, _> = arrows
        .keys()
        .map(|file| (*file, reached_from(file)))
        .collect();
    let leads = |from: &str, to: &str| reached.get(from).is_some_and(|all| all.contains(to));
    let mut circles: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for one in imports.iter().filter(|one| leads(&one.to, &one.from)) {
        let taken = circles.entry(one.from.clone()).or_default();
        taken.insert(format!("{} from {}", one.name, one.to));
    }
    circles
}

#[test]
fn no_circle_between_files() {
    let circles = in_circles(&house());
    let allowed = |path: &String| IN_CIRCLES.contains(&path.as_str());
    let new: BTreeMap<_, _> = circles.iter().filter(|(path, _)| !allowed(path)).collect();
    assert!(new.is_empty(), "new in a circle: {new:#?}");
    let gone = IN_CIRCLES
        .iter()
        .filter(|path| !circles.contains_key(**path));
    let gone: Vec<_> = gone.collect();
    assert!(
        gone.is_empty(),
        "in no circle any more, take it off the list: {gone:?}"
    );
}

#[test]
fn a_circle_is_seen_also_through_a_third_file_and_between_a_module_and_its_child() {
    let third = [
        ("fs/a.rs", "use super::b::B; pub struct A;"),
        (
            "fs/b.rs",
            "use crate::fs::c; pub struct B; fn f() { c::g() }",
        ),
        ("fs/c.rs", "pub fn g() -> Option<super::a::A> { None }"),
        ("fs/d.rs", "use super::a::A; use super::c::g;"),
    ];
    let circle: Vec<_> = in_circles(&built_of(&third)).into_keys().collect();
    assert_eq!(circle, ["fs/a.rs", "fs/b.rs", "fs/c.rs"]);
    let child = [
        ("fs/mod.rs", "mod a; use a::A; pub struct F(A);"),
        ("fs/a.rs", "use super::F; pub struct A;"),
    ];
    assert_eq!(in_circles(&built_of(&child)).len(), 2);
    let handed_on = [
        ("fs/mod.rs", "mod a; mod b; pub use a::A; pub use b::B;"),
        ("fs/a.rs", "pub struct A;"),
        ("fs/b.rs", "use super::A; pub struct B;"),
    ];
    assert!(in_circles(&built_of(&handed_on)).is_empty());
}

/// Types that are written in too many files, with these.
fn strewn(house: &House) -> Vec<String> {
    let all = house.extended().into_iter();
    let strewn = all.filter(|(_, files)| files.len() > MOST_FILES);
    strewn
        .map(|(name, files)| format!("{name} is written in {files:?}"))
        .collect()
}

#[test]
fn no_type_is_written_in_more_than_two_files() {
    let house = house();
    let all = house.extended();
    assert!(all.len() > 200, "the reader sees too little: {}", all.len());
    let vault: Vec<_> = all["vault::facade::Vault"].iter().copied().collect();
    assert_eq!(vault, ["vault/facade.rs", "vault/facade/open.rs"]);
    let wrong = strewn(&house);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_type_that_is_strewn_over_files_is_seen_by_whatever_path_it_is_reached() {
    let vault = ("vault/mod.rs", "mod facade; pub use facade::Vault;");
    let facade = ("vault/facade.rs", "pub struct Vault; impl Vault {}");
    let one = ("vault/one.rs", "use super::Vault; impl Vault {}");
    for text in [
        "use super::Vault; impl Vault {}",
        "use super::facade::Vault as Whole; impl Whole {}",
        "impl crate::vault::Vault {}",
        "impl super::facade::Vault {}",
        "fn f() { impl super::Vault {} }",
    ] {
        let house = built_of(&[vault, facade, one, ("vault/two.rs", text)]);
        assert_eq!(strewn(&house).len(), 1, "{text}");
    }
    for text in [
        "pub struct Vault; impl Vault {}",
        "use super::Vault; impl Drop for Vault { fn drop(&mut self) {} }",
        "#[cfg(test)] mod tests { use super::Vault; impl Vault {} }",
    ] {
        let house = built_of(&[vault, facade, one, ("vault/two.rs", text)]);
        assert!(strewn(&house).is_empty(), "{text}");
    }
}

/// Files that are longer than they may be, and those that have become shorter than the list says.
fn of_another_length(house: &House, longer: &[(&str, usize)]) -> Vec<String> {
    let listed: BTreeMap<&str, usize> = longer.iter().copied().collect();
    let complain = |(path, lines): (&str, usize)| match listed.get(path) {
        None if lines > LONGEST => Some(format!("{path} has {lines} lines: split it")),
        Some(&bound) if lines > bound => {
            Some(format!("{path} has grown from {bound} to {lines} lines"))
        }
        Some(_) if lines <= LONGEST => Some(format!(
            "{path} is no longer too long: take it off the list"
        )),
        Some(&bound) if lines < bound => {
            Some(format!("{path} has shrunk: lower its bound to {lines}"))
        }
        _ => None,
    };
    let gone = listed
        .keys()
        .filter(|path| !house.lengths().any(|(file, _)| file == **path));
    let gone = gone.map(|path| format!("{path} is not there any more: take it off the list"));
    house.lengths().filter_map(complain).chain(gone).collect()
}

#[test]
fn no_file_is_longer_than_500_lines() {
    let wrong = of_another_length(&house(), LONGER);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_file_that_has_grown_is_seen() {
    let long = "\n".repeat(LONGEST + 1);
    let house = built_of(&[("codec.rs", &long)]);
    assert_eq!(of_another_length(&house, &[]).len(), 1);
    assert_eq!(
        of_another_length(&house, &[("codec.rs", LONGEST + 1)]).len(),
        0
    );
    for bound in [LONGEST, LONGEST + 2] {
        assert_eq!(
            of_another_length(&house, &[("codec.rs", bound)]).len(),
            1,
            "{bound}"
        );
    }
    assert_eq!(
        of_another_length(&house, &[("codec.rs", LONGEST + 1), ("gone.rs", 600)]).len(),
        1
    );
}
