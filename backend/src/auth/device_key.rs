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
use holdfast_proto::secure::{
    Credential, CredentialError, DeviceKey, Identity, IdentityError, SecureChannel, Verified,
    render_challenge,
};
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

/// A claim that is to be judged; what is asked when only the operator's endpoint has the device's key.
#[derive(Debug)]
pub struct Inquiry {
    channel: SecureChannel,
    credential: Credential,
    source: Source,
}

impl Inquiry {
    /// What the claim was made for.
    pub fn channel(&self) -> SecureChannel {
        self.channel
    }

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

    /// `credential` is what [`read`] takes on this channel.
    pub fn authenticate(
        &self,
        (channel, source): (SecureChannel, Source),
        credential: &[u8],
        now: Now,
    ) -> Verdict {
        if credential.is_empty() {
            let message = "a credential made with a device key is required";
            return Verdict::Judged(Err(Denied::new(401, "credential_missing", message)));
        }
        let credential = match read(channel, credential) {
            Ok(credential) => credential,
            Err(error) => {
                return Verdict::Judged(Err(Denied::new(400, "bad_credential", &error.to_string())));
            }
        };
        let claim = Inquiry {
            channel,
            credential,
            source,
        };
        match self.settings.keys.load().device_key(claim.identity()) {
            Some(key) => Verdict::Judged(self.judge(&claim, &key, &WRONG_KEY, now)),
            None if self.settings.has_endpoint => Verdict::Ask(Box::new(claim)),
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
        self.judge(inquiry, key, &UNKNOWN_KEY, now)
    }

    fn judge(&self, claim: &Inquiry, key: &DeviceKey, refusal: &Refusal, now: Now) -> Result<Grant, Denied> {
        let verified =
            Verified::verify(claim.channel, &claim.credential, key).map_err(|_| refused(refusal))?;
        let identity = claim.identity();
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
        self.count_attempt(&identity.device, claim.source, now)?;
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
                message: match claim.channel {
                    SecureChannel::Udp => message.into(),
                    SecureChannel::Ws | SecureChannel::Link => render_challenge(&message).into(),
                },
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

/// On `udp` 16 bytes of parameters, to which the handshake is bound, and the credential's bytes; elsewhere its text.
fn read(channel: SecureChannel, credential: &[u8]) -> Result<Credential, CredentialError> {
    match channel {
        SecureChannel::Udp => match credential.split_first_chunk() {
            Some((parameters, credential)) => Credential::parse_datagram(parameters, credential),
            None => Err(IdentityError::CutOff.into()),
        },
        SecureChannel::Ws | SecureChannel::Link => Credential::parse(credential),
    }
}

fn refused(refusal: &Refusal) -> Denied {
    Denied::new(401, refusal.code, refusal.message)
}

#[cfg(test)]
#[path = "device_key_tests.rs"]
mod tests;
