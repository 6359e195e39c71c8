use super::*;

fn given(list: &str) -> Result<Settings, ConfigError> {
    let mut settings = Settings::default();
    settings.apply_all(&parse_options(&[list], false)?.settings)?;
    Ok(settings)
}

#[test]
fn every_setting_of_the_table_has_a_meaning() {
    for setting in SETTINGS {
        let value = match setting.kind {
            Kind::Switch => None,
            Kind::Size { min, .. } | Kind::Count { min, .. } => Some(min.to_string()),
            Kind::Duration { .. } => Some("1s".to_owned()),
            Kind::Path => Some("/x".to_owned()),
            Kind::Choice(words) => Some(words[0].to_owned()),
            Kind::KeyUris => Some("local-kms://a".to_owned()),
            Kind::VaultId => Some("0123abcd".to_owned()),
        };
        let raw = Raw {
            setting,
            value: value.map(Into::into),
            origin: Origin::Flag,
        };
        Settings::default().apply(&raw).expect(setting.name);
    }
}

#[test]
fn a_bad_value_is_told_with_name_value_origin_and_what_is_allowed() {
    let error = given("ttl=soon").expect_err("bad");
    assert_eq!(
        error.to_string(),
        "bad ttl `soon` (given with -o): allowed is a whole number with ms, s, m, h or d behind it (s if none), from 0ms to 3600s"
    );
    for bad in [
        "threads=0",
        "threads=65",
        "max-memory=1",
        "ttl",
        "ttl=",
        "log-level=loud",
        "kms-key=x",
        "uid=-1",
        "vault-id=../x",
    ] {
        assert!(given(bad).is_err(), "{bad}");
    }
}

#[test]
fn memory_follows_the_control_group_unless_it_is_set() {
    let fitted = |list: &str, limit| {
        let mut settings = given(list).expect("good");
        settings.fit_into_group(limit);
        let from = settings.max_memory_from.name();
        (settings.max_memory, from, settings.memory_warning())
    };
    assert_eq!(fitted("ro", None), (256 << 20, "default", None));
    assert_eq!(fitted("ro", Some(1 << 30)), (256 << 20, "default", None));
    assert_eq!(fitted("ro", Some(96 << 20)), (32 << 20, "cgroup", None));
    assert_eq!(fitted("ro", Some(4096)).0, 1 << 20);
    let set = fitted("max-memory=64M", Some(64 << 20));
    assert_eq!(set, (64 << 20, "option", None));
    let (bytes, from, warning) = fitted("max-memory=64M", Some(63 << 20));
    assert_eq!((bytes, from), (64 << 20, "option"));
    let warning = warning.expect("a warning");
    assert!(
        warning.contains("67108864") && warning.contains("66060288"),
        "{warning}"
    );
}

#[test]
fn the_last_option_wins() {
    assert!(!given("ro,rw").expect("good").read_only);
    assert!(given("rw,ro").expect("good").read_only);
    assert!(!given("exec,noexec").expect("good").exec);
    let rotated = |text| given(text).expect("good").rotate_every;
    assert!(rotated("rotate-every=off,rotate-every=90d").is_some());
    assert!(rotated("rotate-every=90d,rotate-every=off").is_none());
}

#[test]
fn keys_of_a_nearer_source_replace_those_of_a_farther_one() {
    let mut settings = given("kms-key=local-kms://a,kms-key=local-kms://b").expect("good");
    assert_eq!(settings.kms_keys.len(), 2);
    settings
        .apply_all(
            &parse_options(&["kms-key=local-kms://c"], false)
                .expect("good")
                .settings,
        )
        .expect("good");
    assert_eq!(settings.kms_keys.len(), 1);
}

#[test]
fn what_lowers_the_guard_cannot_be_made_permanent() {
    let setting = table::find("accept-rollback").expect("known");
    let raw = Raw {
        setting,
        value: Some("true".into()),
        origin: Origin::File("/c".into()),
    };
    assert!(Settings::default().apply(&raw).is_err());
}

#[test]
fn an_attempt_gets_a_third_of_the_kms_timeout() {
    let settings = given("kms-timeout=9").expect("good");
    assert_eq!(settings.kms.attempt_timeout, Duration::from_secs(3));
    assert_eq!(settings.kms.total_timeout, Duration::from_secs(9));
}
