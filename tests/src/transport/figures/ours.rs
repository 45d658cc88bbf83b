//! The transport itself.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::MessageKind;
use holdfast_proto::secure::{TrafficKey, TrafficKeys};
use holdfast_proto::udp::{
    Config, Connection, ConnectionId, Event, INITIAL_SERVER_CREDIT, Opening, PeerCredit, ResetToken, Side,
};

use super::Setting;
use super::link::Ends;
use crate::sim::queue::Time;

/// What the receiver takes ahead: several times the product of bandwidth and round-trip time.
const RECEIVE_BYTES: u32 = 512 << 10;
const RECEIVE_MESSAGES: u16 = 1_024;
const SEND_BYTES: usize = 4 << 20;
const SEND_MESSAGES: usize = 4_096;
/// At the worst loss a long transfer may well see a minute without an acknowledgement: it is to be measured all the same.
const GIVE_UP: Duration = Duration::from_secs(3_600);

pub(super) struct Ours {
    base: Instant,
    config: Config,
    /// Down, up: who sends.
    ends: [Connection; 2],
    handed: usize,
}

impl Ours {
    pub(super) fn new(setting: &Setting) -> Self {
        let base = Instant::now();
        let config = Config {
            receive_bytes: RECEIVE_BYTES,
            receive_messages: RECEIVE_MESSAGES,
            max_datagram: setting.datagram,
            send_bytes: SEND_BYTES,
            send_messages: SEND_MESSAGES,
            give_up: GIVE_UP,
            ..Config::default()
        };
        let ends = [Side::Server, Side::Device].map(|side| Connection::new(side, opening(side), base));
        Self {
            base,
            config,
            ends,
            handed: 0,
        }
    }

    fn take_events(&mut self) {
        for end in &mut self.ends {
            while let Some(event) = end.poll_event(&self.config) {
                match event {
                    Event::Message(..) => self.handed += 1,
                    Event::Delivered(_) | Event::PeerMoved(_) => {}
                    Event::Closed { .. } | Event::Ended(_) => panic!("nobody closes it: {event:?}"),
                }
            }
        }
    }
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 9_000))
}

fn opening(side: Side) -> Opening {
    let key = |byte| TrafficKey::from_bytes(&[byte; 32]).expect("a key has 32 bytes");
    let device = PeerCredit {
        messages: RECEIVE_MESSAGES.into(),
        bytes: RECEIVE_BYTES.into(),
    };
    let (peer, peer_credit, own_credit, reset_token) = match side {
        Side::Server => (1, device, INITIAL_SERVER_CREDIT, Some(ResetToken([3; 16]))),
        Side::Device => (2, INITIAL_SERVER_CREDIT, device, None),
    };
    Opening {
        cid: ConnectionId(1),
        keys: TrafficKeys {
            to_server: key(1),
            to_device: key(2),
        },
        peer: address(peer),
        peer_max_datagram: u16::MAX,
        peer_credit,
        own_credit,
        reset_token,
    }
}

impl Ends for Ours {
    type Frame = Vec<u8>;

    fn send(&mut self, _: Time, bytes: usize) -> bool {
        let content = Bytes::from(vec![7; bytes]);
        self.ends[1]
            .send(&self.config, MessageKind::Binary, content)
            .is_ok()
    }

    fn poll_transmit(&mut self, now: Time) -> Option<(bool, usize, Vec<u8>)> {
        for (up, end) in [false, true].into_iter().zip(&mut self.ends) {
            let mut out = Vec::new();
            if end
                .poll_transmit(&self.config, self.base + now, &mut out)
                .is_some()
            {
                return Some((up, out.len(), out));
            }
        }
        None
    }

    fn arrive(&mut self, now: Time, up: bool, mut frame: Vec<u8>) {
        let from = address(if up { 1 } else { 2 });
        let end = &mut self.ends[usize::from(!up)];
        end.handle_datagram(&self.config, self.base + now, from, &mut frame, 1);
        self.take_events();
    }

    fn timeout(&self) -> Option<Time> {
        let due = self.ends.iter().filter_map(Connection::poll_timeout).min()?;
        Some(due.saturating_duration_since(self.base))
    }

    fn on_timeout(&mut self, now: Time) {
        let now_of_core = self.base + now;
        for end in &mut self.ends {
            end.handle_timeout(&self.config, now_of_core);
        }
        self.take_events();
    }

    fn take_handed(&mut self, _: Time) -> usize {
        self.take_events();
        std::mem::take(&mut self.handed)
    }
}
