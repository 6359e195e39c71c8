//! The endpoint that the KMS client calls, checked before the client sends anything.
//!
//! Wrapping sends the master key itself, so the server has it, and so does a listener on an
//! unencrypted way. This module must never let the key leave this machine unencrypted, unless the
//! setting `insecure-kms-endpoint` allows it. Nor may it check another address than the one that
//! the client calls: it looks the URL up by the SDK's rules, parses it with the parser that
//! connects, and then sets it in the client, which looks up nothing itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aws_config::SdkConfig;
use aws_sdk_kms::config::SharedHttpClient;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::dns::{DnsFuture, ResolveDns};
use aws_types::service_config::ServiceConfigKey;
use http::Uri;

use super::errors::{Class, Failure, tidy};

/// The domains of AWS: for each partition, the suffixes of the IPv4 and of the dual-stack
/// endpoints.
const OF_AWS: [&str; 14] = [
    "amazonaws.com",
    "api.aws",
    "amazonaws.com.cn",
    "api.amazonwebservices.com.cn",
    "amazonaws.eu",
    "api.amazonwebservices.eu",
    "c2s.ic.gov",
    "api.aws.ic.gov",
    "sc2s.sgov.gov",
    "api.aws.scloud",
    "cloud.adc-e.uk",
    "api.cloud-aws.adc-e.uk",
    "csp.hci.ic.gov",
    "api.aws.hci.ic.gov",
];

/// An endpoint that may be called.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// The AWS endpoint of the region, over TLS.
    OfTheRegion,
    /// The endpoint that the operator configured.
    Configured {
        /// The URL for the client.
        url: String,
        /// The URL without user name and password.
        shown: String,
        /// The way to the endpoint.
        way: Way,
    },
}

/// The way to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Encrypted; `aws` if the name belongs to AWS.
    Tls { aws: bool },
    /// In the clear, inside this machine.
    Loopback,
    /// In the clear over a network, as the settings allow.
    InTheClear,
}

impl Endpoint {
    /// The endpoint that `config` leads to; the client must call no other. `insecure` allows calls
    /// in the clear over a network.
    pub(crate) fn judged(config: &SdkConfig, insecure: bool) -> Result<Self, Failure> {
        match configured(config) {
            None => Ok(Self::OfTheRegion),
            Some(url) => {
                judge(&url, insecure).map_err(|why| Failure::new(Class::Configuration, why))
            }
        }
    }

    /// The URL to set in the client; `None` for the region's own endpoint.
    pub(crate) fn url(&self) -> Option<String> {
        match self {
            Self::OfTheRegion => None,
            Self::Configured { url, .. } => Some(url.clone()),
        }
    }

    /// The HTTP client for calls within this machine; `None` for the default client. It uses no
    /// proxy from the environment, which would receive the calls unencrypted, and asks no resolver
    /// for the address of `localhost`.
    pub(crate) fn http_client(&self) -> Option<SharedHttpClient> {
        let Self::Configured {
            way: Way::Loopback, ..
        } = self
        else {
            return None;
        };
        Some(
            aws_smithy_http_client::Builder::new()
                .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
                .build_with_resolver(ThisMachine),
        )
    }

    /// The endpoint in plain words.
    pub(crate) fn place(&self, region: &str) -> String {
        match self {
            Self::OfTheRegion => format!("AWS KMS in {region}"),
            Self::Configured { shown, .. } => format!("{shown} (region {region})"),
        }
    }

    /// Logs a warning if the endpoint is not one of AWS.
    pub(crate) fn tell_log(&self) {
        let Self::Configured { shown, way, .. } = self else {
            return;
        };
        match way {
            Way::Tls { aws: true } => {}
            Way::Tls { aws: false } => tracing::warn!(
                "the KMS endpoint {shown} is not AWS's: whoever answers there is sent the master key when it is wrapped"
            ),
            Way::Loopback => tracing::warn!(
                "the KMS endpoint {shown} is not AWS's, but on this machine: whoever answers there is sent the master key when it is wrapped"
            ),
            Way::InTheClear => tracing::warn!(
                "the KMS endpoint {shown} is called without encryption, as insecure-kms-endpoint allows: whoever is on the way to it sees the master key when it is wrapped"
            ),
        }
    }
}

/// The endpoint that environment or profile name for KMS, by the SDK's own rules: variables before
/// files, an endpoint for KMS before one for all services, and none if the configuration says to
/// ignore them.
fn configured(config: &SdkConfig) -> Option<String> {
    let key = ServiceConfigKey::builder()
        .service_id("KMS")
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build()
        .ok()?;
    let of_kms = config
        .service_config()
        .and_then(|service| service.load_config(key));
    of_kms.or_else(|| config.endpoint_url().map(str::to_owned))
}

/// The way to call `url`, or the reason why it must not be called.
fn judge(url: &str, insecure: bool) -> Result<Endpoint, String> {
    // The error does not show the URL, which may hold a password.
    let bad = || {
        "the KMS endpoint that AWS_ENDPOINT_URL_KMS, AWS_ENDPOINT_URL or the profile names is no URL that begins with https://; correct it".to_owned()
    };
    let uri: Uri = url.parse().map_err(|_| bad())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(bad());
    };
    // The part before an @ is not the host, even if it looks like one.
    let host = authority.host();
    if host.is_empty() {
        return Err(bad());
    }
    let port = authority.port().map(|port| format!(":{port}"));
    let shown = tidy(&format!("{scheme}://{host}{}", port.unwrap_or_default()));
    let way = match scheme {
        "https" => Way::Tls { aws: is_aws(host) },
        "http" if is_loopback(host) => Way::Loopback,
        "http" if insecure => Way::InTheClear,
        "http" => {
            return Err(format!(
                "the KMS endpoint {shown} would be called without encryption, and who wraps a master key sends it there; use an endpoint with https://, one on this machine (127.0.0.1, [::1], localhost), or, if the way there is safe, the setting insecure-kms-endpoint"
            ));
        }
        _ => return Err(bad()),
    };
    Ok(Endpoint::Configured {
        url: url.to_owned(),
        shown,
        way,
    })
}

