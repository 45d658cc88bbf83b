//! WebSocket over plain TCP with nothing within: `ws` without its records. For tests alone.

use bytes::Bytes;

use super::super::error::ChannelError;
use super::super::frame::{OpCode, ReadLimits, write_close, write_frame};
use super::super::parked::Parked;
use super::super::scratch::{Scratch, Token};
use super::super::websocket::{Content, Layer, Pumped, WebSocket};
use super::super::{Challenge, ChannelKind, MessageKind};

pub(super) fn channel(scratch: &mut Scratch) -> WebSocket<ClearLayer> {
    WebSocket::over(ClearLayer {
        token: scratch.next_token(),
    })
}

/// What `RecordLayer` is below the frames, and `TlsSession` within them.
pub(super) struct ClearLayer {
    token: Token,
}

impl Layer for ClearLayer {
    /// For its bearer token, which needs no challenge.
    const KIND: ChannelKind = ChannelKind::Wss;

    fn token(&self) -> Token {
        self.token
    }

    fn is_setting_up(&self) -> bool {
        false
    }

    fn readable(scratch: &mut Scratch) -> (&mut [u8], &ReadLimits) {
        (scratch.cipher.bytes(), &scratch.limits)
    }

    fn consume(scratch: &mut Scratch, n: usize) {
        scratch.cipher.consume(n);
    }

    fn pump(&mut self, _: &mut Scratch) -> Result<Pumped, ChannelError> {
        Ok(Pumped::Drained)
    }

    fn writable(scratch: &mut Scratch) -> &mut Vec<u8> {
        &mut scratch.outbound
    }

    fn seal(&mut self, _: &mut Scratch, _: &mut Option<Box<Parked>>, _: bool) -> Result<(), ChannelError> {
        Ok(())
    }

    fn say_goodbye(
        &mut self,
        _: &mut Scratch,
        _: &mut Option<Box<Parked>>,
        _: bool,
    ) -> Result<(), ChannelError> {
        Ok(())
    }

    fn on_accepted(&mut self, _: Option<Box<Challenge>>, _: &mut Vec<u8>) -> Result<(), ChannelError> {
        Ok(())
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

    fn is_tellable(&self, _: &ChannelError) -> bool {
        true
    }

    fn forget_input(&mut self) {}
}
