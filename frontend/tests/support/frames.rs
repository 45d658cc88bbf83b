//! Feeds the same bytes to our frame reader and to tungstenite's `WebSocketContext`, and compares what they make of them.
//! Shared by the property tests and the fuzz target.

use std::io::{self, Cursor, Read, Write};

use crate::tungstenite::error::ProtocolError;
use crate::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use crate::tungstenite::{Error, Message};
use holdfast_frontend::channel::frame::{Frame, FrameReader, ReadLimits};
use holdfast_frontend::channel::{Budget, ChannelError, MessageKind, PeerFault};

/// What a stream of frames came to.
#[derive(Debug)]
pub(crate) struct Outcome<E> {
    pub(crate) frames: Vec<Seen>,
    pub(crate) error: Option<E>,
}

/// A frame, without what the two libraries do not both report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
}

/// Our reader, fed in pieces of `chunk(i)` bytes. Stops at a close frame, as the channel does.
pub(crate) fn ours(stream: &[u8], max: usize, mut chunk: impl FnMut() -> usize) -> Outcome<ChannelError> {
    let limits = ReadLimits {
        max_message_bytes: max,
        max_frames_bytes: max,
        budget: Budget::new(64 * 1024 * 1024),
    };
    let (mut reader, mut pending, mut fed) = (FrameReader::default(), Vec::new(), 0);
    let mut frames = Vec::new();
    while fed < stream.len() {
        let end = (fed + chunk().max(1)).min(stream.len());
        pending.extend_from_slice(&stream[fed..end]);
        fed = end;
        loop {
            match reader.decode(&mut pending, &limits, true) {
                Ok((used, frame)) => {
                    pending.drain(..used);
                    match frame {
                        Some(frame) => frames.push(seen(frame)),
                        None => break,
                    }
                }
                Err(error) => {
                    return Outcome {
                        frames,
                        error: Some(error),
                    };
                }
            }
            if let Some(Seen::Close(_)) = frames.last() {
                return Outcome { frames, error: None };
            }
        }
        assert!(
            pending.len() < 131,
            "more than a control frame stayed behind: {}",
            pending.len()
        );
    }
    Outcome { frames, error: None }
}

fn seen(frame: Frame) -> Seen {
    match frame {
        Frame::Message(MessageKind::Text, bytes) => Seen::Text(bytes.to_vec()),
        Frame::Message(MessageKind::Binary, bytes) => Seen::Binary(bytes.to_vec()),
        Frame::Ping(payload) => Seen::Ping(payload.as_slice().to_vec()),
        Frame::Pong => Seen::Pong,
        // Registered with IANA, but tungstenite takes it for a violation.
        Frame::Close(Some(1014)) => Seen::Close(Some(1002)),
        Frame::Close(code) => Seen::Close(code),
    }
}

struct Half<'a>(Cursor<&'a [u8]>);

impl Read for Half<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Half<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// tungstenite on the whole stream; that it ends without a close frame is not an error here.
pub(crate) fn theirs(stream: &[u8], max: usize) -> Outcome<Error> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(max))
        .max_frame_size(Some(max))
        .read_buffer_size(512);
    let mut context = WebSocketContext::new(Role::Server, Some(config));
    let mut half = Half(Cursor::new(stream));
    let mut frames = Vec::new();
    loop {
        match context.read(&mut half) {
            Ok(Message::Text(text)) => frames.push(Seen::Text(text.as_bytes().to_vec())),
            Ok(Message::Binary(bytes)) => frames.push(Seen::Binary(bytes.to_vec())),
            Ok(Message::Ping(bytes)) => frames.push(Seen::Ping(bytes.to_vec())),
            Ok(Message::Pong(_)) => frames.push(Seen::Pong),
            Ok(Message::Close(frame)) => {
                frames.push(Seen::Close(frame.map(|frame| frame.code.into())));
                return Outcome { frames, error: None };
            }
            Ok(Message::Frame(_)) => unreachable!("never returned while reading"),
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
                return Outcome { frames, error: None };
            }
            Err(error) => {
                return Outcome {
                    frames,
                    error: Some(error),
                };
            }
        }
    }
}

/// Panics if the two disagree beyond what is intended: we are stricter about the encoding of lengths and about close
/// frames, and we report a fault as soon as it shows, not when its frame is complete.
pub(crate) fn compare(stream: &[u8], max: usize, chunk: impl FnMut() -> usize) {
    let (ours, theirs) = (ours(stream, max, chunk), theirs(stream, max));
    match &ours.error {
        None => {
            assert!(
                theirs.error.is_none(),
                "only they refuse: {:?}, we saw {:?}",
                theirs.error,
                ours.frames
            );
            assert_eq!(ours.frames, theirs.frames);
        }
        // A control frame in a longer form than needed shows as too long before its length is read.
        Some(ChannelError::Peer(
            PeerFault::LengthEncoding | PeerFault::BadClose | PeerFault::ControlTooLong,
        )) => {
            assert!(
                theirs.frames.starts_with(&ours.frames),
                "{:?} {:?}",
                ours.frames,
                theirs.frames
            );
        }
        Some(ChannelError::Peer(_)) => {
            assert_eq!(
                ours.frames, theirs.frames,
                "{:?} against {:?}",
                ours.error, theirs.error
            );
        }
        Some(error) => panic!("not the peer's fault: {error}"),
    }
}
