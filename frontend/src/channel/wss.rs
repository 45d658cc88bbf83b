//! The `wss` channel: TLS, then one HTTP upgrade, then WebSocket frames.

use std::sync::Arc;

use rustls::ServerConfig;

use super::answer::{Refusal, write_acceptance, write_refusal};
use super::error::{ChannelError, PeerFault};
use super::frame::{Frame, FrameReader, OpCode, write_close, write_frame};
use super::parked::{Parked, undecoded};
use super::scratch::Scratch;
use super::tls::{Pumped, TlsSession};
use super::upgrade::{self, Acceptance};
use super::{Channel, ChannelEvent, ChannelKind, MessageKind};

/// One device's `wss` connection.
#[derive(Debug)]
pub struct WssChannel {
    tls: TlsSession,
    stage: Stage,
    reader: FrameReader,
    parked: Option<Box<Parked>>,
    /// The scratch holds this connection's input (from `handle_input` or `unpark` to `park`).
    in_turn: bool,
}

#[derive(Debug)]
enum Stage {
    /// TLS handshake, then the request; how much of its head was searched for the end. Next: `Binding`, `Closed`.
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

impl WssChannel {
    /// A channel for a connection that was just accepted.
    ///
    /// # Errors
    /// rustls does not take the configuration.
    pub fn new(config: &Arc<ServerConfig>) -> Result<Self, ChannelError> {
        let (tls, reader) = (TlsSession::new(config)?, FrameReader::default());
        Ok(Self {
            tls,
            stage: Stage::Request { scanned: 0 },
            reader,
            parked: None,
            in_turn: false,
        })
    }
}

impl Channel for WssChannel {
    fn kind(&self) -> ChannelKind {
        ChannelKind::Wss
    }

    fn needs_challenge(&self) -> bool {
        false
    }

    fn is_handshaking(&self) -> bool {
        matches!(self.stage, Stage::Request { .. })
    }

    fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open)
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

