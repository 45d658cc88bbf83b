//! What `ws` and `wss` share: one HTTP upgrade, then WebSocket frames, over a [`Layer`] of their own.

use super::answer::{Refusal, write_acceptance, write_refusal};
use super::error::{ChannelError, PeerFault};
use super::frame::{Frame, FrameReader, OpCode, ReadLimits, is_close_code, write_close, write_frame};
use super::parked::Parked;
use super::scratch::{MAX_RECORD_BYTES, Scratch, Token};
use super::upgrade::{self, Acceptance};
use super::{Challenge, Channel, ChannelEvent, ChannelKind, MessageKind, StreamChannel};

use bytes::Bytes;

/// What may wait of a connection that has not been let in: the head of its request, and a record of TLS. A handshake's message
/// may be cut into many records, which all have to wait for its end; a device's first one is far shorter.
const MAX_UNASKED_BYTES: usize = upgrade::MAX_HEAD_BYTES + MAX_RECORD_BYTES;

/// What lies below WebSocket frames (TLS) or within them (records).
pub trait Layer {
    const KIND: ChannelKind;

    /// Tells this connection apart while it lives.
    fn token(&self) -> Token;

    /// Whether nothing can be said to the peer yet.
    fn is_setting_up(&self) -> bool;

    /// The bytes of this turn that frames are read from, and the limits that they are read with.
    fn readable(scratch: &mut Scratch) -> (&mut [u8], &ReadLimits);

    /// So many of them are done with.
    fn consume(scratch: &mut Scratch, n: usize);

    /// Tries to make more bytes readable out of this turn's input.
    fn pump(&mut self, scratch: &mut Scratch) -> Result<Pumped, ChannelError>;

    /// Where the upgrade's answer and frames are written.
    fn writable(scratch: &mut Scratch) -> &mut Vec<u8>;

    /// Brings what was written into `scratch.outbound`. `parked` holds this connection's input unless it is `in_turn`.
    fn seal(
        &mut self,
        scratch: &mut Scratch,
        parked: &mut Option<Box<Parked>>,
        in_turn: bool,
    ) -> Result<(), ChannelError>;

    /// The last thing that is said, after the last frame; everything before it was sealed.
    fn say_goodbye(
        &mut self,
        scratch: &mut Scratch,
        parked: &mut Option<Box<Parked>>,
        in_turn: bool,
    ) -> Result<(), ChannelError>;

    /// The device is let in. What is appended to `out` follows the upgrade's answer.
    fn on_accepted(
        &mut self,
        challenge: Option<Box<Challenge>>,
        out: &mut Vec<u8>,
    ) -> Result<(), ChannelError>;

    /// A whole WebSocket message came.
    fn on_message(
        &mut self,
        kind: MessageKind,
        bytes: Bytes,
        limits: &ReadLimits,
    ) -> Result<Content, ChannelError>;

    /// Whether a clear WebSocket ping or pong tells that the device lives.
    fn takes_clear_life(&self) -> bool;

    fn write_message(
        &mut self,
        out: &mut Vec<u8>,
        kind: MessageKind,
        payload: &[u8],
    ) -> Result<(), ChannelError>;

    fn write_ping(&mut self, out: &mut Vec<u8>) -> Result<(), ChannelError>;

    /// Whether a ping came that only the layer knows of.
    fn owes_pong(&self) -> bool;

    /// What is due in answer to this turn's pings; `clear` are the frames that answer the clear ones.
    fn write_pongs(&mut self, out: &mut Vec<u8>, clear: &[u8]) -> Result<(), ChannelError>;

    fn write_close(&mut self, out: &mut Vec<u8>, code: Option<u16>, reason: &str)
    -> Result<(), ChannelError>;

    /// The connection cannot be gone on with; what the peer can still be told after this error is told by `write_close`.
    fn is_tellable(&self, error: &ChannelError) -> bool;

    /// Everything of an earlier part of a message is forgotten.
    fn forget_input(&mut self);
}

/// What [`Layer::pump`] came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Pumped {
    /// Bytes were made readable.
    More,
    /// Nothing more without more bytes from the socket.
    Drained,
    /// The peer said that it is done.
    PeerClosed,
}

