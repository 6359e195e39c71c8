//! A client for one region, configured by the standard variables and files.
//!
//! If `AWS_CA_BUNDLE` is set, the client must never trust a certificate that the bundle does not
//! vouch for.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::default_provider::region::DefaultRegionChain;
use aws_config::identity::IdentityCache;
use aws_config::provider_config::ProviderConfig;
use aws_sdk_kms::Client;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::config::{Region, SharedCredentialsProvider, SharedHttpClient};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::credentials::{self, HeldCredentials};
use super::endpoint::Endpoint;
use super::errors::{Class, Failure, Place};

/// Limit on the attempts of one call. Backoffs separate them, and the total timeout bounds them
/// all.
const ATTEMPTS: u32 = 3;
/// Limit on the length of a CA bundle, in bytes.
const MAX_BUNDLE: u64 = 16 << 20;

/// The settings of a client besides the standard variables and files.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Limit on one attempt.
    pub(crate) attempt_timeout: Duration,
    /// The shared credentials file that alone provides credentials.
    pub(crate) credentials_file: Option<PathBuf>,
    /// Allows unencrypted calls to an endpoint on another machine.
    pub(crate) insecure_endpoint: bool,
}

/// A client, with the facts that explain its errors.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) credentials: Arc<HeldCredentials>,
    /// The client's endpoint, in plain words.
    pub(crate) name: String,
}

impl Session {
    /// Reads the configuration, and refuses an endpoint that must not be called. Calls no service,
    /// except for the instance metadata if neither `region` nor the configuration names a region.
    pub(crate) async fn load(region: Option<&str>, settings: &Settings) -> Result<Self, Failure> {
        let region = match region {
            Some(region) => Some(Region::new(region.to_owned())),
            None => DefaultRegionChain::builder().build().region().await,
        };
        let Some(region) = region.filter(|region| is_region(region.as_ref())) else {
            return Err(Failure::new(
                Class::Configuration,
                "the AWS region is not known; set AWS_REGION, or name the key by its ARN, which tells the region",
            ));
        };
        let http = http_client()?;
        let mut provider = ProviderConfig::default().with_region(Some(region.clone()));
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if let Some(http) = http {
            provider = provider.with_http_client(http.clone());
            loader = loader.http_client(http);
        }
        let file = settings.credentials_file.as_deref();
        let credentials = Arc::new(HeldCredentials::new(provider, region.clone(), file).await);
        let config = loader
            .region(region.clone())
            .credentials_provider(SharedCredentialsProvider::new(credentials::Provider(
                Arc::clone(&credentials),
            )))
            // `HeldCredentials` is the cache.
            .identity_cache(IdentityCache::no_cache())
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(settings.attempt_timeout)
                    .operation_attempt_timeout(settings.attempt_timeout)
                    .build(),
            )
            .load()
            .await;
        let endpoint = Endpoint::judged(&config, settings.insecure_endpoint)?;
        endpoint.tell_log();
        let mut kms = aws_sdk_kms::config::Builder::from(&config);
        kms.set_endpoint_url(endpoint.url());
        if let Some(http) = endpoint.http_client() {
            kms.set_http_client(Some(http));
        }
        Ok(Self {
            client: Client::from_conf(kms.build()),
            credentials,
            name: endpoint.place(region.as_ref()),
        })
    }

    /// The endpoint, and the source of the present credentials.
    pub(crate) fn place(&self) -> Place {
        Place {
            name: self.name.clone(),
            source: self.credentials.source(),
        }
    }
}

/// Whether `region` is safe as part of a host name. Any other text could name another host.
pub(crate) fn is_region(region: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !region.is_empty() && region.len() <= 63 && region.chars().all(plain)
}

/// A client that trusts `AWS_CA_BUNDLE` alone, like other AWS tools; `None` if it is not set. The
/// Rust SDK ignores that variable.
fn http_client() -> Result<Option<SharedHttpClient>, Failure> {
    let Some(path) = std::env::var_os("AWS_CA_BUNDLE").filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let failed = |why: &str| {
        Failure::new(
            Class::Configuration,
            format!(
                "the CA bundle {} that AWS_CA_BUNDLE names {why}; correct or unset it",
                Path::new(&path).display()
            ),
        )
    };
    let pem = read_bundle(Path::new(&path)).map_err(|e| failed(&format!("cannot be read: {e}")))?;
    let trust = trust_store(&pem);
    let trust = trust.ok_or_else(|| failed("holds no usable certificate in PEM form"))?;
    let context = TlsContext::builder().with_trust_store(trust).build();
    let context = context.map_err(|_| failed("is not accepted"))?;
    Ok(Some(
        aws_smithy_http_client::Builder::new()
            .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
            .tls_context(context)
            .build_https(),
    ))
}

fn read_bundle(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut pem = Vec::new();
    std::fs::File::open(path)?
        .take(MAX_BUNDLE)
        .read_to_end(&mut pem)?;
    Ok(pem)
}

/// The certificates of `pem` that are valid roots. The SDK panics on any other, and a system's
/// bundle may hold some.
fn trust_store(pem: &[u8]) -> Option<TrustStore> {
    let mut store = TrustStore::empty();
    let mut usable = RootCertStore::empty();
    let text = String::from_utf8_lossy(pem);
    for block in text
        .split_inclusive(END)
        .filter(|block| block.ends_with(END))
    {
        let Some(at) = block.rfind(BEGIN) else {
            continue;
        };
        let block = format!("{}\n", &block[at..]);
        let Ok(der) = CertificateDer::from_pem_slice(block.as_bytes()) else {
            continue;
        };
        if usable.add(der).is_ok() {
            store.add_pem_certificate(block);
        }
    }
    (!usable.is_empty()).then_some(store)
}

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_ca_bundles_give_no_trust_store_and_no_panic() {
        let block = |base64: &str| format!("{BEGIN}\n{base64}\n{END}\n");
        for pem in [
            String::new(),
            "hello".to_owned(),
            BEGIN.to_owned(),
            END.to_owned(),
            block(""),
            block("!!!"),
            block("aGVsbG8="),
            format!("{BEGIN}{BEGIN}{END}"),
        ] {
            assert!(trust_store(pem.as_bytes()).is_none(), "{pem}");
        }
        assert!(trust_store(&[0xff; 100]).is_none());
    }

    #[test]
    fn what_is_no_region_is_never_made_part_of_a_host_name() {
        assert!(is_region("eu-central-1") && is_region("us-gov-east-1"));
        for bad in [
            "",
            "evil.example",
            "a/b",
            "a@b",
            "A",
            "x:80",
            &"a".repeat(64),
        ] {
            assert!(!is_region(bad), "{bad}");
        }
    }
}
