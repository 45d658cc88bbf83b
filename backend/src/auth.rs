//! Who a device is: a credential goes in, a device id and what LOGIN needs to know come out.
//!
//! Authentication is behind a trait so that other proofs (device keys, an operator's endpoint) can take the token's place.
//! Nothing here keeps state: the frontend repeats the [`Principal`] in LOGIN, so that any backend can go on.

mod jwt;
mod keys;
mod principal;

use std::time::SystemTime;

use bytes::Bytes;
use holdfast_proto::DeviceId;

pub use jwt::{JwtAuthenticator, MAX_TOKEN_BYTES};
pub use keys::{MAX_TOKEN_KEYS, TokenKeys, key_id};
pub use principal::{MAX_PRINCIPAL_BYTES, Principal, PrincipalError};

/// Decides about a credential. Must be quick and must not block: it runs on the worker threads.
pub trait Authenticator: Send + Sync {
    /// `credential` is the bare token, without `Bearer`.
    fn authenticate(&self, credential: &[u8], now: SystemTime) -> Result<Grant, Denied>;
}

/// A proven identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub device: DeviceId,
    /// An encoded [`Principal`], opaque to the frontend, at most [`MAX_PRINCIPAL_BYTES`].
    pub principal: Bytes,
}

/// A refusal, as the device sees it. Holds nothing of the credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status} {code}: {message}")]
pub struct Denied {
    /// HTTP status.
    pub status: u16,
    /// Stable word for programs.
    pub code: &'static str,
    /// One sentence for people.
    pub message: String,
}

impl Denied {
    fn unauthorized(code: &'static str, message: &str) -> Self {
        Self {
            status: 401,
            code,
            message: message.to_owned(),
        }
    }

    pub(crate) fn missing() -> Self {
        Self::unauthorized("token_missing", "a bearer token is required")
    }

    pub(crate) fn invalid(message: &str) -> Self {
        Self::unauthorized("token_invalid", message)
    }

    pub(crate) fn expired() -> Self {
        Self::unauthorized("token_expired", "the token has expired")
    }
}
