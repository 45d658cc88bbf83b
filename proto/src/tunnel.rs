//! The tunnel of a backend on another machine: the link's bytes in records, under a link key.
//!
//! ZeroMQ itself is never exposed to a network. The backend connects over TCP, both ends prove that they hold the link key (the
//! handshake of [`crate::secure`], for [`SecureChannel::Link`]), and only then do bytes reach the local sockets at either end.
//!
//! ```text
//! backend                                   frontend
//!   u16 length ‖ credential text    ─────►    verified, its time and novelty too, before anything is spent on it
//!                                   ◄─────    u16 length ‖ message 2
//!   u16 length ‖ record: ping       ─────►    whoever replays a credential cannot make this one
//!   u16 length ‖ record: binary     ◄────►    u16 length ‖ record: binary …
//! ```
//!
//! There is no socket, clock or task here: streams are the caller's, and so is how long anything may take. All lengths are
//! big-endian and checked before anything is read.

use std::io;

use bytes::BufMut as _;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, split};
use zeroize::Zeroizing;

use crate::DeviceId;
use crate::secure::{
    ControlRecord, Credential, CredentialError, DeviceKey, HandshakeError, Identity, IdentityError,
    Initiator, MAX_CHUNK_BYTES, MAX_CREDENTIAL_TEXT, MAX_RECORD_BYTES, MESSAGE_2_BYTES, Opener,
    RECORD_OVERHEAD, RecordError, RecordKind, Sealer, SecureChannel, Verified,
};

