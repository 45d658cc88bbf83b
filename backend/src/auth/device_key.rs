//! Device keys: the backend's side of the secure handshake, in one step.
//!
//! What costs little comes first. A stranger who only names a device gets no further than message 1, which takes a few hashes to
//! refuse; only who made it with the device's key learns whether the device is denied or its clock is off, takes from the device's
//! attempts, and makes us compute on the curve.
//!
//! A stranger must not find out which devices there are. Under a master key every name has a key, so a name that was never given out
//! fails as a wrong key does. The operator's endpoint may know that there is no such device: then a decoy takes the key's place, and
//! under key ids of the endpoint a wrong key is refused in the same words.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use holdfast_proto::DeviceId;
use holdfast_proto::secure::{Credential, DeviceKey, Identity, SecureChannel, Verified, render_challenge};
use holdfast_proto::throttle::{Source, Throttle};
use tracing::error;

use super::{Challenge, Denied, DenyList, Grant, KeyAnswer, MasterKeys, Principal, Verdict};
use crate::config::DeviceKeysConfig;
use crate::dispatch::Now;

/// Places in which devices' attempts are counted: 8 MiB. Devices that share one share its attempts, so there are so many that
/// millions of devices which all come back at once do not use up each other's.
const ATTEMPT_SLOTS: usize = 1 << 20;

/// What the configuration and its files say, and randomness of our own.
pub struct DeviceKeySettings {
    pub keys: Arc<ArcSwap<MasterKeys>>,
    pub denied: Arc<ArcSwap<DenyList>>,
    /// Whether other key ids than those in `keys` can be asked for.
    pub has_endpoint: bool,
    pub max_clock_skew_ms: u64,
    pub require_timestamp: bool,
    /// One attempt of a device from one source each so many milliseconds in the long run.
    pub attempt_interval_ms: u64,
    pub attempt_burst: u32,
    /// Secret; keeps others from choosing whose place in the tables they share.
    pub seed: [u8; 32],
    pub started: Instant,
}

impl DeviceKeySettings {
    pub fn new(
        config: &DeviceKeysConfig,
        (keys, denied): (Arc<ArcSwap<MasterKeys>>, Arc<ArcSwap<DenyList>>),
        seed: [u8; 32],
        started: Instant,
    ) -> Self {
        Self {
            keys,
            denied,
            has_endpoint: config.endpoint.is_some(),
            max_clock_skew_ms: config.max_clock_skew.get().as_millis() as u64,
            require_timestamp: config.require_timestamp,
            attempt_interval_ms: 60_000 / config.attempts_per_minute as u64,
            attempt_burst: config.attempts_burst as u32,
            seed,
            started,
        }
    }
}

/// Verifies devices' claims and answers them.
pub struct DeviceAuthenticator {
    settings: DeviceKeySettings,
    attempts: Throttle,
    /// Stands in for the key of a device that the endpoint does not know.
    decoy: DeviceKey,
}

/// A claim of a device whose key only the operator's endpoint has.
#[derive(Debug)]
pub struct Inquiry {
    credential: Credential,
    source: Source,
}

impl Inquiry {
    pub fn identity(&self) -> &Identity {
        &self.credential.identity
    }
}

/// How a refused proof is called.
struct Refusal {
    code: &'static str,
    message: &'static str,
}

const WRONG_KEY: Refusal = Refusal {
    code: "handshake_failed",
    message: "the device key does not fit",
};
const UNKNOWN_KEY: Refusal = Refusal {
    code: "key_unknown",
    message: "there is no such device key here",
};

impl DeviceAuthenticator {
    pub fn new(settings: DeviceKeySettings) -> Self {
        let half = settings.seed[..16].iter();
        let seed = half.fold(0, |number, byte| number << 8 | u128::from(*byte));
        let interval = settings.attempt_interval_ms;
        Self {
            attempts: Throttle::new(seed, ATTEMPT_SLOTS, interval, settings.attempt_burst),
            decoy: DeviceKey::from_bytes(&settings.seed).expect("a key has as many bytes as the seed"),
            settings,
        }
    }

