//! Option lists, configuration files, flags, KMS key URIs, and control commands.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::sync::OnceLock;

use secretfs::config::options::parse_options;
use secretfs::config::{Origin, Raw, SETTINGS, Settings};
use secretfs::control::parse_command;
use secretfs::kms::KeyUri;
use secretfs::vault::Request;

use super::split;

pub(super) fn run(input: &[u8]) {
    match split(input, 6) {
        Some((0, list)) => options(list, false),
        Some((1, list)) => options(list, true),
        Some((2, text)) => file(text),
        Some((3, [which, value @ ..])) => flag(*which, value),
        Some((4, uri)) => key_uri(uri),
        Some((5, text)) => command(text),
        _ => {}
    }
}

/// A directory with an empty configuration file and one to be filled.
fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<tempfile::TempDir> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        let directory = super::directory();
        std::fs::write(directory.path().join("empty"), "").expect("written");
        directory
    });
    directory.path()
}

fn load(file: &str, given: &[Raw]) {
    match Settings::load(Some(&directory().join(file)), given) {
        // Whatever was accepted is within its bounds.
        Ok(settings) => {
            assert!((1..=64).contains(&settings.threads), "{}", settings.threads);
            assert!(settings.max_secret_size <= 4 << 30);
            assert!(settings.ttl.as_secs() <= 3600);
        }
        Err(error) => {
            let error = error.to_string();
            assert!(!error.contains('\n') && error.len() < 4096, "{error:?}");
        }
    }
}

fn options(list: &[u8], sloppy: bool) {
    let list = OsString::from_vec(list.to_vec());
    if let Ok(options) = parse_options(&[list], sloppy) {
        load("empty", &options.settings);
    }
}

fn file(text: &[u8]) {
    std::fs::write(directory().join("filled"), text).expect("written");
    load("filled", &[]);
}

fn flag(which: u8, value: &[u8]) {
    let raw = Raw {
        setting: &SETTINGS[usize::from(which) % SETTINGS.len()],
        value: Some(OsString::from_vec(value.to_vec())),
        origin: Origin::Flag,
    };
    load("empty", &[raw]);
}

fn key_uri(uri: &[u8]) {
    let Ok(text) = std::str::from_utf8(uri) else {
        return;
    };
    if let Ok(uri) = text.parse::<KeyUri>() {
        assert_eq!(uri.as_str(), text);
        assert_eq!(text.parse(), Ok(uri.clone()));
        assert!(!uri.key().is_empty() && !uri.key().contains(char::is_control));
    }
}

fn command(text: &[u8]) {
    match parse_command(text) {
        Ok(Request::Rotate) => assert!(text.trim_ascii() == b"rotate"),
        Ok(Request::Reencrypt) => assert!(text.trim_ascii() == b"reencrypt"),
        Ok(request @ Request::Despite(_)) => {
            let words = request.to_string();
            assert!(
                text.split(u8::is_ascii_whitespace)
                    .filter(|w| !w.is_empty())
                    .eq(words.split(' ').map(str::as_bytes))
            );
        }
        Ok(Request::Rewrap { .. }) => assert!(text.trim_ascii().starts_with(b"rewrap")),
        // It goes into a file that people read, and a log.
        Err(why) => assert!(
            !why.contains(char::is_control) && why.len() < 4096,
            "{why:?}"
        ),
    }
}
