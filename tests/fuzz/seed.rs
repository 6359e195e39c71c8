//! The first inputs of every fuzz corpus, all from genuine values. With `SECRETFS_WRITE_CORPUS` set
//! they are written, and if it is `sample`, with a new sample vault: for after a change of the
//! format.

use std::fs;
use std::path::{Path, PathBuf};

use secretfs::vault::{Anchors, Kind, ROOT, Vault};

use crate::support::layer::{Layer, Served};

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

fn writing() -> bool {
    std::env::var_os("SECRETFS_WRITE_CORPUS").is_some()
}

/// One input: the number of the case, and its bytes.
fn put(target: &str, name: &str, case: u8, bytes: &[u8]) {
    let file = here().join("corpus").join(target).join(name);
    let input = [&[case], bytes].concat();
    if writing() {
        fs::create_dir_all(file.parent().expect("a directory")).expect("made");
        fs::write(&file, &input).expect("written");
    }
    let found = fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    assert!(found == input, "{} is another", file.display());
}

fn vectors() -> Vec<(String, Vec<u8>)> {
    let byte = |pair: &[u8]| {
        u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("digits")
    };
    include_str!("../vectors/format1.txt")
        .lines()
        .map(|line| line.split_once(' ').expect("a name and digits"))
        .map(|(name, hex)| (name.into(), hex.as_bytes().chunks(2).map(byte).collect()))
        .collect()
}

#[test]
fn genuine_values_are_in_every_corpus() {
    if std::env::var("SECRETFS_WRITE_CORPUS").is_ok_and(|what| what == "sample") {
        sample();
    }
    records();
    let sample = |name| fs::read(here().join("sample").join(name)).expect("the sample");

    put("database", "whole-file", 2, &sample("vault.db"));
    put("database", "whole-log", 3, &sample("vault.db-wal"));
    for case in [0, 1] {
        put("database", &format!("unchanged-{case}"), case, b"");
        // Of the first page: its size, the schema's root, a count; of a later one: its kind.
        let edits = [&[16, 0, 0, 2, 0, 1][..], &[24, 0, 0, 4, 0, 0, 0, 9]].concat();
        put("database", &format!("head-{case}"), case, &edits);
        put(
            "database",
            &format!("page-{case}"),
            case,
            &[0, 0x20, 0, 1, 5],
        );
        put(
            "database",
            &format!("cut-{case}"),
            case,
            &[0, 0x20, 0, 0xff],
        );
    }

    let anchor = sample("anchor.json");
    put("anchor", "whole", 0, &anchor);
    put("anchor", "json", 1, &anchor[..anchor.len() - 65]);
    let holder = r#"{"pid":77,"host":"h","mount_point":"/mnt","since":1700000000}"#;
    put("anchor", "lock", 2, holder.as_bytes());

    let key = sample("default.key");
    put("local_kms", "file", 0, &key);
    put("local_kms", "fields", 1, &key[..key.len() - 32]);
    let mut pending = key[..key.len() - 32].to_vec();
    pending[8..10].copy_from_slice(&[2, 1]);
    put("local_kms", "pending", 1, &pending);
    put("local_kms", "blob", 2, &[0, 0]);
    put("local_kms", "blob-version", 2, &[0, 1, 2]);

    answers();
    settings();
    requests();
}

