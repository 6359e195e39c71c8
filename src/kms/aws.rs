//! AWS KMS.
//!
//! Before the first call there is no thread, no connection, and no configuration is read. The total
//! timeout bounds each call from its start, whatever hangs. Each call names its key even where AWS
//! does not require it, so that AWS refuses a wrap made under another key.
//!
//! This module must never accept an answer that does not name the requested key, nor keep a key's
//! bytes in an unwiped buffer within its reach. (The SDK's own copies are beyond it.)

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{KeyMetadata, KeySpec, KeyState as AwsKeyState, KeyUsageType};
use zeroize::Zeroizing;

mod call;

use call::{Call, Operation};

use super::{
    EncryptionContext, KeyDescription, KeyService, KeyState, KeyUri, KmsError, KmsErrorKind,
    KmsSettings, Wrapped,
};
use crate::aws::credentials;
use crate::aws::errors::{self, Failure};
use crate::aws::session::{self, Session, is_region};
use crate::aws::worker::{NoOutcome, Worker};
use crate::crypto::SecretKey;
use crate::sync::{Mutex, Rank};

/// Limit of AWS KMS on a ciphertext, in bytes.
const MAX_BLOB: usize = 6144;

/// AWS KMS, in any number of regions.
pub(super) struct AwsKms {
    /// Limit on a call, with all its attempts and the search for credentials.
    total_timeout: Duration,
    shared: Arc<Shared>,
    worker: Mutex<Option<Arc<Worker>>>,
}

struct Shared {
    settings: session::Settings,
    /// Sessions by the region in the key's ARN; `None` for keys whose region comes from the
    /// environment.
    sessions: Mutex<HashMap<Option<String>, Arc<Session>>>,
}

impl AwsKms {
    /// Stores the settings; does nothing else.
    pub(super) fn new(settings: &KmsSettings) -> Self {
        let shared = Shared {
            settings: session::Settings {
                attempt_timeout: settings.attempt_timeout,
                credentials_file: settings.credentials_file.clone(),
                insecure_endpoint: settings.insecure_endpoint,
            },
            sessions: Mutex::new(Rank::AwsSessions, HashMap::new()),
        };
        Self {
            total_timeout: settings.total_timeout,
            shared: Arc::new(shared),
            worker: Mutex::new(Rank::AwsWorker, None),
        }
    }

    /// The source of the credentials of past calls.
    pub(super) fn credentials(&self) -> Option<String> {
        let sessions = self.shared.sessions.lock();
        sessions
            .values()
            .find_map(|session| session.credentials.source())
    }

    /// Whether a call was made.
    #[cfg(test)]
    pub(super) fn is_started(&self) -> bool {
        self.worker.lock().is_some()
    }

    /// Runs one call on the worker, within the total timeout.
    fn run<T, F>(
        &self,
        call: Call,
        request: impl FnOnce(Arc<Session>, Call) -> F + Send + 'static,
    ) -> Result<T, KmsError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, KmsError>> + Send + 'static,
    {
        let total = self.total_timeout;
        let deadline = Instant::now() + total;
        let region = region_of(&call)?;
        let worker = self.worker(&call)?;
        // Set once AWS KMS itself is called: an error after a time-out says what took the time.
        let asked = Arc::new(AtomicBool::new(false));
        let task = {
            let (shared, call, asked) = (Arc::clone(&self.shared), call.clone(), asked.clone());
            async move {
                let session = shared.session(&region).await;
                let session = session.map_err(|failure| call.failed(failure))?;
                let outcome = match session.credentials.refresh().await {
                    Err(e) => Err(call.failed(session.credentials.failed(&e))),
                    Ok(()) => {
                        asked.store(true, Ordering::Relaxed);
                        request(session, call).await
                    }
                };
                if let Err(e) = &outcome
                    && depends_on_configuration(e.kind)
                {
                    // The next call loads a new session: an operator may have replaced credentials
                    // or profiles.
                    shared.sessions.lock().remove(&region);
                }
                outcome
            }
        };
        match worker.call(deadline, task) {
            Ok(outcome) => outcome,
            Err(NoOutcome::TimedOut) if asked.load(Ordering::Relaxed) => Err(call.fail(
                KmsErrorKind::Unreachable,
                format!(
                    "no answer from AWS KMS within {} s; check the network",
                    total.as_secs_f32()
                ),
            )),
            Err(NoOutcome::TimedOut) => {
                Err(call.fail(KmsErrorKind::NoCredentials, credentials::SLOW))
            }
            Err(NoOutcome::Died) => Err(call.fail(
                KmsErrorKind::BadAnswer,
                "the AWS SDK panicked; please report this with the log",
            )),
        }
    }

