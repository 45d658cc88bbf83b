//! A TLS server session over the shard's scratch buffers, on rustls' unbuffered API.
//!
//! Two of its rules shape this module. Bytes of a handshake message that is not complete stay in the caller's buffer
//! while rustls remembers their positions: every later call must show it these bytes again, or it panics. So the session
//! notes how many bytes it *holds*, and also encrypting passes them. And after an error nothing may be fed again: rustls
//! would raise a second alert.

use std::sync::Arc;

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{Error, ServerConfig};

use super::error::ChannelError;
use super::scratch::{Plain, Token, Window};
use super::websocket::Pumped;

/// One connection's TLS state. Its buffers are the caller's.
pub struct TlsSession {
    conn: Box<UnbufferedServerConnection>,
    /// Leading bytes of the undecoded ciphertext that rustls has seen and wants to see again.
    held: usize,
}

impl std::fmt::Debug for TlsSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsSession")
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

/// What one TLS record adds to its plaintext at most: header, nonce or content type, tag.
const RECORD_OVERHEAD: usize = 64;
const MAX_FRAGMENT: usize = 16 * 1024;

type State<'c, 'i> = ConnectionState<'c, 'i, ServerConnectionData>;

impl TlsSession {
    pub(super) fn new(config: &Arc<ServerConfig>) -> Result<Self, ChannelError> {
        let conn = Box::new(UnbufferedServerConnection::new(Arc::clone(config))?);
        Ok(Self { conn, held: 0 })
    }

    /// Tells this session apart while it lives.
    pub(super) fn token(&self) -> Token {
        Token(std::ptr::from_ref(&*self.conn).addr())
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.conn.is_handshaking()
    }

    /// Goes on to the next record of application data; handshake messages and alerts are dealt with on the way, their
    /// answers appended to `out`.
    pub(super) fn pump(
        &mut self,
        input: &mut Window,
        plain: &mut Plain,
        out: &mut Vec<u8>,
    ) -> Result<Pumped, ChannelError> {
        loop {
            let UnbufferedStatus { mut discard, state } = self.conn.process_tls_records(input.bytes());
            let outcome = match state {
                Ok(State::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        plain.push(record.payload);
                    }
                    Some(Pumped::More)
                }
                Ok(State::EncodeTlsData(data)) => {
                    encode(data, out)?;
                    None
                }
                Ok(State::TransmitTlsData(data)) => {
                    data.done();
                    None
                }
                Ok(State::BlockedHandshake | State::WriteTraffic(_)) => Some(Pumped::Drained),
                Ok(State::PeerClosed | State::Closed) => Some(Pumped::PeerClosed),
                // Early data is off.
                Ok(_) => return Err(ChannelError::State("rustls reached an unknown state")),
                Err(error) => return Err(self.fail(error, out)),
            };
            input.consume(discard);
            if let Some(outcome) = outcome {
                // Application data never interrupts a handshake message, so nothing is held after it.
                self.held = if outcome == Pumped::Drained {
                    input.len()
                } else {
                    0
                };
                return Ok(outcome);
            }
        }
    }

    /// Encrypts `plaintext` and appends the records to `out`. `undecoded` is the ciphertext not yet decoded.
    pub(super) fn seal(
        &mut self,
        undecoded: &mut [u8],
        plaintext: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), ChannelError> {
        let records = plaintext.len().div_ceil(MAX_FRAGMENT) + 1;
        let most = plaintext.len() + records * RECORD_OVERHEAD;
        self.write(undecoded, out, most, |traffic, room| {
            traffic.encrypt(plaintext, room)
        })
    }

    /// Appends the `close_notify` alert.
    pub(super) fn close_notify(
        &mut self,
        undecoded: &mut [u8],
        out: &mut Vec<u8>,
    ) -> Result<(), ChannelError> {
        self.write(undecoded, out, RECORD_OVERHEAD, |traffic, room| {
            traffic.queue_close_notify(room)
        })
    }

    /// Brings rustls to where it takes output, offers `write` the room of `most` bytes and more if it wants more.
    fn write(
        &mut self,
        undecoded: &mut [u8],
        out: &mut Vec<u8>,
        mut most: usize,
        mut write: impl FnMut(
            &mut WriteTraffic<'_, ServerConnectionData>,
            &mut [u8],
        ) -> Result<usize, EncryptError>,
    ) -> Result<(), ChannelError> {
        let held = self.held.min(undecoded.len());
        loop {
            let UnbufferedStatus { discard, state } = self.conn.process_tls_records(&mut undecoded[..held]);
            debug_assert_eq!(discard, 0, "bytes seen before made progress");
            match state {
                Ok(State::EncodeTlsData(data)) => encode(data, out)?,
                Ok(State::TransmitTlsData(data)) => data.done(),
                Ok(State::WriteTraffic(mut traffic)) => {
                    let before = out.len();
                    out.resize(before + most, 0);
                    let written = write(&mut traffic, &mut out[before..]);
                    out.truncate(before + *written.as_ref().unwrap_or(&0));
                    match written {
                        Ok(_) => return Ok(()),
                        Err(EncryptError::InsufficientSize(short)) => most = short.required_size,
                        Err(EncryptError::EncryptExhausted) => return Err(Error::EncryptError.into()),
                    }
                }
                Ok(_) => return Err(ChannelError::State("TLS does not take output now")),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Appends the alert that rustls has queued for `error`.
    fn fail(&mut self, error: Error, out: &mut Vec<u8>) -> ChannelError {
        // While output is queued rustls hands it out before it looks at any input.
        while self.conn.wants_write() {
            let Ok(State::EncodeTlsData(data)) = self.conn.process_tls_records(&mut []).state else {
                break;
            };
            if encode(data, out).is_err() {
                break;
            }
        }
        error.into()
    }
}

fn encode(mut data: EncodeTlsData<'_, ServerConnectionData>, out: &mut Vec<u8>) -> Result<(), ChannelError> {
    let required = match data.encode(&mut []) {
        Ok(_) => return Ok(()),
        Err(EncodeError::InsufficientSize(short)) => short.required_size,
        Err(EncodeError::AlreadyEncoded) => return Err(ChannelError::State("TLS output was encoded twice")),
    };
    let before = out.len();
    out.resize(before + required, 0);
    match data.encode(&mut out[before..]) {
        Ok(written) => {
            out.truncate(before + written);
            Ok(())
        }
        Err(_) => Err(ChannelError::State(
            "TLS output did not fit the room that it asked for",
        )),
    }
}
