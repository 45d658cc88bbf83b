//! A device, its connection, and what it may expect.

use std::time::Instant;

use bytes::Bytes;
use holdfast_proto::{ChannelKind, MessageKind, SessionId};

use crate::session::{Output, SessionKey, Shard, Stalled};

pub(super) struct Device {
    pub(super) shard: usize,
    pub(super) key: SessionKey,
    pub(super) id: SessionId,
    admitted: bool,
    closed: bool,
    stalled: Option<Bytes>,
    /// Messages that the socket has not taken.
    pub(super) unwritten: usize,
    requests: u64,
    replies: u64,
    controls: u64,
    answers: u64,
}

impl Device {
    pub(super) fn connect(now: Instant, shard: &mut Shard, index: usize) -> Option<Self> {
        let key = shard.accept(now, ChannelKind::Wss, "192.0.2.1:1".parse().unwrap())?;
        let id = shard.session_id(key).unwrap();
        shard.handle_upgrade(now, key, Bytes::from_static(b"credential"));
        Some(Self {
            shard: index,
            key,
            id,
            admitted: false,
            closed: false,
            stalled: None,
            unwritten: 0,
            requests: 0,
            replies: 0,
            controls: 0,
            answers: 0,
        })
    }

    pub(super) fn is_connected(&self) -> bool {
        !self.closed
    }

    fn may_send(&self) -> bool {
        self.admitted && !self.closed && self.stalled.is_none()
    }

    /// A request of `len` bytes.
    pub(super) fn request(&mut self, now: Instant, shard: &mut Shard, len: u8) {
        if self.may_send() {
            self.requests += 1;
            self.say(now, shard, vec![b'r'; usize::from(len)].into());
        }
    }

    pub(super) fn control(&mut self, now: Instant, shard: &mut Shard, update: bool) {
        if self.may_send() {
            self.controls += 1;
            let text = if update { "@update x" } else { "@ack x" };
            self.say(now, shard, Bytes::from_static(text.as_bytes()));
        }
    }

    pub(super) fn ping(&mut self, now: Instant, shard: &mut Shard) {
        if self.may_send() {
            self.say(now, shard, Bytes::from_static(b"@ping"));
        }
    }

    fn say(&mut self, now: Instant, shard: &mut Shard, payload: Bytes) {
        if let Err(Stalled(payload)) = shard.handle_message(now, self.key, MessageKind::Text, payload) {
            self.stalled = Some(payload);
        }
    }

    pub(super) fn write(&mut self, now: Instant, shard: &mut Shard, most: usize) {
        let count = self.unwritten.min(most);
        if count > 0 && !self.closed {
            self.unwritten -= count;
            shard.handle_written(now, self.key, count);
        }
    }

    pub(super) fn disconnect(&mut self, now: Instant, shard: &mut Shard) {
        if !self.closed {
            self.closed = true;
            shard.handle_closed(now, self.key, false);
        }
    }

    /// What the channel is told.
    pub(super) fn handle(&mut self, now: Instant, shard: &mut Shard, output: Output) {
        assert!(!self.closed, "{output:?} for who is gone");
        match output {
            Output::Admit { .. } => {
                assert!(!std::mem::replace(&mut self.admitted, true));
                self.say(now, shard, Bytes::from_static(b"@hello"));
            }
            Output::Refuse { .. } => {
                assert!(!self.admitted);
                self.closed = true;
            }
            Output::Close { .. } => self.closed = true,
            Output::Ping { .. } => shard.handle_alive(now, self.key),
            Output::Resume { .. } => {
                let payload = self.stalled.take().expect("only who was stalled is resumed");
                self.say(now, shard, payload);
            }
            Output::Send { payload, .. } => {
                assert!(self.admitted);
                self.unwritten += 1;
                self.hear(&payload);
            }
        }
    }

    fn hear(&mut self, payload: &[u8]) {
        let text = std::str::from_utf8(payload).unwrap();
        if let Some(sequence) = text.strip_prefix('r') {
            self.replies += 1;
            assert_eq!(
                sequence,
                self.replies.to_string(),
                "a reply out of order, or twice"
            );
            assert!(self.replies <= self.requests);
        } else if text == "@answer" || text.ends_with("\"code\":\"backend_failed\"}") {
            self.answers += 1;
            assert!(self.answers <= self.controls);
        } else {
            assert!(matches!(text, "@welcome" | "@pong" | "push"), "{text}");
        }
    }

    /// Everything that it asked was answered.
    pub(super) fn assert_paid(&self) {
        if self.closed {
            return;
        }
        assert!(self.admitted && self.stalled.is_none() && self.unwritten == 0);
        assert_eq!(self.replies, self.requests, "requests without a reply");
        assert_eq!(self.answers, self.controls, "controls without an answer");
    }
}