    fn worker(&self, call: &Call) -> Result<Arc<Worker>, KmsError> {
        let mut worker = self.worker.lock();
        if let Some(worker) = &*worker {
            return Ok(Arc::clone(worker));
        }
        let started = Worker::start().map_err(|e| {
            call.fail(
                KmsErrorKind::Unreachable,
                format!("no thread could be started for the call: {e}; check process limits"),
            )
        })?;
        Ok(Arc::clone(worker.insert(Arc::new(started))))
    }
}

impl Shared {
    async fn session(&self, region: &Option<String>) -> Result<Arc<Session>, Failure> {
        if let Some(session) = self.sessions.lock().get(region) {
            return Ok(Arc::clone(session));
        }
        // Load without the lock. Two concurrent first calls may both load, and either session is
        // good.
        let session = Arc::new(Session::load(region.as_deref(), &self.settings).await?);
        self.sessions
            .lock()
            .insert(region.clone(), Arc::clone(&session));
        Ok(session)
    }
}

impl KeyService for AwsKms {
    fn wrap(
        &self,
        uri: &KeyUri,
        key: &SecretKey,
        context: &EncryptionContext,
    ) -> Result<Wrapped, KmsError> {
        let (key, context) = (key.clone(), pairs(context));
        self.run(call(Operation::Wrap, uri), async move |session, call| {
            let output = session
                .client
                .encrypt()
                .key_id(call.uri.key())
                .plaintext(Blob::new(key.expose().as_slice()))
                .set_encryption_context(Some(context))
                .send()
                .await
                .map_err(|e| refused(&call, &session, &e))?;
            let key_id = answered_by(&call, &session, output.key_id)?;
            match output.ciphertext_blob.map(Blob::into_inner) {
                Some(blob) if (1..=MAX_BLOB).contains(&blob.len()) => Ok(Wrapped { key_id, blob }),
                _ => Err(no_answer(&call, &session, "no ciphertext")),
            }
        })
    }

    fn unwrap(
        &self,
        uri: &KeyUri,
        blob: &[u8],
        context: &EncryptionContext,
    ) -> Result<SecretKey, KmsError> {
        let call = call(Operation::Unwrap, uri);
        if !(1..=MAX_BLOB).contains(&blob.len()) {
            return Err(call.fail(
                KmsErrorKind::WrongKey,
                "what is stored is no wrap of AWS KMS: it was altered, or made by another provider",
            ));
        }
        let (blob, context) = (Blob::new(blob), pairs(context));
        self.run(call, async move |session, call| {
            let output = session
                .client
                .decrypt()
                .key_id(call.uri.key())
                .ciphertext_blob(blob)
                .set_encryption_context(Some(context))
                .send()
                .await
                .map_err(|e| refused(&call, &session, &e))?;
            // Wiped on every path.
            let plain = Zeroizing::new(output.plaintext.map(Blob::into_inner).unwrap_or_default());
            answered_by(&call, &session, output.key_id)?;
            SecretKey::from_slice(&plain)
                .ok_or_else(|| no_answer(&call, &session, "no key of 256 bits"))
        })
    }

    fn describe(&self, uri: &KeyUri) -> Result<KeyDescription, KmsError> {
        self.run(
            call(Operation::Describe, uri),
            async move |session, call| {
                let output = session
                    .client
                    .describe_key()
                    .key_id(call.uri.key())
                    .send()
                    .await
                    .map_err(|e| refused(&call, &session, &e))?;
                let Some(metadata) = output.key_metadata else {
                    return Err(no_answer(&call, &session, "no description"));
                };
                described(&call, &session, metadata)
            },
        )
    }
}

fn described(
    call: &Call,
    session: &Session,
    metadata: KeyMetadata,
) -> Result<KeyDescription, KmsError> {
    let state = match metadata.key_state {
        // A key that is being updated can be used meanwhile.
        Some(AwsKeyState::Enabled | AwsKeyState::Updating) => KeyState::Enabled,
        Some(AwsKeyState::Disabled) => KeyState::Disabled,
        Some(AwsKeyState::PendingDeletion | AwsKeyState::PendingReplicaDeletion) => {
            KeyState::PendingDeletion
        }
        Some(_) => KeyState::Unavailable,
        None => return Err(no_answer(call, session, "no state of the key")),
    };
    let usable = metadata
        .key_usage
        .is_none_or(|usage| usage == KeyUsageType::EncryptDecrypt)
        && metadata
            .key_spec
            .is_none_or(|spec| spec == KeySpec::SymmetricDefault);
    if !usable {
        return Err(call.fail(
            KmsErrorKind::Configuration,
            "the key is not made for this; use a symmetric key for encrypting and decrypting",
        ));
    }
    let key_id = answered_by(call, session, metadata.arn)?;
    Ok(KeyDescription {
        key_id,
        state,
        credentials: session.credentials.source(),
    })
}

fn call(operation: Operation, uri: &KeyUri) -> Call {
    Call {
        operation,
        uri: uri.clone(),
    }
}

