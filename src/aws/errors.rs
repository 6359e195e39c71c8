//! Errors of AWS calls, by class and in plain words.
//!
//! An error must never show ciphertext, plaintext or a credential, whatever the service sent. The
//! SDK leaves most refusals untyped, so this module matches their codes on the wire.

use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};

/// Why a call failed: one class for each different reaction of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// The credentials do not allow the call, or AWS does not accept them.
    Denied,
    /// The key is disabled.
    Disabled,
    /// The key is pending deletion, or unusable in its state.
    PendingDeletion,
    /// The key does not exist.
    NotFound,
    /// The ciphertext was made by another key or under another context.
    WrongKey,
    /// No credentials were found.
    NoCredentials,
    /// AWS limits the rate of calls.
    Throttled,
    /// No answer came.
    Unreachable,
    /// The answer is not one of AWS.
    BadAnswer,
    /// The configuration rules the call out.
    Configuration,
}

/// Why a call failed and what to do next. The caller adds the operation and the key.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) class: Class,
    pub(crate) why: String,
}

impl Failure {
    pub(crate) fn new(class: Class, why: impl Into<String>) -> Self {
        Self {
            class,
            why: why.into(),
        }
    }
}

/// A client's endpoint and the source of its credentials, in plain words.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) name: String,
    /// The source of the credentials; `None` if unknown.
    pub(crate) source: Option<String>,
}

impl Place {
    /// Explains why a call of the IAM action `action` failed.
    pub(crate) fn failed<E>(&self, action: &str, error: &SdkError<E, HttpResponse>) -> Failure
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let place = &self.name;
        match error {
            SdkError::ConstructionFailure(_) => Failure::new(
                Class::Configuration,
                "the AWS configuration does not allow the request to be made; check the region, AWS_ENDPOINT_URL_KMS and the profile",
            ),
            SdkError::TimeoutError(_) => Failure::new(
                Class::Unreachable,
                format!("{place} does not answer in time; check the network"),
            ),
            SdkError::DispatchFailure(failure) => {
                let why = match causes(Some(error)).to_ascii_lowercase() {
                    causes if causes.contains("certificate") => {
                        "the TLS certificate that answers for it is not trusted; set AWS_CA_BUNDLE if a certificate authority of your own is in use"
                    }
                    causes if causes.contains("tls") => "the TLS handshake failed; check proxies",
                    causes if causes.contains("dns") => {
                        "its name cannot be resolved; check region and DNS"
                    }
                    _ if failure.is_timeout() => "it does not answer in time; check the network",
                    _ => "the connection was refused or lost; check the network",
                };
                Failure::new(
                    Class::Unreachable,
                    format!("{place} cannot be reached: {why}"),
                )
            }
            SdkError::ResponseError(response) => {
                // Without a whole body the connection was lost; with one, the answer makes no
                // sense.
                if response.raw().body().bytes().is_none() {
                    return Failure::new(
                        Class::Unreachable,
                        format!(
                            "the connection to {place} was lost within the answer; check the network"
                        ),
                    );
                }
                self.nonsense(response.raw().status().as_u16())
            }
            SdkError::ServiceError(service) => {
                let status = service.raw().status().as_u16();
                let meta = service.err().meta();
                match meta.code() {
                    Some(code) => self.refused(action, code, meta.message(), status),
                    None => self.unnamed(action, service.raw().body().bytes(), status),
                }
            }
            _ => Failure::new(Class::BadAnswer, "the AWS SDK failed in an unknown way"),
        }
    }

    /// A refusal without a code in JSON comes from an emulator, or from a proxy. A proxy does not
    /// speak for AWS: its 403 must not count as a revoked key.
    fn unnamed(&self, action: &str, body: Option<&[u8]>, status: u16) -> Failure {
        if let Some(code) = body.and_then(xml_code) {
            return self.refused(action, code, None, status);
        }
        match status {
            429 => self.refused(action, "Throttling", None, status),
            500..=599 => self.refused(action, "ServiceUnavailable", None, status),
            _ => self.nonsense(status),
        }
    }

    fn nonsense(&self, status: u16) -> Failure {
        Failure::new(
            Class::BadAnswer,
            format!(
                "{} answered (HTTP status {status}) with something that is no answer of AWS KMS; check AWS_ENDPOINT_URL_KMS and proxies",
                self.name
            ),
        )
    }

    /// A refusal by its code, in upper or lower case, with or without `Exception` at its end.
    fn refused(&self, action: &str, code: &str, message: Option<&str>, status: u16) -> Failure {
        let place = &self.name;
        let source = self.source.as_deref().unwrap_or("unknown source");
        let said = message.map(tidy).filter(|said| !said.is_empty());
        let said = said
            .map(|said| format!(" (AWS says: {said})"))
            .unwrap_or_default();
        let short = code.to_ascii_lowercase();
        let short = short.strip_suffix("exception").unwrap_or(&short);
        let (class, why) = match short {
            "accessdenied" | "notauthorized" | "unauthorizedoperation" | "optinrequired"
            | "kmsaccessdenied" => (
                Class::Denied,
                format!(
                    "the credentials (from: {source}) may not do {action} on it; allow {action} on this key in their IAM policy and in the key policy{said}"
                ),
            ),
            "expiredtoken" | "tokenrefreshrequired" | "requestexpired" => (
                Class::Denied,
                format!("the credentials (from: {source}) have expired; renew them, for example by logging in again"),
            ),
            "unrecognizedclient" | "invalidclienttokenid" | "invalidaccesskeyid"
            | "missingauthenticationtoken" | "missingauthenticationtokenid" => (
                Class::Denied,
                format!("AWS does not know the access key or session token of the credentials (from: {source}); they were deleted, or belong to another partition or endpoint; replace them"),
            ),
            "invalidsignature" | "signaturedoesnotmatch" | "incompletesignature"
            | "requesttimetooskewed" => (
                Class::Denied,
                format!("the signature is not accepted: the secret access key of the credentials (from: {source}) is wrong, or this host's clock is; check both"),
            ),
            "invalidgranttoken" | "invalidgrantid" => (
                Class::Denied,
                format!("the grant that allows {action} is not valid; create the grant again"),
            ),
            "throttling" | "throttled" | "toomanyrequests" | "requestlimitexceeded"
            | "limitexceeded" | "slowdown" | "provisionedthroughputexceeded" => (
                Class::Throttled,
                format!("{place} asks to be called less often; wait, or have the request quota raised"),
            ),
            "incorrectkey" => (
                Class::WrongKey,
                "this is not the key that wrapped it; name the key that did".to_owned(),
            ),
            "invalidciphertext" => (
                Class::WrongKey,
                "it was wrapped by another key or under another encryption context (vault, purpose or generation), or was altered; make sure that key and vault are the right ones".to_owned(),
            ),
            "disabled" => (
                Class::Disabled,
                "the key is disabled; enable it to use it again (kms:EnableKey)".to_owned(),
            ),
            "kmsinvalidstate" => (
                Class::PendingDeletion,
                format!("the key is pending deletion or import, or otherwise in no state to serve; cancel the deletion and enable it, or import its material{said}"),
            ),
            "notfound" => (
                Class::NotFound,
                format!("{place} has no such key; check region, account and spelling, or whether it was deleted"),
            ),
            "keyunavailable" | "kmsinternal" | "dependencytimeout" | "internalfailure"
            | "internalservererror" | "internalerror" | "serviceunavailable" | "requesttimeout"
            | "cloudhsmclusternotactive" | "xksproxyuriunreachable" => (
                Class::Unreachable,
                format!("{place} cannot serve the key at the moment ({}); try again later", tidy(code)),
            ),
            "invalidkeyusage" | "unsupportedoperation" => (
                Class::Configuration,
                "the key is not made for encryption; use a symmetric key for encrypting and decrypting".to_owned(),
            ),
            "invalidarn" | "validation" | "validationerror" | "invalidaliasname"
            | "invalidparametervalue" | "invalidkeyid" => (
                Class::Configuration,
                "AWS does not take this for a key; write its ARN, key id, or alias/NAME".to_owned(),
            ),
            _ => (
                Class::BadAnswer,
                format!("{place} refused with `{}` (HTTP status {status}), which secretfs does not know", tidy(code)),
            ),
        };
        Failure::new(class, why)
    }
}