/// What a WebSocket message turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    Message(MessageKind, Bytes),
    /// A part of a message; the rest follows.
    Part,
    /// A sign of life.
    Alive,
    /// The peer is done, and no stranger can have said so.
    Closed {
        code: u16,
    },
}

/// One device's WebSocket.
#[derive(Debug)]
pub struct WebSocket<L> {
    pub(super) layer: L,
    stage: Stage,
    reader: FrameReader,
    parked: Option<Box<Parked>>,
    /// The scratch holds this connection's input (from `handle_input` or `unpark` to `park`).
    in_turn: bool,
}

#[derive(Debug)]
enum Stage {
    /// The layer's set-up, then the request; how much of its head was searched for the end. Next: `Binding`, `Closed`.
    Request { scanned: usize },
    /// The request was handed out; nothing is decoded until it is answered. Next: `Open` (accept), `Closed` (refuse).
    Binding(Box<Acceptance>),
    /// Messages both ways. Next: `Failed`, `Closed`.
    Open,
    /// The peer broke a rule: its bytes are not read any more, `close` still says why. Next: `Closed`.
    Failed,
    /// All was said; what comes is thrown away.
    Closed,
}

impl<L: Layer> WebSocket<L> {
    /// A channel for a connection that was just accepted.
    pub(super) fn over(layer: L) -> Self {
        Self {
            layer,
            stage: Stage::Request { scanned: 0 },
            reader: FrameReader::default(),
            parked: None,
            in_turn: false,
        }
    }
}

impl<L: Layer> Channel for WebSocket<L> {
    type Shared = Scratch;

    fn kind(&self) -> ChannelKind {
        L::KIND
    }

    fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open)
    }

    fn poll_event(&mut self, scratch: &mut Scratch) -> Result<Option<ChannelEvent>, ChannelError> {
        if !self.in_turn {
            return Ok(None);
        }
        let result = self.decode(scratch);
        if let Err(error) = &result {
            self.fail(scratch, error);
        }
        result
    }

    fn accept(
        &mut self,
        scratch: &mut Scratch,
        challenge: Option<Box<Challenge>>,
    ) -> Result<(), ChannelError> {
        let Stage::Binding(acceptance) = &self.stage else {
            return Err(ChannelError::State("no upgrade to accept"));
        };
        scratch.claim(self.layer.token())?;
        let out = L::writable(scratch);
        write_acceptance(out, acceptance);
        self.layer.on_accepted(challenge, out)?;
        self.stage = Stage::Open;
        Ok(())
    }

    fn refuse(&mut self, scratch: &mut Scratch, refusal: &Refusal) -> Result<(), ChannelError> {
        match self.stage {
            Stage::Request { .. } | Stage::Binding(_) => self.turn_away(scratch, refusal),
            _ => Err(ChannelError::State("no upgrade to refuse")),
        }
    }

    fn send(
        &mut self,
        scratch: &mut Scratch,
        kind: MessageKind,
        payload: &Bytes,
    ) -> Result<(), ChannelError> {
        // Not behind it: a pong is due as soon as is practical (section 5.5.2).
        self.answer_pings(scratch)?;
        self.queue(scratch, |layer, out| layer.write_message(out, kind, payload))
    }

    fn ping(&mut self, scratch: &mut Scratch) -> Result<(), ChannelError> {
        self.queue(scratch, |layer, out| layer.write_ping(out))
    }

    fn close(&mut self, scratch: &mut Scratch, code: u16, reason: &str) -> Result<(), ChannelError> {
        match self.stage {
            Stage::Closed => return Ok(()),
            Stage::Open | Stage::Failed => self.queue_close(scratch, Some(code), reason)?,
            Stage::Request { .. } | Stage::Binding(_) => {}
        }
        self.end(scratch)
    }
}

impl<L: Layer> StreamChannel for WebSocket<L> {
    fn is_handshaking(&self) -> bool {
        matches!(self.stage, Stage::Request { .. })
    }

    fn has_parked(&self) -> bool {
        self.parked.is_some()
    }

    fn handle_input(&mut self, scratch: &mut Scratch, n: usize) -> Result<(), ChannelError> {
        if self.in_turn {
            return Err(ChannelError::State("the turn before was not parked"));
        }
        self.in_turn = true;
        scratch.cipher.filled(n);
        let Some(mut parked) = self.parked.take() else {
            return Ok(());
        };
        scratch.plain.push(parked.plain());
        if !scratch.cipher.prepend(parked.cipher()) {
            let error = PeerFault::TooFarAhead.into();
            self.fail(scratch, &error);
            return Err(error);
        }
        Ok(())
    }

