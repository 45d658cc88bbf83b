//! Which proof belongs to which channel.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use holdfast_proto::link::frames::Channel;
use holdfast_proto::secure::SecureChannel;
use holdfast_proto::throttle::Source;
use tracing::warn;

use super::{
    Authenticator, Claimant, Denied, DeviceAuthenticator, Grant, Inquiry, JwtAuthenticator, KeyAnswer,
    Verdict,
};
use crate::dispatch::Now;

/// Tokens on `wss`, device keys on `ws` and `udp`.
pub struct Admission {
    tokens: JwtAuthenticator,
    devices: Option<DeviceAuthenticator>,
    /// Whether somebody came who needs what is not configured.
    missed: AtomicBool,
}

impl Admission {
    /// Without `devices` nobody is admitted on `ws` and `udp`.
    pub fn new(tokens: JwtAuthenticator, devices: Option<DeviceAuthenticator>) -> Self {
        Self {
            tokens,
            devices,
            missed: AtomicBool::new(false),
        }
    }

    fn judge(&self, channel: SecureChannel, source: Source, credential: &[u8], now: Now) -> Verdict {
        match self.devices() {
            Ok(devices) => devices.authenticate((channel, source), credential, now),
            Err(denied) => Verdict::Judged(Err(denied)),
        }
    }

    fn devices(&self) -> Result<&DeviceAuthenticator, Denied> {
        self.devices.as_ref().ok_or_else(|| {
            if !self.missed.swap(true, Ordering::Relaxed) {
                warn!("a device came with a key of its own: without [device_keys] in the configuration none can be admitted");
            }
            Denied::new(503, "no_device_keys", "device keys are not set up here")
        })
    }
}

impl Authenticator for Admission {
    fn authenticate(&self, claimant: Claimant, credential: &[u8], now: Now) -> Verdict {
        match claimant.channel {
            Channel::Ws if looks_like_token(credential) => Verdict::Judged(Err(bearer_elsewhere())),
            Channel::Ws => self.judge(SecureChannel::Ws, claimant.source, credential, now),
            Channel::Udp => self.judge(SecureChannel::Udp, claimant.source, credential, now),
            // What earlier frontends do not name is wss.
            Channel::Wss | Channel::Unspecified => {
                let now = UNIX_EPOCH + Duration::from_millis(now.unix_ms);
                Verdict::Judged(self.tokens.authenticate(credential, now))
            }
        }
    }

    fn authenticate_with(&self, inquiry: Inquiry, answer: KeyAnswer, now: Now) -> Result<Grant, Denied> {
        self.devices()?.authenticate_with(&inquiry, answer, now)
    }
}

/// A token has dots, which no credential of a device key has.
fn looks_like_token(credential: &[u8]) -> bool {
    credential.contains(&b'.')
}

fn bearer_elsewhere() -> Denied {
    Denied::new(400, "wrong_channel", "a bearer token is for wss only")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::TokenKeys;
    use crate::auth::jwt::tests::{public_pem, signing_key};
    use std::time::Instant;

    fn code(channel: Channel, credential: &str) -> (u16, &'static str) {
        let tokens = JwtAuthenticator::new(TokenKeys::from_pem(&public_pem(&signing_key(1))).unwrap());
        let now = Now {
            instant: Instant::now(),
            unix_ms: 0,
        };
        let claimant = Claimant {
            channel,
            source: [0; 8],
        };
        match Admission::new(tokens, None).authenticate(claimant, credential.as_bytes(), now) {
            Verdict::Judged(Err(denied)) => (denied.status, denied.code),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_channel_has_its_proof() {
        assert_eq!(code(Channel::Wss, "a.b.c"), (401, "token_invalid"));
        assert_eq!(code(Channel::Unspecified, ""), (401, "token_missing"));
        assert_eq!(code(Channel::Ws, "a.b.c"), (400, "wrong_channel"));
        assert_eq!(code(Channel::Ws, "AQ"), (503, "no_device_keys"));
        assert_eq!(code(Channel::Udp, "AQ"), (503, "no_device_keys"));
        // Bytes, in which a dot means nothing.
        assert_eq!(code(Channel::Udp, "a.b.c"), (503, "no_device_keys"));
    }
}
