//! A keyring record that somebody has edited who can compute everything but its MACs: it is refused
//! with code 6 by whatever opens the vault, and no KMS is asked because of it.

use std::time::Duration;

use crate::support::aws::World;
use crate::support::evil::{Record, blob, copy, set_blob};
use crate::support::process::{detach, wait_for};
use crate::support::rotating::{all_is_there, command, fill, wait_for_the_end};
use secretfs::keyring::{
    Generation, GenerationState, KeyringBody, Rotation, RotationKind, RotationPhase, Wrap,
};

const SECRETS: usize = 300;
const SOON: Duration = Duration::from_secs(60);
const STORE: &str = "UPDATE keyring SET value = ?1";
const PHASES: [RotationPhase; 6] = [
    RotationPhase::Prepared,
    RotationPhase::Active,
    RotationPhase::Migrating,
    RotationPhase::Verifying,
    RotationPhase::Retired,
    RotationPhase::Scrubbing,
];

type Edit = (String, Box<dyn Fn(&mut KeyringBody)>);

fn edit(name: impl Into<String>, edit: impl Fn(&mut KeyringBody) + 'static) -> Edit {
    (name.into(), Box::new(edit))
}

/// A wrap under a key of hers.
fn her_wrap(uri: &str) -> Wrap {
    Wrap {
        uri: uri.to_owned(),
        key_id: uri.trim_start_matches("aws-kms://").to_owned(),
        blob: vec![7; 200],
        created: 1_700_000_000,
    }
}

fn change(kind: RotationKind, phase: RotationPhase, from: u64, to: u64) -> Rotation {
    let started = 1_700_000_000;
    Rotation {
        kind,
        phase,
        from,
        to,
        started,
    }
}

/// What can be said of any vault.
fn of_any(hers: &str) -> Vec<Edit> {
    let (first, last, only) = (hers.to_owned(), hers.to_owned(), hers.to_owned());
    vec![
        edit("generation's number", |body| {
            body.generations[0].number += 7
        }),
        edit("generation's date", |body| body.generations[0].created -= 1),
        edit("length of the history", |body| body.history.length -= 1),
        edit("her wrap first", move |body| {
            body.generations[0].wraps.insert(0, her_wrap(&first));
        }),
        edit("her wrap last", move |body| {
            let newest = body.generations.last_mut().expect("one");
            newest.wraps.push(her_wrap(&last));
        }),
        edit("her wrap alone", move |body| {
            for generation in &mut body.generations {
                generation.wraps = vec![her_wrap(&only)];
            }
        }),
        edit("no wrap", |body| body.generations[0].wraps.clear()),
    ]
}

/// A rotation is said to be under way where none is.
fn of_an_idle_one(hers: &str) -> Vec<Edit> {
    let mut edits = of_any(hers);
    for kind in [
        RotationKind::Rotate,
        RotationKind::Reencrypt,
        RotationKind::Rewrap,
    ] {
        for phase in PHASES {
            let name = format!("{kind} that is {phase:?}");
            edits.push(edit(name, move |body| {
                body.change = Some(change(kind, phase, 2, 2))
            }));
            let (name, hers) = (format!("{kind} to her key, {phase:?}"), hers.to_owned());
            edits.push(edit(name, move |body| {
                let state = match phase {
                    RotationPhase::Prepared => GenerationState::Pending,
                    _ => GenerationState::Active,
                };
                if state == GenerationState::Active {
                    body.generations[0].state = GenerationState::DecryptOnly;
                }
                body.generations.push(Generation {
                    number: 3,
                    state,
                    check: [9; 32],
                    created: 1_700_000_000,
                    wraps: vec![her_wrap(&hers)],
                });
                body.change = Some(change(kind, phase, 2, 3));
            }));
        }
    }
    edits
}

/// Another rotation is said to be under way than is.
fn of_one_under_way(hers: &str) -> Vec<Edit> {
    let mut edits = of_any(hers);
    let under_way = |edit: fn(&mut Rotation)| {
        move |body: &mut KeyringBody| edit(body.change.as_mut().expect("it is"))
    };
    for phase in PHASES
        .into_iter()
        .filter(|phase| *phase != RotationPhase::Migrating)
    {
        edits.push(edit(format!("{phase:?}"), move |body| {
            body.change.as_mut().expect("it is").phase = phase;
        }));
    }
    edits.extend([
        edit("none", |body| body.change = None),
        edit(
            "rewrap",
            under_way(|change| change.kind = RotationKind::Rewrap),
        ),
        edit(
            "reencrypt",
            under_way(|change| change.kind = RotationKind::Reencrypt),
        ),
        edit(
            "the other way",
            under_way(|change| std::mem::swap(&mut change.from, &mut change.to)),
        ),
        edit("date", under_way(|change| change.started += 1)),
        edit("states", |body| {
            body.generations[0].state = GenerationState::Active;
            body.generations[1].state = GenerationState::DecryptOnly;
        }),
        edit("two that are active", |body| {
            body.generations[0].state = GenerationState::Active
        }),
        edit("the new one pending", |body| {
            body.generations[0].state = GenerationState::Active;
            body.generations[1].state = GenerationState::Pending;
        }),
        edit("without the old one", |body| {
            drop(body.generations.remove(0))
        }),
        edit("without the new one", |body| {
            body.generations.truncate(1);
            body.generations[0].state = GenerationState::Active;
        }),
        edit("order", |body| body.generations.swap(0, 1)),
    ]);
    edits
}

/// Whatever opens the vault.
const COMMANDS: [(&str, &[&str]); 5] = [
    ("mount", &[]),
    ("mount", &["-o", "ro"]),
    ("rotate", &[]),
    ("check", &[]),
    ("audit", &["--verify"]),
];

