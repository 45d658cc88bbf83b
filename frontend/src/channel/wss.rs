//! The `wss` channel: TLS, then one HTTP upgrade, then WebSocket frames.

use std::sync::Arc;

use bytes::Bytes;
use rustls::ServerConfig;

use super::error::ChannelError;
use super::frame::{OpCode, ReadLimits, write_close, write_frame};
use super::parked::{Parked, undecoded};
use super::scratch::{Scratch, Token};
use super::tls::TlsSession;
use super::websocket::{Content, Layer, Pumped, WebSocket};
use super::{Challenge, ChannelKind, MessageKind};

/// One device's `wss` connection.
pub type WssChannel = WebSocket<TlsSession>;

impl WssChannel {
    /// A channel for a connection that was just accepted.
    ///
    /// # Errors
    /// rustls does not take the configuration.
    pub fn new(config: &Arc<ServerConfig>) -> Result<Self, ChannelError> {
        Ok(Self::over(TlsSession::new(config)?))
    }
}

impl Layer for TlsSession {
    const KIND: ChannelKind = ChannelKind::Wss;

    fn token(&self) -> Token {
        Self::token(self)
    }

    fn is_setting_up(&self) -> bool {
        self.is_handshaking()
    }

    fn readable(scratch: &mut Scratch) -> (&mut [u8], &ReadLimits) {
        (scratch.plain.bytes(), &scratch.limits)
    }

    fn consume(scratch: &mut Scratch, n: usize) {
        scratch.plain.consume(n);
    }

    fn pump(&mut self, scratch: &mut Scratch) -> Result<Pumped, ChannelError> {
        scratch.claim(Self::token(self))?;
        Self::pump(
            self,
            &mut scratch.cipher,
            &mut scratch.plain,
            &mut scratch.outbound,
        )
    }

    fn writable(scratch: &mut Scratch) -> &mut Vec<u8> {
        &mut scratch.unsealed
    }

    fn seal(
        &mut self,
        scratch: &mut Scratch,
        parked: &mut Option<Box<Parked>>,
        in_turn: bool,
    ) -> Result<(), ChannelError> {
        let undecoded = undecoded(parked, &mut scratch.cipher, in_turn);
        let sealed = Self::seal(self, undecoded, &scratch.unsealed, &mut scratch.outbound);
        scratch.unsealed.clear();
        sealed
    }

    fn say_goodbye(
        &mut self,
        scratch: &mut Scratch,
        parked: &mut Option<Box<Parked>>,
        in_turn: bool,
    ) -> Result<(), ChannelError> {
        let undecoded = undecoded(parked, &mut scratch.cipher, in_turn);
        self.close_notify(undecoded, &mut scratch.outbound)
    }

    /// The bearer token has said who the device is.
    fn on_accepted(
        &mut self,
        challenge: Option<Box<Challenge>>,
        _: &mut Vec<u8>,
    ) -> Result<(), ChannelError> {
        match challenge {
            None => Ok(()),
            Some(_) => Err(ChannelError::State("a challenge where there is none")),
        }
    }

    fn on_message(
        &mut self,
        kind: MessageKind,
        bytes: Bytes,
        _: &ReadLimits,
    ) -> Result<Content, ChannelError> {
        Ok(Content::Message(kind, bytes))
    }

    fn takes_clear_life(&self) -> bool {
        true
    }

    fn write_message(
        &mut self,
        out: &mut Vec<u8>,
        kind: MessageKind,
        payload: &[u8],
    ) -> Result<(), ChannelError> {
        let opcode = match kind {
            MessageKind::Text => OpCode::Text,
            MessageKind::Binary => OpCode::Binary,
        };
        write_frame(out, opcode, payload);
        Ok(())
    }

    fn write_ping(&mut self, out: &mut Vec<u8>) -> Result<(), ChannelError> {
        write_frame(out, OpCode::Ping, &[]);
        Ok(())
    }

    fn owes_pong(&self) -> bool {
        false
    }

    fn write_pongs(&mut self, out: &mut Vec<u8>, clear: &[u8]) -> Result<(), ChannelError> {
        out.extend_from_slice(clear);
        Ok(())
    }

    fn write_close(
        &mut self,
        out: &mut Vec<u8>,
        code: Option<u16>,
        reason: &str,
    ) -> Result<(), ChannelError> {
        write_close(out, code, reason);
        Ok(())
    }

    fn is_tellable(&self, error: &ChannelError) -> bool {
        !matches!(error, ChannelError::Tls(_))
    }

    fn forget_input(&mut self) {}
}

#[cfg(test)]
#[path = "wss_tests.rs"]
mod tests;