fn records() {
    for (name, bytes) in vectors() {
        match name.as_str() {
            "header" => put("keyring", "header", 0, &bytes),
            "keyring" => {
                put("keyring", "record", 1, &bytes);
                let length = usize::from(bytes[0]);
                put("keyring", "body", 2, &bytes[8..8 + length]);
                put("keyring", "body-sealed", 3, &bytes[8..8 + length]);
                // A key's URI that steers terminals.
                let mut body = bytes[8..8 + length].to_vec();
                let uri = b"local-kms://default";
                let found = body.windows(uri.len()).position(|part| part == uri);
                let at = found.expect("the URI");
                body[at..at + uri.len()].copy_from_slice(b"evil-kms://\n\x1b[2Jabc");
                put("keyring", "body-foreign", 2, &body);
            }
            "file" => {
                put("node", "file", 0, &bytes);
                put("node", "file-longer", 0, &[&bytes[..], &[0]].concat());
                put("node", "generation", 1, &[&[1], &bytes[..]].concat());
            }
            "moving" => {
                put("node", "moving", 4, &bytes);
                let new = &bytes[bytes.len() - 80..];
                put("node", "moving-cut", 4, &bytes[..bytes.len() - 80]);
                put("node", "moving-key", 4, &[&bytes[..], new].concat());
            }
            "summing_system" => put("node", "summing", 6, &bytes),
            "summing_state" => put("records", "summing-state", 10, &bytes),
            "moved" => put("records", "moved", 8, &bytes),
            "stays" => put("records", "stays", 9, &bytes),
            "entry" => put("records", "entry", 0, &bytes),
            "version" => put("records", "version", 2, &bytes),
            "chunk" => put("records", "chunk", 4, &bytes),
            "state" => put("records", "state", 5, &bytes),
            "event" => put("records", "event", 7, &bytes),
            _ => {}
        }
    }
    let header = vectors()
        .into_iter()
        .filter(|(name, _)| name == "header" || name == "keyring")
        .flat_map(|(_, bytes)| bytes);
    put("keyring", "both", 4, &header.collect::<Vec<_>>());

    // The plain texts.
    let mut name = [0; 265];
    name[..18].copy_from_slice(b"\x02\0\0\0\0\0\0\0\x01\x08password");
    put("records", "entry-plain", 1, &name);
    let extent = [13, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    put("records", "version-plain", 3, &extent);
    let mut state = vec![0; 256];
    (state[0], state[8], state[16], state[24]) = (9, 1, 3, 3);
    put("records", "state-plain", 6, &state);
    // Counted anew up to a node, and up to a version.
    (state[72], state[73], state[78]) = (1, 1, 1);
    put("records", "state-renewed-nodes", 11, &state);
    state[74] = 1;
    put("records", "state-renewed-versions", 11, &state);
    let rolled_back: Vec<u8> = [&[2, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0][..], &[3; 32]].concat();
    put("records", "event-rollback", 7, &rolled_back);
    let unknown: Vec<u8> = [&[2, 0, 0, 0, 0, 0, 0, 0, 0, 57, 0, 0, 0][..], &[3; 9]].concat();
    put("records", "event-unknown", 7, &unknown);

    let mut attributes = Vec::new();
    for number in [0o640u32, 0, 0, 1] {
        attributes.extend(number.to_le_bytes());
    }
    for _ in 0..4 {
        attributes.extend(1_700_000_000i64.to_le_bytes());
        attributes.extend(5u32.to_le_bytes());
    }
    let under_way = [
        &[4, 0, 0, 0][..],
        &[1; 84],
        &[2, 0, 0, 0],
        &[1, 0, 0, 0],
        &[1; 40],
    ];
    let bodies: [(&str, u8, Vec<u8>); 5] = [
        ("directory-under-way", 2, under_way.concat()),
        ("file", 1, [vec![0; 4], vec![4; 24]].concat()),
        ("directory", 2, [vec![1, 0, 0, 0], vec![1; 88]].concat()),
        ("symlink", 3, b"\x02\0\0\0\x06\0\0\0\0\0\0\0target".to_vec()),
        ("special", 4, vec![3, 0, 0, 0, 0, 0, 0, 0]),
    ];
    let xattrs = b"\x01\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0user.x\x01\0\0\0\0\0\0\0v";
    for (name, kind, body) in bodies {
        let plain = [&[kind], &attributes[..], xattrs, &body].concat();
        put("node", &format!("{name}-plain"), 3, &plain);
        if name == "directory-under-way" {
            put("node", &format!("{name}-keys"), 5, &plain);
        }
    }
}

fn answers() {
    let arn = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    let wrapped = format!(r#"{{"CiphertextBlob":"AQID","KeyId":"{arn}"}}"#);
    put("aws_answer", "wrapped", 0, wrapped.as_bytes());
    let plain = "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";
    let unwrapped = format!(r#"{{"Plaintext":"{plain}","KeyId":"{arn}"}}"#);
    put("aws_answer", "unwrapped", 2, unwrapped.as_bytes());
    let described = format!(
        r#"{{"KeyMetadata":{{"KeyId":"1234abcd","Arn":"{arn}","KeyState":"Enabled","KeyUsage":"ENCRYPT_DECRYPT","KeySpec":"SYMMETRIC_DEFAULT","CreationDate":1.7e9,"Enabled":true}}}}"#
    );
    put("aws_answer", "described", 1, described.as_bytes());
    put("aws_answer", "nothing", 2, b"{}");
    for code in [
        "AccessDeniedException",
        "DisabledException",
        "KMSInvalidStateException",
        "InvalidCiphertextException",
        "NotFoundException",
        "IncorrectKeyException",
        "UnknownException",
    ] {
        let body = format!(r#"{{"__type":"{code}","message":"no"}}"#);
        put("aws_answer", code, 6, body.as_bytes());
    }
    let xml = b"<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>";
    put("aws_answer", "xml", 6 | 8 | 16, xml);
}

fn settings() {
    let list = "rw,noauto,user,_netdev,ttl=5s,max-memory=64M,log-file=\"/a,b\",x-systemd.automount";
    put("settings", "options", 0, list.as_bytes());
    put(
        "settings",
        "sloppy",
        1,
        b"ro,allow_root,kms-key=local-kms://a",
    );
    let file = "ttl = 5\nthreads = 2\nallow-other = true\nlog-format = \"json\"\n\
                kms-key = [\"local-kms://a\", \"aws-kms://alias/b\"]\n";
    put("settings", "file", 2, file.as_bytes());
    put("settings", "flag-size", 3, b"\x0464 KiB");
    put("settings", "flag-time", 3, b"\x03500ms");
    put("settings", "flag-id", 3, b"\x0f938a4bc0abe32b4c");
    put("settings", "uri-local", 4, b"local-kms://default");
    put("settings", "rotate", 5, b"rotate\n");
    let rewrap = b"rewrap --yes-leave-aws local-kms://a aws-kms://alias/b\n";
    put("settings", "rewrap", 5, rewrap);
    let arn = b"aws-kms://arn:aws:kms:eu-central-1:111122223333:alias/app";
    put("settings", "uri-aws", 4, arn);
}

fn requests() {
    // Create, write, read, set an attribute, read it, list, make, rename, remove.
    let file = b"\x00\x00\x01a\x0b\x00\x00\x00\x05hello\x0c\x00\x00\x00\x00\x05";
    put("requests", "file", 0, &file[1..]);
    let xattr =
        b"\x00\x01a\x02\x01\x06user.x\x05value\x00\x03\x01\x06user.x\x04\x01\x05\x01\x06user.x";
    put("requests", "xattr", 0, xattr);
    let tree = b"\x00\x02\x01d\x01\x01\x03\x01s\x07\x00\x01d\x00\x01e\x09\x00\x01e\x12\x00";
    put("requests", "tree", 1, tree);
    let sizes = b"\x00\x01a\x0d\x01\x10\x01\x10\x0e\x01\x00\x05\x08\x01\x00\x0f\x01\x00\x00\x05\x01\x02\x01\x10\x01";
    put("requests", "sizes", 0, sizes);
    put(
        "requests",
        "far",
        0,
        b"\x00\x01a\x0b\x01\xbf\x01\x04data\x0d\x01\xff\x00\x10",
    );
}

/// A vault with a node of every kind, closed; and the same a little later, killed.
fn sample() {
    let layer = Layer::new();
    let served = layer.open();
    let write = |served: &Served, name: &[u8], content: &[u8]| {
        let (ino, fh) = served.create(ROOT, name, 0o600);
        served.write(fh, 0, content).expect("written");
        served.flush(fh).expect("published");
        served.release(fh);
        ino
    };
    write(&served, b"password", b"s3cret");
    let file = write(&served, b"certificate", &[b'c'; 2000]);
    served.set_xattr(file, b"user.x", b"value", 0).expect("set");
    write(&served, b"empty", b"");
    let directory = served
        .make(ROOT, b"directory", Kind::Directory)
        .expect("made");
    served.link(file, directory.ino, b"link").expect("linked");
    served
        .make(directory.ino, b"symlink", Kind::Symlink)
        .expect("made");
    served
        .make(directory.ino, b"pipe", Kind::Fifo)
        .expect("made");
    served.finish();
    let target = here().join("sample");
    fs::create_dir_all(&target).expect("made");
    let keep = |from: PathBuf, name: &str| {
        fs::copy(from, target.join(name)).expect("copied");
    };
    keep(layer.vault().join("vault.db"), "vault.db");
    let kms = layer.kms().local_dir.expect("a directory");
    keep(kms.join("default.key"), "default.key");

    let served = layer.open();
    let removed = write(&served, b"removed", b"open while it is removed");
    let open = served.open(removed, libc::O_RDONLY).expect("open");
    served.unlink(ROOT, b"removed").expect("removed");
    let (_, fh) = served.create(directory.ino, b"later", 0o600);
    served.write(fh, 0, b"a later secret").expect("written");
    served.fsync(fh).expect("published");
    served.barrier();
    layer.crash(|| {
        served.release(open);
        served.abort();
    });
    keep(layer.vault().join("vault.db-wal"), "vault.db-wal");
    assert_eq!(
        fs::read(layer.vault().join("vault.db")).expect("read"),
        fs::read(target.join("vault.db")).expect("read"),
        "what came later is in the log alone"
    );
    // The host knows that the later state is on disk.
    let mut options = layer.options();
    options.read_only = true;
    options.anchor_dir = None;
    let vault = Vault::open(&layer.vault(), &options).expect("opened");
    let anchors = Anchors::at(layer.anchors());
    let id = vault.keyring().vault();
    let mut anchor = anchors.load(id).expect("read").expect("an anchor");
    anchor.commit_sequence = vault.state().commit;
    anchors.store(&anchor, true).expect("stored");
    keep(layer.anchors().join(format!("{id}.json")), "anchor.json");
}
