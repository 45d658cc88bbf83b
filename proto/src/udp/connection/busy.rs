//! What a connection keeps only while something is under way.

use std::time::{Duration, Instant};

use super::acks::Acks;
use super::congestion::Recovery;
use super::inbox::Inbox;
use super::outbox::Outbox;
use super::path::Candidate;
use super::sent::{Control, SentLog};
use super::types::PeerClose;
use crate::udp::ResetToken;

#[derive(Debug)]
pub(super) struct Busy {
    pub(super) outbox: Outbox,
    pub(super) inbox: Inbox,
    pub(super) sent: SentLog,
    pub(super) acks: Acks,
    /// What is to be sent beside pieces.
    pub(super) pending: Control,
    /// The packet with the newest credit: the loss of an older one does not matter.
    pub(super) credit_packet: u64,
    /// To be announced, until it was acknowledged. Servers only.
    pub(super) reset_token: Option<ResetToken>,
    /// The peer's challenge, to be answered.
    pub(super) response: Option<u64>,
    pub(super) candidate: Option<Box<Candidate>>,
    pub(super) moved: bool,
    pub(super) recovery: Recovery,
    /// The highest number that the peer acknowledged.
    pub(super) largest_acknowledged: Option<u64>,
    /// When something in flight is lost because others behind it arrived.
    pub(super) loss_at: Option<Instant>,
    /// The last sample, which loss detection needs beside the smoothed one.
    pub(super) latest_rtt: Duration,
    /// Packets before this do not speak of persistent congestion: there was no sample yet.
    pub(super) sampled_since: Option<Instant>,
    /// What was sent before says nothing about the path as it is now.
    pub(super) path_since: Option<Instant>,
    /// Timeouts in a row that brought no acknowledgement.
    pub(super) expired: u32,
    /// Since when only the peer's credit keeps back what waits, with nothing in flight.
    pub(super) blocked_since: Option<Instant>,
    /// Probes that went out since, answered or not.
    pub(super) blocked_probes: u8,
    /// Datagrams that may be sent whatever the congestion window says.
    pub(super) probes: u8,
    /// The window was what kept us from sending more.
    pub(super) window_was_full: bool,
    /// Since when nothing that we sent was acknowledged, while something is in flight.
    pub(super) unanswered_since: Option<Instant>,
    /// It is not given up before, whoever owes an answer: nobody looked for one for a while.
    pub(super) forgiven_until: Option<Instant>,
    /// When the connection is given up.
    pub(super) give_up_at: Option<Instant>,
    pub(super) closing: Option<Box<Closing>>,
    pub(super) peer_close: Option<Box<PeerClose>>,
}

/// We close.
#[derive(Debug)]
pub(super) struct Closing {
    pub(super) code: u16,
    pub(super) reason: String,
    /// How many messages were sent in all.
    pub(super) messages: u64,
    /// When it is over at the latest.
    pub(super) until: Instant,
    pub(super) is_acknowledged: bool,
    /// The peer broke the protocol: nothing more is taken from it.
    pub(super) is_failure: bool,
}

impl Busy {
    /// `next_message`: the number of the next message to send.
    pub(super) fn new(next_message: u64) -> Self {
        Self {
            outbox: Outbox::new(next_message),
            inbox: Inbox::default(),
            sent: SentLog::default(),
            acks: Acks::default(),
            pending: Control::default(),
            credit_packet: 0,
            reset_token: None,
            response: None,
            candidate: None,
            moved: false,
            recovery: Recovery::default(),
            largest_acknowledged: None,
            loss_at: None,
            latest_rtt: Duration::ZERO,
            sampled_since: None,
            path_since: None,
            expired: 0,
            blocked_since: None,
            blocked_probes: 0,
            probes: 0,
            window_was_full: false,
            unanswered_since: None,
            forgiven_until: None,
            give_up_at: None,
            closing: None,
            peer_close: None,
        }
    }

    /// Whether all of it can go.
    pub(super) fn is_quiet(&self) -> bool {
        self.outbox.is_quiet()
            && self.inbox.is_empty()
            && self.sent.is_empty()
            && !self.acks.is_waiting()
            && self.pending.is_empty()
            && self.reset_token.is_none()
            && self.response.is_none()
            && self.candidate.is_none()
            && !self.moved
            && self.closing.is_none()
            && self.peer_close.is_none()
    }

    /// The connection has ended: nothing goes on but what is to be told, and if it ended in good order a last acknowledgement.
    pub(super) fn stop(&mut self, is_clean: bool) {
        self.outbox.clear();
        self.sent.clear();
        self.pending = Control::default();
        self.reset_token = None;
        self.response = None;
        self.candidate = None;
        self.probes = 0;
        self.loss_at = None;
        self.give_up_at = None;
        self.closing = None;
        if is_clean {
            self.acks.hurry();
        } else {
            self.acks = Acks::default();
        }
    }
}