/// Why a tunnel was not made, or ended.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer does not speak this, or another version of it.
    #[error("a message of {length} bytes, where {allowed} are allowed")]
    Length { length: usize, allowed: &'static str },
    #[error("not a credential: {0}")]
    Credential(#[from] CredentialError),
    #[error("this name cannot be that of a backend: {0}")]
    Name(#[from] IdentityError),
    /// The other end has another key.
    #[error("{0}")]
    Handshake(#[from] HandshakeError),
    #[error("{0}")]
    Record(#[from] RecordError),
    #[error("a record that has no place in a tunnel")]
    Content,
}

impl TunnelError {
    /// The label under which metrics count it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Io(_) => "io",
            Self::Length { .. } | Self::Credential(_) | Self::Name(_) | Self::Content => "protocol",
            Self::Handshake(_) => "handshake",
            Self::Record(_) => "record",
        }
    }
}

/// One end's records: what it seals, and what it opens.
#[derive(Debug)]
pub struct TunnelKeys {
    sealer: Sealer,
    opener: Opener,
}

/// The backend's end: says who it is and proves that it holds `key`. `now_ms` is the wall clock's time.
///
/// # Errors
/// The other end has another key, or is something else.
pub async fn connect<S>(
    stream: &mut S,
    key: &DeviceKey,
    name: DeviceId,
    now_ms: u64,
) -> Result<TunnelKeys, TunnelError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (initiator, credential) = Initiator::new(SecureChannel::Link, &identity(name), key, Some(now_ms))?;
    write_frame(stream, credential.as_bytes()).await?;
    let mut message2 = Vec::new();
    read_frame(stream, &mut message2, MESSAGE_2_BYTES..=MESSAGE_2_BYTES, "48").await?;
    let keys = initiator.finish(&message2)?;
    let (mut sealer, opener) = (Sealer::new(keys.to_server), Opener::new(keys.to_device));
    let mut proof = Vec::new();
    sealer.seal(
        RecordKind::Control,
        false,
        &ControlRecord::Ping.encode(),
        &mut proof,
    )?;
    write_frame(stream, &proof).await?;
    Ok(TunnelKeys { sealer, opener })
}

/// The frontend's end, first step: waits for what the other end says of itself. Nothing is answered.
///
/// # Errors
/// It is something else than a backend.
pub async fn hear<S>(stream: &mut S) -> Result<Claim, TunnelError>
where
    S: AsyncRead + Unpin,
{
    let mut frame = Vec::new();
    read_frame(stream, &mut frame, 1..=MAX_CREDENTIAL_TEXT, "1 to 1024").await?;
    Ok(Claim(Credential::parse(&frame)?))
}

/// What came first on a connection: a claim to be a backend, which is not verified.
#[derive(Debug)]
pub struct Claim(Credential);

impl Claim {
    /// The second step: whether this was made with one of `keys`. Costs a few hashes.
    ///
    /// # Errors
    /// It was not.
    pub fn verify(self, keys: &[DeviceKey]) -> Result<Caller, TunnelError> {
        let mut refused = HandshakeError::NotAuthentic;
        for key in keys {
            match Verified::verify(SecureChannel::Link, &self.0, key) {
                Ok(verified) => {
                    let credential = self.0;
                    return Ok(Caller { credential, verified });
                }
                Err(error) => refused = error,
            }
        }
        Err(refused.into())
    }
}

/// Somebody who showed a message that was made with the key. It may be a replay, so the caller of this looks at its time and whether
/// it came before, ahead of the third step.
#[derive(Debug)]
pub struct Caller {
    credential: Credential,
    verified: Verified,
}

impl Caller {
    /// The name that the backend gave itself.
    pub fn name(&self) -> &DeviceId {
        &self.credential.identity.device
    }

    /// The backend's wall clock when it made the message.
    pub fn timestamp_ms(&self) -> Option<u64> {
        self.verified.timestamp_ms()
    }

    /// What no other message has: the ephemeral key in front of it. Whoever changes a bit of it has a message that does not verify.
    pub fn ephemeral(&self) -> [u8; EPHEMERAL_BYTES] {
        let ephemeral = self.credential.message1().first_chunk();
        *ephemeral.expect("a verified message begins with its ephemeral key")
    }

    /// The third step: answers, which takes operations on the curve, and returns when the other end has proved that it holds the key.
    ///
    /// # Errors
    /// It does not hold the key: it said again what a backend had said.
    pub async fn prove<S>(self, stream: &mut S) -> Result<TunnelKeys, TunnelError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (message2, keys) = self.verified.answer()?;
        write_frame(stream, &message2).await?;
        let (sealer, mut opener) = (Sealer::new(keys.to_device), Opener::new(keys.to_server));
        let (proof, mut frame) = (RECORD_OVERHEAD + 1..=RECORD_OVERHEAD + 1, Vec::new());
        read_frame(stream, &mut frame, proof, "18").await?;
        if opener.open(&mut frame)?.kind != RecordKind::Control {
            return Err(TunnelError::Content);
        }
        Ok(TunnelKeys { sealer, opener })
    }
}

/// X25519's, in front of message 1.
pub const EPHEMERAL_BYTES: usize = 32;

/// Carries bytes both ways until one end has no more, and ends both.
///
/// # Errors
/// Somebody between the ends changed something, or a stream failed.
pub async fn carry<R, L>(remote: R, local: L, keys: TunnelKeys) -> Result<(), TunnelError>
where
    R: AsyncRead + AsyncWrite,
    L: AsyncRead + AsyncWrite,
{
    let (remote_read, remote_write) = split(remote);
    let (local_read, local_write) = split(local);
    let TunnelKeys { sealer, opener } = keys;
    tokio::select! {
        ended = seal_all(local_read, remote_write, sealer) => ended,
        ended = open_all(remote_read, local_write, opener) => ended,
    }
}

async fn seal_all(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut sealer: Sealer,
) -> Result<(), TunnelError> {
    let mut wire = Vec::with_capacity(LENGTH_BYTES + MAX_RECORD_BYTES);
    loop {
        // Read to where it is sealed and sent from: no plain copy of the link's bytes, which have keys in them, is left behind.
        wire.clear();
        wire.extend_from_slice(&[0, 0, RecordKind::Binary as u8]);
        let n = from.read_buf(&mut (&mut wire).limit(MAX_CHUNK_BYTES)).await?;
        if n == 0 {
            return Ok(());
        }
        wire[..LENGTH_BYTES].copy_from_slice(&((n + RECORD_OVERHEAD) as u16).to_be_bytes());
        sealer.seal_in_place(&mut wire, LENGTH_BYTES)?;
        to.write_all(&wire).await?;
    }
}

