//! What the link tells people: who is attached, what each has been given, and who went.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use holdfast_proto::Share;
use holdfast_proto::link::Epoch;

/// Ends of attachments that are remembered.
pub const MAX_HAND_OVERS: usize = 32;

/// The link as the admin listener shows it.
#[derive(Debug, Clone, Default)]
pub struct LinkStatus {
    pub backends: Vec<PeerStatus>,
    /// Newest first, at most [`MAX_HAND_OVERS`].
    pub hand_overs: Vec<HandOver>,
}

/// An attachment.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    pub name: String,
    pub build: String,
    pub epoch: Epoch,
    /// `standby`, `active`, `draining` or `done`.
    pub stage: &'static str,
    pub share: Share,
    /// When it said Hello.
    pub since: Instant,
    /// Goes on counting.
    pub work: Arc<Work>,
}

/// Requests that went to one backend. Only the link's thread writes, so that counting costs no locked instruction.
#[derive(Debug, Default)]
pub struct Work {
    requests: AtomicU64,
    replies: AtomicU64,
    dropped: AtomicU64,
}

impl Work {
    pub(super) fn on_request(&self) {
        add(&self.requests, 1);
    }

    pub(super) fn on_reply(&self) {
        add(&self.replies, 1);
    }

    /// Requests of ended sessions that never went out.
    pub(super) fn on_dropped(&self, requests: u64) {
        add(&self.dropped, requests);
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Final replies.
    pub fn replies(&self) -> u64 {
        self.replies.load(Ordering::Relaxed)
    }

    /// Requests that it was given, or that wait for its credit, without a final reply.
    pub fn in_flight(&self) -> u64 {
        // Replies first: one that is counted meanwhile has its request counted already.
        let over = self.replies() + self.dropped.load(Ordering::Relaxed);
        self.requests().saturating_sub(over)
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}

/// How an attachment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HandOverKind {
    /// It left with everything done.
    Graceful,
    /// Its connection ended, or it attached anew.
    Crash,
    /// It was silent, or its workers stood still.
    Hang,
    /// It broke the protocol, or did not take what it had asked for.
    Fenced,
    /// It wanted to leave and was gone before all was done.
    GraceOver,
}

impl HandOverKind {
    /// Bounded, for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Graceful => "graceful",
            Self::Crash => "crash",
            Self::Hang => "hang",
            Self::Fenced => "fenced",
            Self::GraceOver => "grace_over",
        }
    }

    /// Of an attachment that was lost for this reason.
    pub(super) fn of_loss(cause: &str, draining: bool) -> Self {
        match cause {
            "silent" | "stuck" => Self::Hang,
            "disconnected" | "reattached" if draining => Self::GraceOver,
            "disconnected" | "reattached" => Self::Crash,
            _ => Self::Fenced,
        }
    }
}

/// The end of an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandOver {
    pub at: Instant,
    pub kind: HandOverKind,
    /// The backend's name.
    pub backend: String,
    pub epoch: Epoch,
    /// Graceful: requests that were out when it began to leave. Otherwise those that others were given in its place.
    pub requests: u64,
    /// From the wish to leave to its end; zero when there was no such wish.
    pub duration: Duration,
}

/// The last ends, newest first.
#[derive(Debug, Default)]
pub(super) struct HandOvers(VecDeque<HandOver>);

impl HandOvers {
    pub(super) fn note(&mut self, hand_over: HandOver) {
        self.0.truncate(MAX_HAND_OVERS - 1);
        self.0.push_front(hand_over);
    }

    pub(super) fn list(&self) -> Vec<HandOver> {
        self.0.iter().cloned().collect()
    }
}
