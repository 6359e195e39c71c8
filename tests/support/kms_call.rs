//! KMS calls in a process of their own, whose environment the test chooses.
//!
//! The AWS configuration is read from environment variables, which belong to a whole process,
//! while `cargo test` runs the tests of a file as threads of one. So the test binary starts itself
//! anew, with nothing but the wanted variables. A test file that uses this has to have
//!
//! ```text
//! #[test]
//! #[ignore = "runs within other tests"]
//! fn kms_child() {
//!     support::kms_call::child();
//! }
//! ```

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use secretfs::crypto::SecretKey;
use secretfs::kms::{EncryptionContext, KeyService as _, KeyUri, Kms, KmsSettings, connect};
use serde::{Deserialize, Serialize};

/// One step of the child.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Step {
    /// Wraps a key of 32 equal bytes for a vault, generation 1.
    Wrap { uri: String, key: u8, vault: String },
    /// Unwraps a blob for a vault, generation 1.
    Unwrap {
        uri: String,
        blob: Vec<u8>,
        vault: String,
    },
    /// Describes a key.
    Describe { uri: String },
    /// Creates a local key unless it exists; the state tells whether it did.
    Ensure { name: String },
    /// Writes a file.
    Write { path: PathBuf, content: String },
}

/// What a step gave. Only the fields that the step has.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Good {
    pub key_id: String,
    pub blob: Vec<u8>,
    pub key: Vec<u8>,
    pub state: String,
    pub credentials: Option<String>,
}

/// Why a step failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bad {
    /// The name of the `KmsErrorKind`.
    pub kind: String,
    pub message: String,
}

/// The outcome of a step, and how long it took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub result: Result<Good, Bad>,
    pub took: Duration,
}

#[derive(Serialize, Deserialize)]
struct Script {
    attempt_timeout: Duration,
    total_timeout: Duration,
    credentials_file: Option<PathBuf>,
    at_once: bool,
    steps: Vec<Step>,
}

/// A process in which to make KMS calls.
pub struct Caller {
    env: Vec<(String, String)>,
    script: Script,
}

const MARK: &str = "outcomes:";
/// The first line of a child's log.
pub const LOGGING: &str = "the child logs at every level";

impl Caller {
    /// With this environment and no other.
    pub fn new(env: Vec<(String, String)>) -> Self {
        let defaults = KmsSettings::default();
        let script = Script {
            attempt_timeout: defaults.attempt_timeout,
            // Generous: the machine may be busy, and most tests are not about time.
            total_timeout: Duration::from_secs(60),
            credentials_file: None,
            at_once: false,
            steps: Vec::new(),
        };
        Self { env, script }
    }

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.retain(|(n, _)| n != name);
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Takes a variable away.
    pub fn without(mut self, name: &str) -> Self {
        self.env.retain(|(n, _)| n != name);
        self
    }

    /// Sets the bounds.
    pub fn timeouts(mut self, attempt: Duration, total: Duration) -> Self {
        (self.script.attempt_timeout, self.script.total_timeout) = (attempt, total);
        self
    }

    /// Sets the explicit credentials file.
    pub fn credentials_file(mut self, path: PathBuf) -> Self {
        self.script.credentials_file = Some(path);
        self
    }

    /// Makes the calls at once, each from a thread of its own.
    pub fn at_once(mut self) -> Self {
        self.script.at_once = true;
        self
    }

    /// Runs the steps with one `Kms`.
    pub fn run(self, steps: &[Step]) -> Vec<Outcome> {
        self.run_logged(steps).0
    }

    /// The same, with all that the process logged besides.
    pub fn run_logged(mut self, steps: &[Step]) -> (Vec<Outcome>, String) {
        self.script.steps = steps.to_vec();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kms_child", "--ignored", "--nocapture"])
            .env_clear()
            .envs(self.env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let script = serde_json::to_vec(&self.script).unwrap();
        child.stdin.take().unwrap().write_all(&script).unwrap();
        let output = child.wait_with_output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let outcomes = stdout
            .lines()
            .find_map(|line| Some(line.split_once(MARK)?.1));
        let outcomes = outcomes.unwrap_or_else(|| panic!("the child failed:\n{stdout}{log}"));
        (serde_json::from_str(outcomes).unwrap(), log)
    }

    /// Runs one step.
    pub fn one(self, step: Step) -> Outcome {
        self.run(&[step]).remove(0)
    }
}

/// The steps, short.
pub fn wrap(uri: &str, key: u8, vault: &str) -> Step {
    Step::Wrap {
        uri: uri.to_owned(),
        key,
        vault: vault.to_owned(),
    }
}

pub fn unwrap(uri: &str, blob: &[u8], vault: &str) -> Step {
    Step::Unwrap {
        uri: uri.to_owned(),
        blob: blob.to_owned(),
        vault: vault.to_owned(),
    }
}

pub fn describe(uri: &str) -> Step {
    Step::Describe {
        uri: uri.to_owned(),
    }
}

/// What the child process does.
pub fn child() {
    let mut script = Vec::new();
    std::io::stdin().read_to_end(&mut script).unwrap();
    if script.is_empty() {
        return; // Run by itself, among all ignored tests.
    }
    let script: Script = serde_json::from_slice(&script).expect("a script");
    let settings = KmsSettings {
        attempt_timeout: script.attempt_timeout,
        total_timeout: script.total_timeout,
        credentials_file: script.credentials_file,
        ..KmsSettings::default()
    };
    // As much as can be logged at all.
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(std::io::stderr)
        .init();
    tracing::trace!("{LOGGING}");
    let kms = &connect(&settings);
    let outcomes: Vec<Outcome> = if script.at_once {
        std::thread::scope(|scope| {
            let steps: Vec<_> = script
                .steps
                .iter()
                .map(|step| scope.spawn(move || perform(kms, step)))
                .collect();
            steps.into_iter().map(|step| step.join().unwrap()).collect()
        })
    } else {
        script.steps.iter().map(|step| perform(kms, step)).collect()
    };
    println!("\n{MARK}{}", serde_json::to_string(&outcomes).unwrap());
}

fn perform(kms: &Kms, step: &Step) -> Outcome {
    let start = Instant::now();
    let uri = |uri: &str| uri.parse::<KeyUri>().expect("a key URI");
    let context = |vault: &str| EncryptionContext::master_key(vault, 1);
    let result = match step {
        Step::Wrap { uri: u, key, vault } => {
            let key = SecretKey::from_slice(&[*key; 32]).unwrap();
            kms.wrap(&uri(u), &key, &context(vault)).map(|w| Good {
                key_id: w.key_id,
                blob: w.blob,
                ..Good::default()
            })
        }
        Step::Unwrap {
            uri: u,
            blob,
            vault,
        } => kms.unwrap(&uri(u), blob, &context(vault)).map(|key| Good {
            key: key.expose().to_vec(),
            ..Good::default()
        }),
        Step::Describe { uri: u } => kms.describe(&uri(u)).map(|d| Good {
            key_id: d.key_id,
            state: format!("{:?}", d.state),
            credentials: d.credentials,
            ..Good::default()
        }),
        Step::Ensure { name } => kms
            .local()
            .and_then(|local| local.ensure(name))
            .map(|created| Good {
                state: created.to_string(),
                ..Good::default()
            }),
        Step::Write { path, content } => {
            std::fs::write(path, content).unwrap();
            Ok(Good::default())
        }
    };
    let bad = |e: secretfs::kms::KmsError| Bad {
        kind: format!("{:?}", e.kind),
        message: e.message,
    };
    Outcome {
        result: result.map_err(bad),
        took: start.elapsed(),
    }
}
