//! Who a device is: a credential goes in, a device id and what LOGIN needs to know come out.
//!
//! On `wss` the credential is a token, on `ws` and `udp` a claim that is proven with a device key. Nothing here keeps state that must not be
//! lost: the frontend repeats the [`Principal`] in LOGIN, so that any backend can go on. No socket either: when only the operator's
//! endpoint has a device's key, whoever asked is told to ask there ([`Verdict::Ask`]) and to come back with the answer.

mod admission;
mod deny;
mod device_key;
mod jwt;
mod key_files;
mod keys;
mod master;
mod principal;
mod questions;

use bytes::Bytes;
use holdfast_proto::DeviceId;
use holdfast_proto::link::frames::Channel;
use holdfast_proto::secure::{DeviceKey, TrafficKeys};
use holdfast_proto::throttle::Source;

use crate::dispatch::Now;

pub use admission::Admission;
pub use deny::{DenyList, MAX_DENIED};
pub use device_key::{DeviceAuthenticator, DeviceKeySettings, Inquiry};
pub use jwt::{JwtAuthenticator, MAX_TOKEN_BYTES};
pub use key_files::{KeyFiles, KeyMetrics};
pub use keys::{MAX_TOKEN_KEYS, TokenKeys, key_id};
pub(crate) use master::is_key_id;
pub use master::{MAX_MASTER_KEYS, MasterKeys};
pub use principal::{MAX_PRINCIPAL_BYTES, Principal, PrincipalError};
pub use questions::QuestionSettings;

/// What came to bring a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimant {
    pub channel: Channel,
    /// Where the device, or whoever is before it, connects from.
    pub source: Source,
}

/// Decides about a credential. Must be quick and must not block: it runs on the worker threads.
pub trait Authenticator: Send + Sync {
    /// `credential` is bare, without the scheme before it.
    fn authenticate(&self, claimant: Claimant, credential: &[u8], now: Now) -> Verdict;

    /// Goes on with what the operator's endpoint said.
    fn authenticate_with(&self, inquiry: Inquiry, answer: KeyAnswer, now: Now) -> Result<Grant, Denied>;
}

/// What a look at a credential came to.
#[derive(Debug)]
pub enum Verdict {
    Judged(Result<Grant, Denied>),
    /// The operator's endpoint must be asked for the device's key, then [`Authenticator::authenticate_with`] called.
    Ask(Box<Inquiry>),
}

/// What the operator's endpoint said: the device's key, or that there is none for this identity.
pub type KeyAnswer = Result<Option<DeviceKey>, KeyUnavailable>;

/// The endpoint did not give an answer that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the key endpoint gave no usable answer")]
pub struct KeyUnavailable;

/// A proven identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub device: DeviceId,
    /// An encoded [`Principal`], opaque to the frontend, at most [`MAX_PRINCIPAL_BYTES`].
    pub principal: Bytes,
    /// On channels that we encrypt: what the device must answer.
    pub challenge: Option<Challenge>,
}

/// How a device proves that it holds its key, and what is encrypted with afterwards. Its `Debug` shows no key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// On `ws` the `@challenge` message, on `udp` the handshake's message 2 as it is.
    pub message: Bytes,
    pub keys: TrafficKeys,
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
    /// When trying again makes sense, if that is known.
    pub retry_after_ms: Option<u32>,
}

impl Denied {
    pub fn new(status: u16, code: &'static str, message: &str) -> Self {
        Self {
            status,
            code,
            message: message.to_owned(),
            retry_after_ms: None,
        }
    }

    /// Whether the same device may be admitted later with nothing changed on its side.
    pub fn retryable(&self) -> bool {
        self.status >= 500 || self.status == TOO_MANY
    }

    pub(crate) fn missing() -> Self {
        Self::new(401, "token_missing", "a bearer token is required")
    }

    pub(crate) fn invalid(message: &str) -> Self {
        Self::new(401, "token_invalid", message)
    }

    pub(crate) fn expired() -> Self {
        Self::new(401, "token_expired", "the token has expired")
    }
}

const TOO_MANY: u16 = 429;
