//! Everything specific to AWS: a client for a region, its credentials and endpoint, the thread that
//! runs its calls, and the meaning of its errors. Nothing here knows about vaults or other KMS
//! providers.

pub(crate) mod credentials;
pub(crate) mod endpoint;
pub(crate) mod errors;
pub(crate) mod session;
pub(crate) mod worker;