    fn park(&mut self, scratch: &mut Scratch) -> Result<(), ChannelError> {
        let flushed = self.flush(scratch);
        if !self.in_turn {
            return flushed;
        }
        let result = match flushed.and_then(|()| Parked::take(scratch)) {
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

    fn accept(&mut self, scratch: &mut Scratch) -> Result<(), ChannelError> {
        let Stage::Binding(acceptance) = &self.stage else {
            return Err(ChannelError::State("no upgrade to accept"));
        };
        self.queue(scratch, |out| write_acceptance(out, acceptance))?;
        self.stage = Stage::Open;
        Ok(())
    }

    fn refuse(&mut self, scratch: &mut Scratch, refusal: &Refusal) -> Result<(), ChannelError> {
        match self.stage {
            Stage::Request { .. } | Stage::Binding(_) => self.turn_away(scratch, refusal),
            _ => Err(ChannelError::State("no upgrade to refuse")),
        }
    }

    fn send(&mut self, scratch: &mut Scratch, kind: MessageKind, payload: &[u8]) -> Result<(), ChannelError> {
        let opcode = match kind {
            MessageKind::Text => OpCode::Text,
            MessageKind::Binary => OpCode::Binary,
        };
        self.queue_frame(scratch, opcode, payload)
    }

    fn ping(&mut self, scratch: &mut Scratch) -> Result<(), ChannelError> {
        self.queue_frame(scratch, OpCode::Ping, &[])
    }

    fn close(&mut self, scratch: &mut Scratch, code: u16, reason: &str) -> Result<(), ChannelError> {
        match self.stage {
            Stage::Closed => return Ok(()),
            Stage::Open | Stage::Failed => self.queue(scratch, |out| write_close(out, Some(code), reason))?,
            Stage::Request { .. } | Stage::Binding(_) => {}
        }
        self.end(scratch)
    }

    fn flush(&mut self, scratch: &mut Scratch) -> Result<(), ChannelError> {
        if self.in_turn
            && let Some(payload) = scratch.pong.take()
            && self.is_open()
        {
            self.queue_frame(scratch, OpCode::Pong, payload.as_slice())?;
        }
        self.seal(scratch)
    }
}

impl WssChannel {
    /// Decodes until there is an event, or nothing more can be had from this turn's input.
    fn decode(&mut self, scratch: &mut Scratch) -> Result<Option<ChannelEvent>, ChannelError> {
        let (mut alive, mut drained) = (false, false);
        loop {
            match &mut self.stage {
                Stage::Request { scanned } => match upgrade::parse(scratch.plain.bytes(), scanned) {
                    Ok(Some(upgrade)) => {
                        scratch.plain.consume(upgrade.head_bytes);
                        self.stage = Stage::Binding(Box::new(upgrade.acceptance));
                        return Ok(Some(ChannelEvent::Upgrade(upgrade.request)));
                    }
                    Ok(None) => {}
                    Err(refusal) => {
                        self.turn_away(scratch, &refusal)?;
                        let (status, code) = (refusal.status, refusal.static_code());
                        return Err(ChannelError::Upgrade { status, code });
                    }
                },
                Stage::Open => match read_frame(&mut self.reader, scratch, drained)? {
                    Some(Frame::Message(kind, bytes)) => return Ok(Some(ChannelEvent::Message(kind, bytes))),
                    Some(Frame::Close(code)) => return self.answer_close(scratch, code),
                    Some(Frame::Ping(payload)) => {
                        (scratch.pong, alive) = (Some(payload), true);
                        continue;
                    }
                    Some(Frame::Pong) => {
                        alive = true;
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
            scratch.claim(self.tls.token())?;
            match self
                .tls
                .pump(&mut scratch.cipher, &mut scratch.plain, &mut scratch.outbound)?
            {
                Pumped::Plaintext => {}
                // Only now is it certain that the rest of a message is not in the scratch already.
                Pumped::Drained => drained = true,
                Pumped::PeerClosed => {
                    self.end(scratch)?;
                    return Ok(Some(ChannelEvent::Closed { code: None }));
                }
            }
        }
    }

    /// The peer's close is answered in kind (RFC 6455 section 5.5.1).
    fn answer_close(
        &mut self,
        scratch: &mut Scratch,
        code: Option<u16>,
    ) -> Result<Option<ChannelEvent>, ChannelError> {
        self.queue(scratch, |out| write_close(out, code, ""))?;
        self.end(scratch)?;
        Ok(Some(ChannelEvent::Closed { code }))
    }

    /// Answers a request that does not become a WebSocket.
    fn turn_away(&mut self, scratch: &mut Scratch, refusal: &Refusal) -> Result<(), ChannelError> {
        if !self.tls.is_handshaking() {
            self.queue(scratch, |out| write_refusal(out, refusal))?;
        }
        self.end(scratch)
    }

    /// Seals what is queued, says `close_notify`, forgets the input and ends the turn. rustls is not fed after that: it would count what
    /// the peer still sends as faults of a session that is over.
    fn end(&mut self, scratch: &mut Scratch) -> Result<(), ChannelError> {
        self.stage = Stage::Closed;
        let result = match self.tls.is_handshaking() {
            true => Ok(()),
            false => self.seal(scratch).and_then(|()| self.say_goodbye(scratch)),
        };
        self.reader = FrameReader::default();
        self.parked = None;
        if std::mem::take(&mut self.in_turn) {
            scratch.reset_input();
        }
        result
    }

    fn say_goodbye(&mut self, scratch: &mut Scratch) -> Result<(), ChannelError> {
        scratch.claim(self.tls.token())?;
        let undecoded = undecoded(&mut self.parked, &mut scratch.cipher, self.in_turn);
        self.tls.close_notify(undecoded, &mut scratch.outbound)
    }

    fn seal(&mut self, scratch: &mut Scratch) -> Result<(), ChannelError> {
        if scratch.unsealed.is_empty() {
            return Ok(());
        }
        scratch.claim(self.tls.token())?;
        let undecoded = undecoded(&mut self.parked, &mut scratch.cipher, self.in_turn);
        let sealed = self.tls.seal(undecoded, &scratch.unsealed, &mut scratch.outbound);
        scratch.unsealed.clear();
        sealed
    }

    fn queue(&self, scratch: &mut Scratch, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), ChannelError> {
        scratch.claim(self.tls.token())?;
        write(&mut scratch.unsealed);
        Ok(())
    }

    fn queue_frame(&self, scratch: &mut Scratch, opcode: OpCode, payload: &[u8]) -> Result<(), ChannelError> {
        match self.stage {
            Stage::Open => self.queue(scratch, |out| write_frame(out, opcode, payload)),
            _ => Err(ChannelError::State("the channel is not open")),
        }
    }

    /// After an error nothing more is read. What the peer can still be told depends on whether TLS stands.
    fn fail(&mut self, scratch: &mut Scratch, error: &ChannelError) {
        let tellable = self.is_open() && !matches!(error, ChannelError::Tls(_));
        self.stage = if tellable { Stage::Failed } else { Stage::Closed };
        self.reader = FrameReader::default();
        self.parked = None;
        scratch.reset_input();
    }
}

fn read_frame(
    reader: &mut FrameReader,
    scratch: &mut Scratch,
    absorb: bool,
) -> Result<Option<Frame>, ChannelError> {
    let (used, frame) = reader.decode(scratch.plain.bytes(), &scratch.limits, absorb)?;
    scratch.plain.consume(used);
    Ok(frame)
}

#[cfg(test)]
#[path = "wss_tests.rs"]
mod tests;
