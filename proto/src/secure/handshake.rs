//! Noise NNpsk0 over `snow`, in the two halves of each side.
//!
//! `snow` gives out the keys of the split silently even before the handshake is complete, and wipes nothing that it holds: the first is
//! dealt with here, the second here and in `wiped`. What remains are copies that it leaves on the stack.

use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

use super::wiped::Wiped;
use super::{
    Credential, DeviceKey, Identity, IdentityError, KEY_BYTES, PARAMETER_BYTES, SecureChannel, TrafficKey,
};

/// The Noise protocol's name.
pub const PATTERN: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";

/// Message 1 without a time: an ephemeral key and a tag.
pub(super) const MESSAGE_1_BYTES: usize = 48;
/// Message 1 with the device's time.
pub(super) const MESSAGE_1_TIMED_BYTES: usize = MESSAGE_1_BYTES + TIME_BYTES;
/// Message 2: an ephemeral key and a tag.
pub const MESSAGE_2_BYTES: usize = 48;
const TIME_BYTES: usize = 8;

/// What a finished handshake leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrafficKeys {
    pub to_server: TrafficKey,
    pub to_device: TrafficKey,
}

/// Why a handshake came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error("the identity is not valid: {0}")]
    Identity(#[from] IdentityError),
    /// The other side holds another key, or was told another identity, channel or version.
    #[error("the handshake message does not authenticate")]
    NotAuthentic,
    /// The system has no randomness to give, or the library failed us.
    #[error("the handshake could not be computed")]
    Failed,
}

/// The device's side, between its credential and the challenge.
#[derive(Debug)]
pub struct Initiator(Noise);

impl Initiator {
    /// Also gives the credential's text to send. `now_ms`: milliseconds since 1970, unless the device has no clock.
    pub fn new(
        channel: SecureChannel,
        identity: &Identity,
        key: &DeviceKey,
        now_ms: Option<u64>,
    ) -> Result<(Self, String), HandshakeError> {
        identity.check()?;
        let bytes = identity.encode();
        let noise = Noise::start(&prologue(channel, &bytes, &[]), key, Side::Device)?;
        Self::write(noise, &bytes, now_ms)
    }

    /// The same for `udp`, bound to the HELLO's parameters. The credential's bytes go into that datagram as they are.
    pub fn for_datagrams(
        parameters: &[u8; PARAMETER_BYTES],
        identity: &Identity,
        key: &DeviceKey,
        now_ms: Option<u64>,
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        identity.check()?;
        let bytes = identity.encode();
        let prologue = prologue(SecureChannel::Udp, &bytes, parameters);
        let noise = Noise::start(&prologue, key, Side::Device)?;
        Self::write_bytes(noise, bytes, now_ms)
    }

    fn write(noise: Noise, identity: &[u8], now_ms: Option<u64>) -> Result<(Self, String), HandshakeError> {
        let (initiator, message) = Self::write_bytes(noise, Vec::new(), now_ms)?;
        Ok((initiator, Credential::render(identity, &message)))
    }

    /// Appends message 1 to `out`.
    fn write_bytes(
        mut noise: Noise,
        mut out: Vec<u8>,
        now_ms: Option<u64>,
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        let time = now_ms.map(u64::to_be_bytes);
        let payload = time.as_ref().map_or(&[][..], |t| t);
        let message = noise.write::<MESSAGE_1_TIMED_BYTES>(payload)?;
        out.extend_from_slice(&message[..MESSAGE_1_BYTES + payload.len()]);
        Ok((Self(noise), out))
    }

    /// Takes message 2: from here on the server is known to hold the same key.
    pub fn finish(mut self, message2: &[u8]) -> Result<TrafficKeys, HandshakeError> {
        self.try_finish(message2)
    }

    /// As [`finish`](Self::finish), and goes on waiting for the right message 2 after a wrong one: for where anybody can send one
    /// without standing between.
    ///
    /// # Errors
    /// After it has succeeded once, always.
    pub fn try_finish(&mut self, message2: &[u8]) -> Result<TrafficKeys, HandshakeError> {
        if message2.len() != MESSAGE_2_BYTES {
            return Err(HandshakeError::NotAuthentic);
        }
        self.0.read::<0>(message2)?;
        self.0.split()
    }
}

/// The server's side, once message 1 has authenticated. No operation on the curve was done so far: a forged message costs
/// a few hashes.
#[derive(Debug)]
pub struct Verified {
    noise: Noise,
    timestamp_ms: Option<u64>,
}

impl Verified {
    /// Whether whoever made `credential` holds `key`, for this identity and this kind of channel. It may be a replay: what follows
    /// from it must have no effect before the first record.
    pub fn verify(
        channel: SecureChannel,
        credential: &Credential,
        key: &DeviceKey,
    ) -> Result<Self, HandshakeError> {
        let prologue = prologue(channel, credential.identity_bytes(), credential.binding());
        let noise = Noise::start(&prologue, key, Side::Server)?;
        Self::read(noise, credential.message1())
    }

    fn read(mut noise: Noise, message1: &[u8]) -> Result<Self, HandshakeError> {
        let timestamp_ms = match message1.len() {
            MESSAGE_1_BYTES => {
                noise.read::<0>(message1)?;
                None
            }
            MESSAGE_1_TIMED_BYTES => Some(u64::from_be_bytes(noise.read::<TIME_BYTES>(message1)?)),
            _ => return Err(HandshakeError::NotAuthentic),
        };
        Ok(Self { noise, timestamp_ms })
    }

    /// The device's time when it made the credential; `None` from a device without a clock.
    pub fn timestamp_ms(&self) -> Option<u64> {
        self.timestamp_ms
    }