    fn unpark(&mut self, scratch: &mut Scratch) {
        if self.in_turn {
            return;
        }
        self.in_turn = true;
        scratch.reset_input();
        if let Some(mut parked) = self.parked.take() {
            scratch.plain.push(parked.plain());
            scratch.cipher.restore(parked.cipher());
        }
    }

    fn park(&mut self, scratch: &mut Scratch) -> Result<(), ChannelError> {
        let flushed = self.flush(scratch);
        if !self.in_turn {
            return flushed;
        }
        let result = match flushed.and_then(|()| self.keep(scratch)) {
            Ok(parked) => {
                self.parked = parked;
                Ok(())
            }
            Err(error) => {
                self.fail(scratch, &error);
                Err(error)
            }
        };
        scratch.reset_input();
        self.in_turn = false;
        result
    }

    fn flush(&mut self, scratch: &mut Scratch) -> Result<(), ChannelError> {
        self.answer_pings(scratch)?;
        self.seal(scratch)
    }
}

impl<L: Layer> WebSocket<L> {
    /// Decodes until there is an event, or nothing more can be had from this turn's input.
    fn decode(&mut self, scratch: &mut Scratch) -> Result<Option<ChannelEvent>, ChannelError> {
        let (mut alive, mut drained) = (false, false);
        loop {
            match &mut self.stage {
                Stage::Request { scanned } => {
                    let parsed = upgrade::parse(L::readable(scratch).0, L::KIND, scanned);
                    match parsed {
                        Ok(Some(upgrade)) => {
                            L::consume(scratch, upgrade.head_bytes);
                            self.stage = Stage::Binding(Box::new(upgrade.acceptance));
                            return Ok(Some(ChannelEvent::Upgrade(upgrade.request)));
                        }
                        Ok(None) => {}
                        Err(refusal) => {
                            self.turn_away(scratch, &refusal)?;
                            let (status, code) = (refusal.status, refusal.static_code());
                            return Err(ChannelError::Upgrade { status, code });
                        }
                    }
                }
                Stage::Open => match self.read_frame(scratch, drained)? {
                    Some(Frame::Message(kind, bytes)) => {
                        match self.layer.on_message(kind, bytes, L::readable(scratch).1)? {
                            Content::Message(kind, bytes) => {
                                return Ok(Some(ChannelEvent::Message(kind, bytes)));
                            }
                            Content::Part | Content::Alive => alive = true,
                            Content::Closed { code } => return self.answer_close(scratch, Some(code), true),
                        }
                        continue;
                    }
                    Some(Frame::Close(code)) => {
                        let authentic = self.layer.takes_clear_life();
                        return self.answer_close(scratch, code, authentic);
                    }
                    Some(Frame::Ping(payload)) => {
                        write_frame(&mut scratch.pongs, OpCode::Pong, payload.as_slice());
                        alive |= self.layer.takes_clear_life();
                        continue;
                    }
                    Some(Frame::Pong) => {
                        alive |= self.layer.takes_clear_life();
                        continue;
                    }
                    None => {}
                },
                Stage::Binding(_) => return Ok(None),
                Stage::Failed | Stage::Closed => {
                    scratch.reset_input();
                    return Ok(None);
                }
            }
            if drained {
                return Ok(alive.then_some(ChannelEvent::Alive));
            }
            match self.layer.pump(scratch)? {
                Pumped::More => {}
                // Only now is it certain that the rest of a message is not in the scratch already.
                Pumped::Drained => drained = true,
                Pumped::PeerClosed => {
                    self.end(scratch)?;
                    return Ok(Some(ChannelEvent::Closed {
                        code: None,
                        authentic: true,
                    }));
                }
            }
        }
    }

    /// What is left of this turn's input.
    fn keep(&self, scratch: &mut Scratch) -> Result<Option<Box<Parked>>, ChannelError> {
        let size = scratch.cipher.len() + scratch.plain.len();
        // Nor may one say much whose request is not answered yet: WebSocket clients wait for the answer.
        if !self.is_open() && size > MAX_UNASKED_BYTES {
            return Err(PeerFault::TooFarAhead.into());
        }
        Parked::take(scratch, self.is_open())
    }