    /// `credential` is the text of a [`Credential`].
    pub fn authenticate(&self, source: Source, credential: &[u8], now: Now) -> Verdict {
        if credential.is_empty() {
            let message = "a credential made with a device key is required";
            return Verdict::Judged(Err(Denied::new(401, "credential_missing", message)));
        }
        let credential = match Credential::parse(credential) {
            Ok(credential) => credential,
            Err(error) => {
                return Verdict::Judged(Err(Denied::new(400, "bad_credential", &error.to_string())));
            }
        };
        match self.settings.keys.load().device_key(&credential.identity) {
            Some(key) => Verdict::Judged(self.judge((&credential, source), &key, &WRONG_KEY, now)),
            None if self.settings.has_endpoint => Verdict::Ask(Box::new(Inquiry { credential, source })),
            None => Verdict::Judged(Err(refused(&UNKNOWN_KEY))),
        }
    }

    /// Goes on with what the endpoint said.
    pub fn authenticate_with(&self, inquiry: &Inquiry, answer: KeyAnswer, now: Now) -> Result<Grant, Denied> {
        let Ok(known) = answer else {
            let message = "the device's key cannot be looked up now";
            return Err(Denied::new(503, "unavailable", message));
        };
        let key = known.as_ref().unwrap_or(&self.decoy);
        self.judge((&inquiry.credential, inquiry.source), key, &UNKNOWN_KEY, now)
    }

    fn judge(
        &self,
        (credential, source): (&Credential, Source),
        key: &DeviceKey,
        refusal: &Refusal,
        now: Now,
    ) -> Result<Grant, Denied> {
        let verified = Verified::verify(SecureChannel::Ws, credential, key).map_err(|_| refused(refusal))?;
        let identity = &credential.identity;
        if self
            .settings
            .denied
            .load()
            .denies(&identity.device, identity.key_version)
        {
            return Err(Denied::new(
                403,
                "denied",
                "this device or its key is not admitted",
            ));
        }
        self.check_time(verified.timestamp_ms(), now.unix_ms)?;
        self.count_attempt(&credential.identity.device, source, now)?;
        let (message, keys) = verified.answer().map_err(|error| {
            error!(%error, "a handshake cannot be answered");
            Denied::new(503, "unavailable", "the handshake cannot be answered now")
        })?;
        let principal = Principal::DeviceKey {
            key_id: identity.key_id.clone(),
            key_version: identity.key_version,
            product: identity.product.clone(),
            class: identity.class.clone(),
        };
        Ok(Grant {
            device: identity.device.clone(),
            principal: principal.encode(),
            challenge: Some(Challenge {
                message: render_challenge(&message),
                keys,
            }),
        })
    }

    fn check_time(&self, timestamp_ms: Option<u64>, now_ms: u64) -> Result<(), Denied> {
        let wrong = |message: &str| Err(Denied::new(401, "clock_skew", message));
        match timestamp_ms {
            Some(at) if at.abs_diff(now_ms) > self.settings.max_clock_skew_ms => {
                wrong("the device's clock is too far off")
            }
            None if self.settings.require_timestamp => wrong("the device must say its time"),
            _ => Ok(()),
        }
    }

    /// By device and source: who says again elsewhere what a device once said takes nothing from it.
    fn count_attempt(&self, device: &DeviceId, source: Source, now: Now) -> Result<(), Denied> {
        let since = now.instant.saturating_duration_since(self.settings.started);
        let who = [&source, device.as_bytes().as_ref()].concat();
        self.attempts
            .check(&who, since.as_millis() as u64)
            .map_err(|wait_ms| Denied {
                retry_after_ms: Some(u32::try_from(wait_ms).unwrap_or(u32::MAX)),
                ..Denied::new(429, "too_many_attempts", "this device connects too often")
            })
    }
}

fn refused(refusal: &Refusal) -> Denied {
    Denied::new(401, refusal.code, refusal.message)
}

#[cfg(test)]
#[path = "device_key_tests.rs"]
mod tests;