fn is_refused(world: &World, edits: &[Edit], hers: &str) {
    let stored = blob(&world.place, "SELECT value FROM keyring");
    let anchors = world.place.path().join("anchors");
    let kept = world.place.path().join("anchors-kept");
    let forge = |edit: &dyn Fn(&mut KeyringBody)| {
        let mut record = Record::of(&world.place);
        record.edit(edit);
        record.store(&world.place);
        assert_ne!(blob(&world.place, "SELECT value FROM keyring"), stored);
    };
    // That a generation has another number can also be learnt from KMS, which was told it.
    let refused = |name: &str, more: &[&str], what: &str, may_ask: bool| {
        let ran = world.run(name, more, "");
        let (code, said) = (ran.0.status.code(), ran.stderr());
        let by_kms = may_ask && code == Some(4) && what.starts_with("generation's number");
        assert!(
            code == Some(6) || by_kms,
            "{name} {more:?}, {what}: {code:?} {said}"
        );
    };
    for (number, (what, edit)) in edits.iter().enumerate() {
        // Each by two of them, and all in turn.
        let commands = [COMMANDS[0], COMMANDS[1 + number % (COMMANDS.len() - 1)]];
        let mark = world.proxy.count();
        forge(edit);
        for (name, more) in commands {
            refused(name, more, what, false);
        }
        assert_eq!(world.proxy.count(), mark, "{what}: a KMS was asked");
        // On a host that has not seen it, the key that the host was told of is asked for its own wrap;
        // then the MACs are wrong.
        std::fs::rename(&anchors, &kept).expect("moved");
        let pin = format!("kms-key={}", world.keys[0]);
        refused("mount", &["-o", &pin], what, true);
        let _ = std::fs::remove_dir_all(&anchors);
        std::fs::rename(&kept, &anchors).expect("back");
        // So it is where it could be newer than what was seen.
        set_blob(&world.place, STORE, &stored);
        forge(&|body| {
            body.sequence += 1;
            edit(body);
        });
        refused(commands[1].0, commands[1].1, what, true);
        set_blob(&world.place, STORE, &stored);
    }
    let hers = hers.trim_start_matches("aws-kms://");
    let asked = world.proxy.seen();
    assert!(
        asked
            .iter()
            .all(|seen| seen.key_id.as_deref() != Some(hers)),
        "hers was asked"
    );
}

/// A vault whose master key was rotated once, and nobody has mounted; and a key of somebody else.
fn rotated() -> (World, String) {
    let world = World::with_vault(1);
    let hers = format!("aws-kms://{}", world.moto.create_key());
    world.mount("").succeeded();
    let point = world.place.point();
    fill(&point, SECRETS);
    command(&point, "rotate").expect("begun");
    wait_for_the_end(&point);
    detach(&point);
    is_over(&world);
    (world, hers)
}

fn is_over(world: &World) {
    wait_for("the daemon's end", SOON, || {
        world.place.daemons().is_empty()
    });
}

fn is_well(world: &World, generation: u64) {
    world.mount("").succeeded();
    let point = world.place.point();
    let now = wait_for_the_end(&point);
    assert_eq!(now["active_generation"], generation, "{now:#}");
    all_is_there(&point, SECRETS);
    detach(&point);
    is_over(world);
    world.run("check", &[], "").succeeded();
}

#[test]
fn forged_metadata_of_a_vault_that_is_not_rotated_is_code_6_and_asks_no_kms() {
    let (world, hers) = rotated();
    is_refused(&world, &of_an_idle_one(&hers), &hers);
    is_well(&world, 2);
}

#[test]
fn forged_metadata_of_a_rotation_under_way_is_code_6_and_asks_no_kms() {
    let (world, hers) = rotated();
    world.mount("migrate-before=2*off->return").succeeded();
    command(&world.place.point(), "rotate").expect("begun");
    is_over(&world);
    detach(&world.place.point());
    is_refused(&world, &of_one_under_way(&hers), &hers);
    is_well(&world, 3);
}

#[test]
fn after_a_rotation_the_old_keyring_and_the_old_vault_are_refused_by_every_mount() {
    let (world, _) = rotated();
    for (generation, what) in [(3, "rotate"), (4, "reencrypt"), (4, "rewrap")] {
        let vault = world.place.vault();
        let kept = world.place.path().join("kept");
        copy(&vault, &kept);
        let old = blob(&world.place, "SELECT value FROM keyring");
        let ran = world.run(what, &[], "");
        assert!(ran.0.status.success(), "{}", ran.stderr());
        let new = blob(&world.place, "SELECT value FROM keyring");
        let anchors = world.place.path().join("anchors");
        let put_away = world.place.path().join("anchors-kept");
        // The record alone, also on a host that knows nothing.
        set_blob(&world.place, STORE, &old);
        for anchored in [true, false] {
            if !anchored {
                std::fs::rename(&anchors, &put_away).expect("moved");
            }
            for (name, more) in COMMANDS {
                world.run(name, more, "").failed(6, "");
            }
        }
        let _ = std::fs::remove_dir_all(&anchors);
        std::fs::rename(&put_away, &anchors).expect("back");
        set_blob(&world.place, STORE, &new);
        is_well(&world, generation);
        // All of it, on this host.
        let newer = world.place.path().join("newer");
        std::fs::rename(&vault, &newer).expect("moved");
        copy(&kept, &vault);
        for (name, more) in COMMANDS {
            world.run(name, more, "").failed(6, "");
        }
        std::fs::remove_dir_all(&vault).expect("removed");
        std::fs::remove_dir_all(&kept).expect("removed");
        std::fs::rename(&newer, &vault).expect("back");
        is_well(&world, generation);
    }
}
