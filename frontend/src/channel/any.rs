//! A stream channel of any kind, as connections hold it.

use bytes::Bytes;

use super::{
    Challenge, Channel, ChannelError, ChannelEvent, ChannelKind, MessageKind, Refusal, Scratch,
    StreamChannel, WsChannel, WssChannel,
};

/// One of the channels over streams. An enum rather than a trait object: it lies within its connection's record.
#[derive(Debug)]
pub enum AnyStream {
    Ws(WsChannel),
    Wss(WssChannel),
}

macro_rules! each {
    ($self:ident, $channel:ident => $call:expr) => {
        match $self {
            Self::Ws($channel) => $call,
            Self::Wss($channel) => $call,
        }
    };
}

impl Channel for AnyStream {
    type Shared = Scratch;

    fn kind(&self) -> ChannelKind {
        each!(self, channel => channel.kind())
    }

    fn is_open(&self) -> bool {
        each!(self, channel => channel.is_open())
    }

    fn poll_event(&mut self, scratch: &mut Scratch) -> Result<Option<ChannelEvent>, ChannelError> {
        each!(self, channel => channel.poll_event(scratch))
    }

    fn accept(
        &mut self,
        scratch: &mut Scratch,
        challenge: Option<Box<Challenge>>,
    ) -> Result<(), ChannelError> {
        each!(self, channel => channel.accept(scratch, challenge))
    }

    fn refuse(&mut self, scratch: &mut Scratch, refusal: &Refusal) -> Result<(), ChannelError> {
        each!(self, channel => channel.refuse(scratch, refusal))
    }

    fn send(
        &mut self,
        scratch: &mut Scratch,
        kind: MessageKind,
        payload: &Bytes,
    ) -> Result<(), ChannelError> {
        each!(self, channel => channel.send(scratch, kind, payload))
    }

    fn ping(&mut self, scratch: &mut Scratch) -> Result<(), ChannelError> {
        each!(self, channel => channel.ping(scratch))
    }

    fn close(&mut self, scratch: &mut Scratch, code: u16, reason: &str) -> Result<(), ChannelError> {
        each!(self, channel => channel.close(scratch, code, reason))
    }
}

impl StreamChannel for AnyStream {
    fn is_handshaking(&self) -> bool {
        each!(self, channel => channel.is_handshaking())
    }

    fn has_parked(&self) -> bool {
        each!(self, channel => channel.has_parked())
    }

    fn handle_input(&mut self, scratch: &mut Scratch, n: usize) -> Result<(), ChannelError> {
        each!(self, channel => channel.handle_input(scratch, n))
    }

    fn unpark(&mut self, scratch: &mut Scratch) {
        each!(self, channel => channel.unpark(scratch));
    }

    fn park(&mut self, scratch: &mut Scratch) -> Result<(), ChannelError> {
        each!(self, channel => channel.park(scratch))
    }

    fn flush(&mut self, scratch: &mut Scratch) -> Result<(), ChannelError> {
        each!(self, channel => channel.flush(scratch))
    }
}
