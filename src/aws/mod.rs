//! What is AWS' own: a client for a region, its credentials, its endpoint, the thread that its calls
//! run on, and what its refusals mean. Knows nothing of vaults and of other providers of keys.

pub(crate) mod credentials;
pub(crate) mod endpoint;
pub(crate) mod errors;
pub(crate) mod session;
pub(crate) mod worker;
