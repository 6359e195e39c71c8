//! Sends each call to the provider that its URI names.
//!
//! It must never touch AWS, the network or tokio before a call names an `aws-kms://` key.

use super::aws::AwsKms;
use super::local::LocalKms;
use super::{
    EncryptionContext, KeyDescription, KeyService, KeyUri, KmsError, KmsSettings, Provider, Wrapped,
};
use crate::crypto::SecretKey;

/// Both providers behind one [`KeyService`].
pub struct Kms {
    local: Result<LocalKms, KmsError>,
    aws: AwsKms,
}

/// Prepares both providers; calls neither, and starts no thread.
pub fn connect(settings: &KmsSettings) -> Kms {
    Kms {
        local: LocalKms::new(settings),
        aws: AwsKms::new(settings),
    }
}

impl Kms {
    /// The embedded KMS, for the operations that [`KeyService`] does not have.
    ///
    /// # Errors
    /// `Configuration`, if neither settings nor environment name a directory for its keys.
    pub fn local(&self) -> Result<&LocalKms, KmsError> {
        self.local.as_ref().map_err(Clone::clone)
    }

    /// The source of the AWS credentials in use, in plain words; `None` before the first call.
    pub fn credentials(&self) -> Option<String> {
        self.aws.credentials()
    }

    fn provider(&self, uri: &KeyUri) -> Result<&dyn KeyService, KmsError> {
        match uri.provider() {
            Provider::Local => self.local().map(|local| local as &dyn KeyService),
            Provider::Aws => Ok(&self.aws),
        }
    }
}

impl KeyService for Kms {
    fn wrap(
        &self,
        uri: &KeyUri,
        key: &SecretKey,
        context: &EncryptionContext,
    ) -> Result<Wrapped, KmsError> {
        self.provider(uri)?.wrap(uri, key, context)
    }

    fn unwrap(
        &self,
        uri: &KeyUri,
        blob: &[u8],
        context: &EncryptionContext,
    ) -> Result<SecretKey, KmsError> {
        self.provider(uri)?.unwrap(uri, blob, context)
    }

    fn describe(&self, uri: &KeyUri) -> Result<KeyDescription, KmsError> {
        self.provider(uri)?.describe(uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_keys_are_used_without_a_thread_or_anything_else_of_aws() {
        fn shared<T: Send + Sync>(kms: T) -> T {
            kms
        }
        let dir = tempfile::tempdir().unwrap();
        let local_dir = Some(dir.path().join("kms"));
        let kms = shared(connect(&KmsSettings {
            local_dir,
            ..KmsSettings::default()
        }));
        kms.local().unwrap().ensure("default").unwrap();
        let (uri, context) = (
            KeyUri::default_local(),
            EncryptionContext::master_key("v", 1),
        );
        let key = SecretKey::generate().unwrap();
        let wrapped = kms.wrap(&uri, &key, &context).unwrap();
        assert_eq!(kms.unwrap(&uri, &wrapped.blob, &context).unwrap(), key);
        kms.describe(&uri).unwrap();
        assert!(!kms.aws.is_started());
    }
}