    /// Message 2 and the keys.
    pub fn answer(mut self) -> Result<(Vec<u8>, TrafficKeys), HandshakeError> {
        let message = self.noise.write::<MESSAGE_2_BYTES>(&[])?;
        Ok((message.to_vec(), self.noise.split()?))
    }
}

enum Side {
    Device,
    Server,
}

/// `snow`'s state, overwritten when dropped: the device key and the chaining key are in it. Boxed, so that it leaves no copies where it
/// was moved from.
struct Noise(Box<HandshakeState>);

impl Noise {
    fn start(prologue: &[u8], key: &DeviceKey, side: Side) -> Result<Self, HandshakeError> {
        Self::build(prologue, key, side, |builder| builder)
    }

    fn build(
        prologue: &[u8],
        key: &DeviceKey,
        side: Side,
        finish: impl FnOnce(Builder<'_>) -> Builder<'_>,
    ) -> Result<Self, HandshakeError> {
        let pattern = PATTERN.parse().map_err(failed)?;
        let builder = Builder::with_resolver(pattern, Box::new(Wiped))
            .prologue(prologue)
            .and_then(|b| b.psk(0, key.as_bytes()))
            .map_err(failed)?;
        let builder = finish(builder);
        let state = match side {
            Side::Device => builder.build_initiator(),
            Side::Server => builder.build_responder(),
        };
        state.map(|state| Self(Box::new(state))).map_err(failed)
    }

    /// The next message, which fills the front of the buffer.
    fn write<const N: usize>(&mut self, payload: &[u8]) -> Result<[u8; N], HandshakeError> {
        let mut message = [0; N];
        self.0.write_message(payload, &mut message).map_err(failed)?;
        Ok(message)
    }

    /// The payload of the next message, which has `N` bytes.
    fn read<const N: usize>(&mut self, message: &[u8]) -> Result<[u8; N], HandshakeError> {
        let mut payload = [0; N];
        match self.0.read_message(message, &mut payload) {
            Ok(length) if length == N => Ok(payload),
            _ => Err(HandshakeError::NotAuthentic),
        }
    }

    fn split(&mut self) -> Result<TrafficKeys, HandshakeError> {
        if !self.0.is_handshake_finished() {
            return Err(HandshakeError::Failed);
        }
        let split = Zeroizing::new(self.0.dangerously_get_raw_split());
        let key = |bytes: &[u8]| TrafficKey::from_bytes(bytes).ok_or(HandshakeError::Failed);
        Ok(TrafficKeys {
            to_server: key(&split.0)?,
            to_device: key(&split.1)?,
        })
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        if let Ok(blank) = blank() {
            *self.0 = blank;
            // So that the write above is not taken for one that nobody needs.
            std::hint::black_box(&self.0);
        }
    }
}

/// A state that knows no secret. All places for psks are filled: an empty one would leave the bytes that were there where they are, and
/// bring with it what happened to lie on the stack.
fn blank() -> Result<HandshakeState, snow::Error> {
    /// As many as `snow` has.
    const PSKS: u8 = 10;
    let mut builder = Builder::with_resolver(PATTERN.parse()?, Box::new(Wiped));
    for location in 0..PSKS {
        builder = builder.psk(location, &[0; KEY_BYTES])?;
    }
    builder.build_responder()
}

impl std::fmt::Debug for Noise {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Noise(..)")
    }
}

/// `binding` is what else both sides must agree on. It is of a fixed length on each channel, so the whole has one reading.
pub(crate) fn prologue(channel: SecureChannel, identity: &[u8], binding: &[u8]) -> Vec<u8> {
    [
        b"holdfast/1 ",
        channel.label().as_bytes(),
        &[0],
        identity,
        binding,
    ]
    .concat()
}

fn failed(_: snow::Error) -> HandshakeError {
    HandshakeError::Failed
}

/// Handshakes that come out the same each time, for the vectors.
#[cfg(test)]
pub(crate) mod fixed {
    use super::*;

    pub(crate) type Ephemeral = &'static [u8; 32];

    pub(crate) fn initiator(
        channel: SecureChannel,
        identity: &[u8],
        key: &DeviceKey,
        (ephemeral, now_ms): (Ephemeral, Option<u64>),
    ) -> (Initiator, String) {
        let noise = build(&prologue(channel, identity, &[]), key, Side::Device, ephemeral);
        Initiator::write(noise, identity, now_ms).unwrap()
    }

    /// Also gives the credential's bytes.
    pub(crate) fn initiator_for_datagrams(
        parameters: &[u8; PARAMETER_BYTES],
        identity: &[u8],
        key: &DeviceKey,
        (ephemeral, now_ms): (Ephemeral, Option<u64>),
    ) -> (Initiator, Vec<u8>) {
        let prologue = prologue(SecureChannel::Udp, identity, parameters);
        let noise = build(&prologue, key, Side::Device, ephemeral);
        Initiator::write_bytes(noise, identity.to_vec(), now_ms).unwrap()
    }

    pub(crate) fn verified(
        channel: SecureChannel,
        credential: &Credential,
        key: &DeviceKey,
        ephemeral: Ephemeral,
    ) -> Verified {
        let prologue = prologue(channel, credential.identity_bytes(), credential.binding());
        let noise = build(&prologue, key, Side::Server, ephemeral);
        Verified::read(noise, credential.message1()).unwrap()
    }

    fn build(prologue: &[u8], key: &DeviceKey, side: Side, ephemeral: Ephemeral) -> Noise {
        Noise::build(prologue, key, side, |builder| {
            builder.fixed_ephemeral_key_for_testing_only(ephemeral)
        })
        .unwrap()
    }
}
