//! Device keys: the backend's side of the secure handshake, in one step.
//!
//! What costs little comes first. A stranger who only names a device gets no further than message 1, which takes a few hashes to
//! refuse; only who made it with the device's key learns whether the device is denied or its clock is off, takes from the device's
//! attempts, and makes us compute on the curve.
//!
//! A stranger must not find out which devices there are. Under a master key every name has a key, so a name that was never given out
//! fails as a wrong key does. The operator's endpoint may know that there is no such device: then a decoy takes the key's place, and
//! under key ids of the endpoint a wrong key is refused in the same words. There nothing can be verified before the endpoint was asked;
//! [`super::questions`] keeps strangers from using that up.

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

use super::questions::{NotAsked, Questions};
use super::{
    Challenge, Denied, DenyList, Grant, KeyAnswer, MasterKeys, Principal, QuestionSettings, Verdict,
};
use crate::config::DeviceKeysConfig;
use crate::dispatch::Now;

/// Places in which devices' attempts are counted: 8 MiB. Devices that share one share its attempts, so there are so many that
/// millions of devices which all come back at once do not use up each other's.
const ATTEMPT_SLOTS: usize = 1 << 20;

/// What the configuration and its files say, and randomness of our own.
pub struct DeviceKeySettings {
    pub keys: Arc<ArcSwap<MasterKeys>>,
    pub denied: Arc<ArcSwap<DenyList>>,
    /// What can be asked of an endpoint, if there is one, for other key ids than those in `keys`.
    pub questions: Option<QuestionSettings>,
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
            questions: config.endpoint.is_some().then(|| QuestionSettings {
                key_ids: config.endpoint_key_ids.clone(),
                failures_per_minute: config.endpoint_failures_per_minute as u32,
            }),
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
    questions: Option<Questions>,
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

    /// Where the claim came from.
    pub fn source(&self) -> Source {
        self.source
    }

    fn verify(&self, key: &DeviceKey) -> Option<Verified> {
        Verified::verify(self.channel, &self.credential, key).ok()
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
    pub fn new(mut settings: DeviceKeySettings) -> Self {
        let half = settings.seed[..16].iter();
        let seed = half.fold(0, |number, byte| number << 8 | u128::from(*byte));
        let interval = settings.attempt_interval_ms;
        let questions = settings.questions.take();
        Self {
            questions: questions.map(|questions| Questions::new(questions, seed, settings.started)),
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
            Some(key) => Verdict::Judged(match claim.verify(&key) {
                Some(verified) => self.admit(&claim, verified, now),
                None => Err(refused(&WRONG_KEY)),
            }),
            None => self.inquire(claim, now),
        }
    }

    /// Goes on with what the endpoint said.
    pub fn authenticate_with(&self, inquiry: &Inquiry, answer: KeyAnswer, now: Now) -> Result<Grant, Denied> {
        let Ok(known) = answer else {
            let message = "the device's key cannot be looked up now";
            return Err(Denied::new(503, "unavailable", message));
        };
        let verified = inquiry.verify(known.as_ref().unwrap_or(&self.decoy));
        // Nobody knows the decoy; whoever did would be refused all the same.
        let Some(verified) = verified.filter(|_| known.is_some()) else {
            if let Some(questions) = &self.questions {
                questions.on_vain(inquiry.source, now);
            }
            return Err(refused(&UNKNOWN_KEY));
        };
        let result = self.admit(inquiry, verified, now);
        // Also when the key fits: what was recorded once could else be said again and again.
        if let (Err(_), Some(questions)) = (&result, &self.questions) {
            questions.on_vain(inquiry.source, now);
        }
        result
    }

    /// What is to become of a claim under a key id that we have no master key for.
    fn inquire(&self, claim: Inquiry, now: Now) -> Verdict {
        let Some(questions) = &self.questions else {
            return Verdict::Judged(Err(refused(&UNKNOWN_KEY)));
        };
        match questions.permit(claim.source, &claim.identity().key_id, now) {
            Ok(()) => Verdict::Ask(Box::new(claim)),
            Err(NotAsked::KeyId) => Verdict::Judged(Err(refused(&UNKNOWN_KEY))),
            Err(NotAsked::TooMany(wait_ms)) => {
                let message = "too many attempts from this address came to nothing";
                Verdict::Judged(Err(too_many(wait_ms, message)))
            }
        }
    }

    /// Goes on with a claim that was made with the device's key.
    fn admit(&self, claim: &Inquiry, verified: Verified, now: Now) -> Result<Grant, Denied> {
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
            .map_err(|wait_ms| too_many(wait_ms, "this device connects too often"))
    }
}

fn too_many(wait_ms: u64, message: &str) -> Denied {
    Denied {
        retry_after_ms: Some(u32::try_from(wait_ms).unwrap_or(u32::MAX)),
        ..Denied::new(429, "too_many_attempts", message)
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