/// The error for a call that AWS refused, or that did not reach it.
fn refused<E>(call: &Call, session: &Session, error: &SdkError<E, HttpResponse>) -> KmsError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    call.failed(session.place().failed(call.action(), error))
}

fn pairs(context: &EncryptionContext) -> HashMap<String, String> {
    context
        .pairs()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

/// The region that the key's ARN names; `None` for a key id or alias.
fn region_of(call: &Call) -> Result<Option<String>, KmsError> {
    let key = call.uri.key();
    if !key.starts_with("arn:") {
        return Ok(None);
    }
    let parts: Vec<&str> = key.splitn(6, ':').collect();
    match parts[..] {
        ["arn", _, "kms", region, _, resource] if is_region(region) && !resource.is_empty() => {
            Ok(Some(region.to_owned()))
        }
        _ => Err(call.fail(
            KmsErrorKind::Configuration,
            "this is no ARN of a KMS key; one looks like arn:aws:kms:REGION:ACCOUNT:key/ID",
        )),
    }
}

/// The name of the key that answered; an error if it cannot be the requested key.
fn answered_by(
    call: &Call,
    session: &Session,
    answered: Option<String>,
) -> Result<String, KmsError> {
    match answered {
        None => Err(no_answer(call, session, "no name of a key")),
        Some(answered) if is_same_key(call.uri.key(), &answered) => Ok(answered),
        Some(answered) => Err(no_answer(
            call,
            session,
            &format!("the name of another key, {}", errors::tidy(&answered)),
        )),
    }
}

/// Whether the ARN `answered` can be that of the key `asked`. AWS decides which key an alias names,
/// but not in which region or account.
fn is_same_key(asked: &str, answered: &str) -> bool {
    if asked.starts_with("alias/") {
        return true;
    }
    match asked.split_once(":alias/") {
        Some((place, _)) => answered
            .strip_prefix(place)
            .is_some_and(|rest| rest.starts_with(':')),
        None if asked.starts_with("arn:") => asked == answered,
        None => answered.rsplit('/').next() == Some(asked),
    }
}

fn no_answer(call: &Call, session: &Session, what: &str) -> KmsError {
    call.fail(
        KmsErrorKind::BadAnswer,
        format!(
            "{} answered with {what}; check AWS_ENDPOINT_URL_KMS and whatever stands in between",
            session.name
        ),
    )
}

/// Whether new credentials or configuration files may cure a failure.
fn depends_on_configuration(kind: KmsErrorKind) -> bool {
    match kind {
        KmsErrorKind::Denied | KmsErrorKind::NoCredentials | KmsErrorKind::Configuration => true,
        KmsErrorKind::Disabled
        | KmsErrorKind::PendingDeletion
        | KmsErrorKind::NotFound
        | KmsErrorKind::WrongKey
        | KmsErrorKind::Throttled
        | KmsErrorKind::Unreachable
        | KmsErrorKind::BadAnswer => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd";

    #[test]
    fn only_the_key_that_was_asked_may_answer() {
        assert!(is_same_key(ARN, ARN));
        assert!(is_same_key("1234abcd", ARN));
        assert!(is_same_key("alias/app", ARN));
        assert!(is_same_key(
            "arn:aws:kms:eu-central-1:111122223333:alias/app",
            ARN
        ));
        assert!(!is_same_key(
            "arn:aws:kms:eu-central-1:111122223333:key/other",
            ARN
        ));
        assert!(!is_same_key(
            "arn:aws:kms:us-east-1:111122223333:key/1234abcd",
            ARN
        ));
        assert!(!is_same_key(
            "arn:aws:kms:us-east-1:111122223333:alias/app",
            ARN
        ));
        assert!(!is_same_key("arn:aws:kms:eu-central-1:1111:alias/app", ARN));
        assert!(!is_same_key("abcd", ARN));
        assert!(!is_same_key("1234abcd", ""));
    }

    #[test]
    fn the_region_comes_from_the_arn_and_a_bad_arn_is_refused_without_a_call() {
        let region = |key: &str| {
            let uri = format!("aws-kms://{key}").parse().unwrap();
            region_of(&call(Operation::Wrap, &uri)).map_err(|e| e.kind)
        };
        assert_eq!(region(ARN), Ok(Some("eu-central-1".to_owned())));
        assert_eq!(region("1234abcd"), Ok(None));
        assert_eq!(region("alias/app"), Ok(None));
        for bad in [
            "arn:aws:kms",
            "arn:aws:s3:eu-central-1:1:key/x",
            "arn:aws:kms::1:key/x",
            "arn:aws:kms:evil.example/:1:key/x",
            "arn:aws:kms:eu-central-1:1:",
        ] {
            assert_eq!(region(bad), Err(KmsErrorKind::Configuration), "{bad}");
        }
    }
}