async fn open_all(
    from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut opener: Opener,
) -> Result<(), TunnelError> {
    let mut from = BufReader::with_capacity(LENGTH_BYTES + MAX_RECORD_BYTES, from);
    let mut record = Zeroizing::new(Vec::with_capacity(MAX_RECORD_BYTES));
    loop {
        match read_frame(
            &mut from,
            &mut record,
            RECORD_OVERHEAD..=MAX_RECORD_BYTES,
            "17 to 61457",
        )
        .await
        {
            Ok(()) => {}
            Err(TunnelError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let opened = opener.open(&mut record)?;
        if opened.kind != RecordKind::Binary || opened.more {
            return Err(TunnelError::Content);
        }
        to.write_all(&record[1..record.len() - (RECORD_OVERHEAD - 1)])
            .await?;
    }
}

const LENGTH_BYTES: usize = 2;

/// Reads a length and so many bytes.
async fn read_frame(
    from: &mut (impl AsyncRead + Unpin),
    frame: &mut Vec<u8>,
    lengths: std::ops::RangeInclusive<usize>,
    allowed: &'static str,
) -> Result<(), TunnelError> {
    let length = usize::from(from.read_u16().await?);
    if !lengths.contains(&length) {
        return Err(TunnelError::Length { length, allowed });
    }
    frame.resize(length, 0);
    from.read_exact(frame).await?;
    Ok(())
}

async fn write_frame(to: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> Result<(), TunnelError> {
    let length = (frame.len() as u16).to_be_bytes();
    to.write_all(&[&length, frame].concat()).await?;
    to.flush().await?;
    Ok(())
}

/// A link key is used as it is, so of the identity only the backend's name matters, for logs.
fn identity(name: DeviceId) -> Identity {
    Identity {
        key_id: "link".into(),
        product: String::new(),
        class: String::new(),
        device: name,
        key_version: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, duplex};

    const PIPE: usize = 1 << 16;

    fn key(byte: u8) -> DeviceKey {
        DeviceKey::from_bytes(&[byte; 32]).unwrap()
    }

    fn name() -> DeviceId {
        "backend-2".parse().unwrap()
    }

    /// All of the frontend's steps.
    async fn accept(
        stream: &mut DuplexStream,
        keys: &[DeviceKey],
    ) -> Result<(DeviceId, TunnelKeys), TunnelError> {
        let caller = hear(stream).await?.verify(keys)?;
        let name = caller.name().clone();
        Ok((name, caller.prove(stream).await?))
    }

    /// Both ends of a tunnel whose local sides are returned.
    async fn tunnel() -> (DuplexStream, DuplexStream) {
        let (mut far, mut near) = duplex(PIPE);
        let (ours, theirs) = (key(1), [key(1)]);
        let (connected, accepted) =
            tokio::join!(connect(&mut far, &ours, name(), 0), accept(&mut near, &theirs));
        let (who, near_keys) = accepted.unwrap();
        assert_eq!(who, name());
        let (here, here_local) = duplex(PIPE);
        let (there, there_local) = duplex(PIPE);
        tokio::spawn(carry(far, here, connected.unwrap()));
        tokio::spawn(carry(near, there, near_keys));
        (here_local, there_local)
    }

    #[tokio::test]
    async fn bytes_arrive_as_they_were_both_ways_and_the_end_too() {
        let (mut here, mut there) = tunnel().await;
        let sent: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            here.write_all(&sent).await.unwrap();
            let mut answer = [0; 5];
            here.read_exact(&mut answer).await.unwrap();
            answer
        });
        let mut got = vec![0; expected.len()];
        there.read_exact(&mut got).await.unwrap();
        assert!(got == expected);
        there.write_all(b"fine!").await.unwrap();
        assert_eq!(writer.await.unwrap(), *b"fine!");
        assert_eq!(there.read(&mut got).await.unwrap(), 0, "the other end is gone");
    }

    #[tokio::test]
    async fn another_key_gets_no_answer() {
        let (mut far, mut near) = duplex(PIPE);
        let connecting = tokio::spawn(async move { connect(&mut far, &key(2), name(), 0).await });
        let error = accept(&mut near, &[key(3), key(1)]).await.unwrap_err();
        assert!(matches!(error, TunnelError::Handshake(_)), "{error}");
        drop(near);
        assert!(matches!(connecting.await.unwrap(), Err(TunnelError::Io(_))));
    }

    #[tokio::test]
    async fn a_replayed_credential_does_not_prove_the_key() {
        let (_, credential) = Initiator::new(SecureChannel::Link, &identity(name()), &key(1), None).unwrap();
        let (mut far, mut near) = duplex(PIPE);
        let replay = tokio::spawn(async move {
            write_frame(&mut far, credential.as_bytes()).await.unwrap();
            write_frame(&mut far, &[7; 18]).await.unwrap();
            far
        });
        let error = accept(&mut near, &[key(3), key(1)]).await.unwrap_err();
        assert!(matches!(error, TunnelError::Record(_)), "{error}");
        replay.await.unwrap();
    }

    #[tokio::test]
    async fn a_caller_says_when_it_called_and_each_call_is_told_from_all_others() {
        let mut calls = Vec::new();
        for now_ms in [0, 7] {
            let (mut far, mut near) = duplex(PIPE);
            let connecting = tokio::spawn(async move { connect(&mut far, &key(1), name(), now_ms).await });
            let caller = hear(&mut near).await.unwrap().verify(&[key(1)]).unwrap();
            assert_eq!((caller.name(), caller.timestamp_ms()), (&name(), Some(now_ms)));
            calls.push(caller.ephemeral());
            caller.prove(&mut near).await.unwrap();
            connecting.await.unwrap().unwrap();
        }
        assert_ne!(calls[0], calls[1]);
    }

    #[tokio::test]
    async fn a_devices_credential_is_none_here() {
        let (_, credential) = Initiator::new(SecureChannel::Ws, &identity(name()), &key(1), None).unwrap();
        let (mut far, mut near) = duplex(PIPE);
        write_frame(&mut far, credential.as_bytes()).await.unwrap();
        let error = accept(&mut near, &[key(3), key(1)]).await.unwrap_err();
        assert!(matches!(error, TunnelError::Handshake(_)), "{error}");
    }

    #[tokio::test]
    async fn lengths_are_checked_before_anything_is_read() {
        for garbage in [&b"\0\0"[..], b"\xff\xff", b"GET / HTTP/1.1\r\n\r\n"] {
            let (mut far, mut near) = duplex(PIPE);
            far.write_all(garbage).await.unwrap();
            let error = accept(&mut near, &[key(3), key(1)]).await.unwrap_err();
            assert!(matches!(error, TunnelError::Length { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn a_flipped_bit_ends_it() {
        let (mut far, mut near) = duplex(PIPE);
        let (ours, theirs) = (key(1), [key(1)]);
        let (connected, accepted) =
            tokio::join!(connect(&mut far, &ours, name(), 0), accept(&mut near, &theirs));
        let (local, mut from_local) = duplex(PIPE);
        let TunnelKeys { mut sealer, .. } = connected.unwrap();
        let mut record = Vec::new();
        sealer
            .seal(RecordKind::Binary, false, b"batch", &mut record)
            .unwrap();
        record[3] ^= 1;
        write_frame(&mut far, &record).await.unwrap();
        let ended = carry(near, local, accepted.unwrap().1).await;
        assert!(matches!(ended, Err(TunnelError::Record(_))));
        assert_eq!(
            from_local.read(&mut [0; 8]).await.unwrap(),
            0,
            "nothing reached the other side"
        );
    }
}