/// Whether `host` is this machine, whatever a resolver says. Unusual spellings of loopback
/// addresses do not count: a doubtful host is not this machine.
fn is_loopback(host: &str) -> bool {
    match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(host) => host.parse().is_ok_and(|host: Ipv6Addr| host.is_loopback()),
        None => {
            host.eq_ignore_ascii_case("localhost")
                || host.parse().is_ok_and(|host: Ipv4Addr| host.is_loopback())
        }
    }
}

fn is_aws(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    OF_AWS.iter().any(|suffix| {
        host.strip_suffix(suffix)
            .is_some_and(|rest| rest.ends_with('.'))
    })
}

/// Resolves `localhost`, the only name that it is asked for, without hosts file and DNS, which may
/// give another address.
#[derive(Clone, Debug)]
struct ThisMachine;

impl ResolveDns for ThisMachine {
    fn resolve_dns<'a>(&'a self, _name: &'a str) -> DnsFuture<'a> {
        DnsFuture::ready(Ok(vec![
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ]))
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_kms::config::endpoint::{DefaultResolver, Params, ResolveEndpoint as _};

    use super::*;

    fn way(url: &str) -> Option<Way> {
        match judge(url, false) {
            Ok(Endpoint::Configured { way, .. }) => Some(way),
            _ => None,
        }
    }

    #[test]
    fn only_this_machine_is_called_without_encryption() {
        for here in [
            "http://127.0.0.1:5000",
            "HTTP://127.8.9.1/",
            "http://[::1]:5000",
            "http://localhost",
            "http://LocalHost:1/x",
            "http://evil.example@127.0.0.1",
        ] {
            assert_eq!(way(here), Some(Way::Loopback), "{here}");
        }
        for elsewhere in [
            "http://192.0.2.7:8080",
            "HTTP://192.0.2.7",
            "http://127.0.0.1.evil.example",
            "http://localhost.evil.example",
            "http://localhost@evil.example",
            "http://127.0.0.1:80@evil.example:80",
            "http://localhost.",
            "http://127.0.0.1.",
            "http://127.1",
            "http://2130706433",
            "http://0x7f.0.0.1",
            "http://0.0.0.0",
            "http://[::]",
            "http://[::ffff:192.0.2.7]",
            "http://[::ffff:127.0.0.1]",
            "http://[::1%25eth0]",
            "http://128.0.0.1",
            "http://kms.eu-central-1.amazonaws.com",
        ] {
            assert_eq!(way(elsewhere), None, "{elsewhere}");
        }
        assert!(matches!(
            judge("http://192.0.2.7", true),
            Ok(Endpoint::Configured {
                way: Way::InTheClear,
                ..
            })
        ));
    }

    #[test]
    fn what_is_no_url_of_a_server_is_refused_and_not_shown() {
        for bad in [
            "",
            "s3cret",
            "localhost:5000",
            "//s3cret",
            "ftp://s3cret",
            "unix:/s3cret",
            "http://",
            "http:s3cret",
            "http:///s3cret",
            "https://@",
            "http://localhost\\@s3cret",
            " http://s3cret",
            "http://s3cret\n",
        ] {
            let why = judge(bad, true).expect_err(bad);
            assert!(why.contains("no URL") && !why.contains("s3cret"), "{why}");
        }
    }

    #[test]
    fn user_names_and_passwords_are_not_shown() {
        for url in ["https://user:s3cret@kms.example:8443/x", "http://s3cret@h"] {
            let shown = match judge(url, false) {
                Ok(endpoint) => endpoint.place("eu-central-1"),
                Err(why) => why,
            };
            assert!(
                !shown.contains("s3cret") && shown.contains("://"),
                "{shown}"
            );
        }
    }

    /// One region of each partition; the SDK says where its KMS is.
    #[test]
    fn every_endpoint_that_the_sdk_has_is_known_for_one_of_aws() {
        let regions = [
            "eu-central-1",
            "cn-north-1",
            "us-gov-east-1",
            "eusc-de-east-1",
            "us-iso-east-1",
            "us-isob-east-1",
            "eu-isoe-west-1",
            "us-isof-south-1",
            "of-no-partition",
        ];
        for region in regions {
            for dual_stack in [false, true] {
                let params = Params::builder()
                    .region(region)
                    .use_dual_stack(dual_stack)
                    .build()
                    .unwrap();
                let resolver = DefaultResolver::new();
                let endpoint = futures_ready(resolver.resolve_endpoint(&params));
                assert_eq!(
                    way(&endpoint),
                    Some(Way::Tls { aws: true }),
                    "{region}: {endpoint}"
                );
            }
        }
        for other in [
            "https://kms.example",
            "https://amazonaws.com.evil.example",
            "https://evilamazonaws.com",
            "https://kms.amazonaws.com@evil.example",
        ] {
            assert_eq!(way(other), Some(Way::Tls { aws: false }), "{other}");
        }
    }

    fn futures_ready(
        future: aws_smithy_runtime_api::client::endpoint::EndpointFuture<'_>,
    ) -> String {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
            .expect("an endpoint")
            .url()
            .to_owned()
    }
}
