//! Reads settings from configuration files and the environment.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use super::table::{self, Kind};
use super::{ConfigError, Origin, Raw, SETTINGS};

/// Limit on a configuration file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The configuration files that were read and their settings, the least important first. A named
/// file must exist; the default ones need not.
pub(super) fn files(named: Option<&Path>) -> Result<(Vec<PathBuf>, Vec<Raw>), ConfigError> {
    let named = named.map(Path::to_owned).or_else(|| {
        std::env::var_os("SECRETFS_CONFIG")
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    });
    let candidates = match &named {
        Some(path) => vec![path.clone()],
        None => super::places::config_files(),
    };
    let mut found = Vec::new();
    let mut raws = Vec::new();
    for path in candidates {
        match read(&path) {
            Ok(text) => {
                // The KMS keys of a file replace those of the file before.
                let of_file = parse(&path, &text)?;
                if of_file.iter().any(|r| r.setting.kind == Kind::KeyUris) {
                    raws.retain(|r: &Raw| r.setting.kind != Kind::KeyUris);
                }
                raws.extend(of_file);
                found.push(path);
            }
            Err(e) if named.is_none() && absent(&e) => {}
            Err(e) => {
                return Err(ConfigError::new(format!(
                    "cannot read the configuration file {}: {e}",
                    path.display()
                )));
            }
        }
    }
    Ok((found, raws))
}

/// Whether a default file is absent, or this user may not read it.
fn absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied
    )
}

fn read(path: &Path) -> io::Result<String> {
    let meta = std::fs::metadata(path)?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err(io::Error::other("it is not a file of at most 1 MiB"));
    }
    std::fs::read_to_string(path)
}

/// `name = value` lines of TOML, all at the top level.
fn parse(path: &Path, text: &str) -> Result<Vec<Raw>, ConfigError> {
    let fail = |what: String| ConfigError::new(format!("{}: {what}", path.display()));
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |s| {
            text[..s.start.min(text.len())].matches('\n').count() + 1
        });
        fail(format!("line {line} is not TOML: {}", e.message()))
    })?;
    let mut raws = Vec::new();
    for (name, value) in &table {
        // Only mount options accept `_` for `-`: a file has one spelling.
        let setting = table::find(name)
            .filter(|s| s.name == name.as_str())
            .ok_or_else(|| {
                fail(format!(
                    "unknown setting `{}`; known are {}",
                    name.escape_debug(),
                    known()
                ))
            })?;
        let origin = Origin::File(path.to_owned());
        let values: Vec<&toml::Value> = match value {
            toml::Value::Array(list) if setting.kind == Kind::KeyUris => list.iter().collect(),
            other => vec![other],
        };
        for value in values {
            let value = match value {
                toml::Value::String(s) => s.clone(),
                toml::Value::Integer(n) => n.to_string(),
                toml::Value::Boolean(b) => b.to_string(),
                _ => {
                    return Err(fail(format!(
                        "bad {name}: allowed is {}",
                        if setting.kind == Kind::Switch {
                            "true or false"
                        } else {
                            "a string or a whole number"
                        }
                    )));
                }
            };
            raws.push(Raw {
                setting,
                value: Some(value.into()),
                origin: origin.clone(),
            });
        }
    }
    Ok(raws)
}

fn known() -> String {
    SETTINGS
        .iter()
        .filter(|s| s.lasting)
        .map(|s| s.name)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The settings in the environment.
pub(super) fn environment(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<Raw>, ConfigError> {
    let mut raws = Vec::new();
    for (name, value) in variables {
        let Some(rest) = strip_prefix(&name, "SECRETFS_") else {
            continue;
        };
        // For a service with the name secretfs, Kubernetes sets SECRETFS_PORT… and
        // SECRETFS_SERVICE_… in the environment of every pod.
        let foreign = ["PORT", "SERVICE_"]
            .iter()
            .any(|p| rest.to_string_lossy().starts_with(p));
        if rest == "CONFIG" || foreign {
            continue;
        }
        let variable = name.to_string_lossy().into_owned();
        let setting = SETTINGS.iter().find(|s| s.variable() == variable).ok_or_else(|| {
            ConfigError::new(format!("unknown environment variable {}; known are SECRETFS_CONFIG and SECRETFS_ with one of {}, in capitals and with _ for -", variable.escape_debug(), known()),
            )
        })?;
        let origin = Origin::Environment(variable);
        match value.to_str() {
            // Blanks separate several keys in one variable; no URI contains one.
            Some(text) if setting.kind == Kind::KeyUris => {
                raws.extend(text.split_whitespace().map(|uri| Raw {
                    setting,
                    value: Some(uri.into()),
                    origin: origin.clone(),
                }));
            }
            _ => raws.push(Raw {
                setting,
                value: Some(value),
                origin,
            }),
        }
    }
    Ok(raws)
}

fn strip_prefix<'a>(text: &'a OsStr, prefix: &str) -> Option<&'a OsStr> {
    use std::os::unix::ffi::OsStrExt;
    text.as_bytes()
        .strip_prefix(prefix.as_bytes())
        .map(OsStr::from_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment_of(pairs: &[(&str, &str)]) -> Result<Vec<Raw>, ConfigError> {
        environment(
            pairs
                .iter()
                .map(|(k, v)| (OsString::from(k), OsString::from(v))),
        )
    }

    #[test]
    fn an_unknown_variable_is_named_and_kubernetes_is_forgiven() {
        let error = environment_of(&[("SECRETFS_TLT", "1")]).expect_err("unknown");
        assert!(error.to_string().contains("SECRETFS_TLT"), "{error}");
        let raws = environment_of(&[
            ("SECRETFS_PORT", "tcp://10.0.0.1:443"),
            ("SECRETFS_SERVICE_HOST", "10.0.0.1"),
            ("SECRETFS_MAX_MEMORY", "64M"),
            ("PATH", "/bin"),
        ])
        .expect("known");
        assert_eq!(raws.len(), 1);
        assert_eq!(raws[0].setting.name, "max-memory");
    }

    #[test]
    fn a_file_is_refused_with_the_place_of_the_mistake() {
        let path = Path::new("/c.toml");
        let error = parse(path, "ttl = \"5s\"\nthreads = = 2\n").expect_err("not TOML");
        assert!(error.to_string().contains("/c.toml: line 2"), "{error}");
        let error = parse(path, "allow_other = true\n").expect_err("unknown");
        assert!(error.to_string().contains("`allow_other`"), "{error}");
        let raws = parse(
            path,
            "ttl = 5\nkms-key = [\"local-kms://a\", \"local-kms://b\"]\n",
        )
        .expect("good");
        assert_eq!(raws.len(), 3);
    }
}