/// The code in an XML error, as some emulators and proxies send it.
fn xml_code(body: &[u8]) -> Option<&str> {
    let body = std::str::from_utf8(body.get(..body.len().min(64 << 10))?).ok()?;
    let (_, rest) = body.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let plain = !code.is_empty() && code.len() <= 64 && code.chars().all(char::is_alphanumeric);
    plain.then_some(code)
}

/// Foreign text as one short line. It has no control characters, and no long words except ARNs:
/// those could be ciphertext, keys or tokens.
pub(crate) fn tidy(text: &str) -> String {
    let mut tidy = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
        if word.is_empty() {
            continue;
        }
        if tidy.len() > 400 {
            return tidy + " ...";
        }
        if !tidy.is_empty() {
            tidy.push(' ');
        }
        if word.len() < 40 || (word.starts_with("arn:") && word.len() < 400) {
            tidy.push_str(word);
        } else {
            tidy.push_str("...");
        }
    }
    tidy
}

/// An error and its causes in one line, to match against, or to pass to [`tidy`].
pub(crate) fn causes(mut error: Option<&dyn std::error::Error>) -> String {
    let mut causes = Vec::new();
    while let Some(cause) = error {
        causes.push(cause.to_string());
        error = cause.source();
    }
    causes.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_one_short_line_without_anything_that_could_be_a_secret() {
        let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let arn = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
        let said = tidy(&format!("not\n\x1b[31mauthorized  on {arn} with {key}"));
        assert_eq!(said, format!("not [31mauthorized on {arn} with ..."));
        assert!(tidy(&"word ".repeat(10_000)).len() < 500);
    }

    #[test]
    fn a_code_is_found_in_xml_and_only_a_code() {
        let xml = |code: &str| format!("<E><Error><Code>{code}</Code></Error></E>").into_bytes();
        assert_eq!(xml_code(&xml("AccessDenied")), Some("AccessDenied"));
        assert_eq!(xml_code(&xml("")), None);
        assert_eq!(xml_code(&xml("a b")), None);
        assert_eq!(xml_code(&xml(&"a".repeat(65))), None);
        assert_eq!(xml_code(b"<Code>"), None);
        assert_eq!(xml_code(&[0xff]), None);
    }
}
