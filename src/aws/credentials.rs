//! The search for AWS credentials, separate from the calls that need them.
//!
//! The search is a step of its own before each call. So errors tell "no credentials" from "KMS does
//! not answer", and a slow role service does not use up the short time limit of an attempt. This
//! module must never show a credential.

use std::error::Error;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_credential_types::credential_feature::AwsCredentialFeature as Feature;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_kms::config::Region;

use crate::sync::{Mutex, Rank};

use super::errors::{Class, Failure, causes, tidy};

/// Expiring credentials are renewed this long before they expire.
const RENEW_BEFORE: Duration = Duration::from_secs(300);

/// A search with its latest result, which also serves as the SDK's cache.
pub(crate) struct HeldCredentials {
    search: SharedCredentialsProvider,
    held: Mutex<Option<Credentials>>,
    /// The explicit credentials file, in plain words.
    file: Option<String>,
}

impl HeldCredentials {
    /// Searches `file` alone if there is one: an operator who names a file wants no other identity,
    /// even if the file lacks something. Otherwise searches where every AWS tool does.
    pub(crate) async fn new(config: ProviderConfig, region: Region, file: Option<&Path>) -> Self {
        let search = match file {
            None => SharedCredentialsProvider::new(
                DefaultCredentialsChain::builder()
                    .region(region)
                    .configure(config)
                    .build()
                    .await,
            ),
            Some(path) => {
                let files =
                    EnvConfigFiles::builder().with_file(EnvConfigFileKind::Credentials, path);
                SharedCredentialsProvider::new(
                    ProfileFileCredentialsProvider::builder()
                        .configure(&config)
                        .profile_files(files.build())
                        .build(),
                )
            }
        };
        let file = file.map(|path| format!("credentials file {}", path.display()));
        Self {
            search,
            held: Mutex::new(Rank::AwsCredentials, None),
            file,
        }
    }

    /// Searches for credentials if there are none, or if they expire soon.
    pub(crate) async fn refresh(&self) -> Result<(), CredentialsError> {
        let held = self.held();
        if held
            .as_ref()
            .is_some_and(|held| outlives(held, RENEW_BEFORE))
        {
            return Ok(());
        }
        match self.search.provide_credentials().await {
            Ok(found) => {
                *self.held.lock() = Some(found);
                Ok(())
            }
            // Credentials that are still valid bridge an outage of their source.
            Err(_) if held.is_some_and(|held| outlives(&held, Duration::ZERO)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The source of the credentials, in plain words.
    pub(crate) fn source(&self) -> Option<String> {
        let held = self.held()?;
        let features = held
            .get_property::<Vec<Feature>>()
            .map_or(&[][..], Vec::as_slice);
        let source = describe(features, &profile_name());
        Some(match &self.file {
            Some(file) => format!("{file} ({source})"),
            None => source,
        })
    }

    /// Explains in plain words why a search failed.
    pub(crate) fn failed(&self, error: &CredentialsError) -> Failure {
        let profile = tidy(&profile_name());
        match error {
            CredentialsError::CredentialsNotLoaded(_) => Failure::new(
                Class::NoCredentials,
                match &self.file {
                    Some(file) => format!(
                        "the {file} cannot be read or holds nothing for the profile {profile}; correct it, or name another"
                    ),
                    None => format!(
                        "no AWS credentials were found in the environment, the shared profile {profile}, web identity, container or instance metadata; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this host a role"
                    ),
                },
            ),
            CredentialsError::ProviderTimedOut(_) => Failure::new(Class::NoCredentials, SLOW),
            CredentialsError::InvalidConfiguration(_) => Failure::new(
                Class::Configuration,
                format!(
                    "the AWS configuration is wrong ({}); correct it",
                    tidy(&causes(error.source()))
                ),
            ),
            _ => Failure::new(
                Class::NoCredentials,
                format!(
                    "the source of AWS credentials gave none ({}); look at the role, profile or service that provides them",
                    tidy(&causes(error.source()))
                ),
            ),
        }
    }

    fn held(&self) -> Option<Credentials> {
        self.held.lock().clone()
    }
}

impl fmt::Debug for HeldCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HeldCredentials(..)")
    }
}

/// Provides the SDK with the same credentials.
#[derive(Debug)]
pub(crate) struct Provider(pub(crate) Arc<HeldCredentials>);

impl ProvideCredentials for Provider {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        match self.0.held() {
            Some(held) if outlives(&held, Duration::ZERO) => {
                future::ProvideCredentials::ready(Ok(held))
            }
            _ => self.0.search.provide_credentials(),
        }
    }
}

fn outlives(credentials: &Credentials, time: Duration) -> bool {
    credentials
        .expiry()
        .is_none_or(|expiry| expiry > SystemTime::now() + time)
}

/// The name of the profile that the SDK reads.
fn profile_name() -> String {
    std::env::var("AWS_PROFILE")
        .ok()
        .filter(|n| !n.is_empty())
        .unwrap_or("default".to_owned())
}

/// Describes a source by the marks that the SDK puts on credentials, one for each step that led to
/// them.
fn describe(features: &[Feature], profile: &str) -> String {
    let has = |wanted: &[Feature]| wanted.iter().any(|feature| features.contains(feature));
    let step = if has(&[Feature::CredentialsSso, Feature::CredentialsProfileSso]) {
        Some("IAM Identity Center")
    } else if has(&[
        Feature::CredentialsProcess,
        Feature::CredentialsProfileProcess,
    ]) {
        Some("credential process")
    } else if has(&[
        Feature::CredentialsStsAssumeRole,
        Feature::CredentialsProfileSourceProfile,
    ]) {
        Some("assumed role")
    } else if has(&[
        Feature::CredentialsStsAssumeRoleWebId,
        Feature::CredentialsEnvVarsStsWebIdToken,
        Feature::CredentialsProfileStsWebIdToken,
    ]) {
        Some("web identity")
    } else if has(&[Feature::CredentialsHttp]) {
        Some("container")
    } else if has(&[Feature::CredentialsImds]) {
        Some("instance role")
    } else {
        None
    };
    // Web identity from the environment also has the mark for web identity from a profile, but
    // neither of these two.
    if has(&[
        Feature::CredentialsProfile,
        Feature::CredentialsProfileLogin,
    ]) {
        return match step {
            Some(step) => format!("shared profile {profile}, {step}"),
            None => format!("shared profile {profile}"),
        };
    }
    match step {
        Some(step) => step.to_owned(),
        None if has(&[Feature::CredentialsEnvVars]) => "environment".to_owned(),
        None => "a source that the AWS SDK does not name".to_owned(),
    }
}

/// The error for a search that does not end in time.
pub(crate) const SLOW: &str = "the search for AWS credentials did not end in time; look at the role service, credential process or instance metadata that this host uses, or set AWS_EC2_METADATA_DISABLED=true if it has none";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_of_credentials_has_plain_words() {
        let words = |features: &[Feature]| describe(features, "ops");
        assert_eq!(words(&[Feature::CredentialsEnvVars]), "environment");
        assert_eq!(words(&[Feature::CredentialsProfile]), "shared profile ops");
        assert_eq!(
            words(&[Feature::CredentialsSso, Feature::CredentialsProfile]),
            "shared profile ops, IAM Identity Center"
        );
        assert_eq!(
            words(&[Feature::CredentialsProfileStsWebIdToken]),
            "web identity"
        );
        assert_eq!(words(&[Feature::CredentialsHttp]), "container");
        assert_eq!(words(&[Feature::CredentialsImds]), "instance role");
        assert_eq!(words(&[]), "a source that the AWS SDK does not name");
    }
}