    fn read_frame(&mut self, scratch: &mut Scratch, absorb: bool) -> Result<Option<Frame>, ChannelError> {
        let (bytes, limits) = L::readable(scratch);
        let (used, frame) = self.reader.decode(bytes, limits, absorb)?;
        L::consume(scratch, used);
        Ok(frame)
    }

    /// The peer's close is answered with a close frame (RFC 6455 section 5.5.1). What need not be the peer's is not repeated in our
    /// name: it would come back to the device as our own word.
    fn answer_close(
        &mut self,
        scratch: &mut Scratch,
        code: Option<u16>,
        authentic: bool,
    ) -> Result<Option<ChannelEvent>, ChannelError> {
        scratch.claim(self.layer.token())?;
        let legal = code.filter(|code| authentic && is_close_code(*code));
        write_close(L::writable(scratch), legal, "");
        self.end(scratch)?;
        Ok(Some(ChannelEvent::Closed { code, authentic }))
    }

    /// Answers a request that does not become a WebSocket.
    fn turn_away(&mut self, scratch: &mut Scratch, refusal: &Refusal) -> Result<(), ChannelError> {
        if !self.layer.is_setting_up() {
            scratch.claim(self.layer.token())?;
            write_refusal(L::writable(scratch), refusal, L::KIND);
        }
        self.end(scratch)
    }

    /// Seals what is queued, says goodbye, forgets the input and ends the turn. The layer is not fed after that: what the peer
    /// still sends would count as a fault of a session that is over.
    fn end(&mut self, scratch: &mut Scratch) -> Result<(), ChannelError> {
        self.stage = Stage::Closed;
        let result = match self.layer.is_setting_up() {
            true => Ok(()),
            false => self.seal(scratch).and_then(|()| {
                scratch.claim(self.layer.token())?;
                self.layer.say_goodbye(scratch, &mut self.parked, self.in_turn)
            }),
        };
        self.forget_input();
        if std::mem::take(&mut self.in_turn) {
            scratch.reset_input();
        }
        result
    }

    /// Writes what this turn's pings are owed.
    fn answer_pings(&mut self, scratch: &mut Scratch) -> Result<(), ChannelError> {
        if !self.in_turn || !self.is_open() || (scratch.pongs.is_empty() && !self.layer.owes_pong()) {
            return Ok(());
        }
        let mut clear = std::mem::take(&mut scratch.pongs);
        let claimed = scratch.claim(self.layer.token());
        let written = claimed.and_then(|()| self.layer.write_pongs(L::writable(scratch), &clear));
        clear.clear();
        scratch.pongs = clear;
        written
    }

    fn seal(&mut self, scratch: &mut Scratch) -> Result<(), ChannelError> {
        if scratch.unsealed.is_empty() {
            return Ok(());
        }
        scratch.claim(self.layer.token())?;
        self.layer.seal(scratch, &mut self.parked, self.in_turn)
    }

    fn queue(
        &mut self,
        scratch: &mut Scratch,
        write: impl FnOnce(&mut L, &mut Vec<u8>) -> Result<(), ChannelError>,
    ) -> Result<(), ChannelError> {
        if !self.is_open() {
            return Err(ChannelError::State("the channel is not open"));
        }
        scratch.claim(self.layer.token())?;
        let out = L::writable(scratch);
        write(&mut self.layer, out)
    }

    fn queue_close(
        &mut self,
        scratch: &mut Scratch,
        code: Option<u16>,
        reason: &str,
    ) -> Result<(), ChannelError> {
        scratch.claim(self.layer.token())?;
        let out = L::writable(scratch);
        self.layer.write_close(out, code, reason)
    }

    /// After an error nothing more is read. What the peer can still be told depends on the layer.
    fn fail(&mut self, scratch: &mut Scratch, error: &ChannelError) {
        let tellable = self.is_open() && self.layer.is_tellable(error);
        self.stage = if tellable { Stage::Failed } else { Stage::Closed };
        self.forget_input();
        scratch.reset_input();
    }

    fn forget_input(&mut self) {
        self.reader = FrameReader::default();
        self.parked = None;
        self.layer.forget_input();
    }
}
