//! One end of one link: the frames between a pair of epochs.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;

use super::codec::{self, MAX_BATCH_BYTES, MAX_BATCH_FRAMES};
use super::credit::{Class, Grant, Granting, Grants, Spending};
use super::epoch::Epoch;
use super::frames::{Frame, Header, frame::Command};

/// Frames sent and not yet acknowledged, at most: with it ZeroMQ's own queue can never fill.
pub const MAX_UNACKNOWLEDGED: u64 = 4096;

/// How long an acknowledgement or a credit waits for frames to travel with. Headers alone were half of all batches, and each
/// wakes the other end; nothing waits for one but a peer that is short of credit, and for that one nothing waits.
pub const HEADER_DELAY: Duration = Duration::from_millis(2);
/// Frames received after which an acknowledgement waits no longer.
const URGENT_FRAMES: u64 = 64;

/// How one end of a link behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneConfig {
    /// Longest silence of ours. 250 ms by default.
    pub heartbeat: Duration,
    /// The other end is gone after this much silence. 1 s by default.
    pub timeout: Duration,
    /// The other end is gone when its progress stood still for this long although batches came; `None`: never judged.
    pub progress_timeout: Option<Duration>,
    /// How long what there is to tell may wait for frames to travel with. None by default; [`HEADER_DELAY`] in the binaries.
    pub header_delay: Duration,
    /// What the other end may have outstanding here.
    pub grants: Grants,
}

impl Default for LaneConfig {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(250),
            timeout: Duration::from_secs(1),
            progress_timeout: None,
            header_delay: Duration::ZERO,
            grants: Grants::default(),
        }
    }
}

/// What an owner wants to recognise a frame by once it was sent: its own number, from one of its sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub source: u8,
    pub ticket: u64,
}

/// A received frame and what it was charged. The charge is given back with [`Lane::release`] when the frame was put into a
/// bounded queue or refused.
#[derive(Debug, Clone, PartialEq)]
pub struct Incoming {
    pub command: Command,
    pub charge: Option<(Class, u32)>,
}

/// Why a batch was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaneError {
    /// Dropped and counted; the lane goes on.
    #[error("the batch belongs to another epoch")]
    StaleEpoch,
    /// The lane is unusable: the socket must be dropped, both epochs end.
    #[error("the batch cannot be read")]
    Malformed,
    #[error("frame {got} came where {expected} was due")]
    Gap { expected: u64, got: u64 },
    #[error("more {} than credit was given for", .0.label())]
    CreditExceeded(Class),
    #[error("frame {0} was acknowledged but never sent")]
    FalseAcknowledgement(u64),
}

impl LaneError {
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::StaleEpoch)
    }
}

/// Why the other end is taken for gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// Nothing came for the whole timeout.
    Silent,
    /// Batches came, but its workers stood still.
    Stuck,
}

/// Counted since the epoch began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneStats {
    pub frames_sent: u64,
    pub frames_received: u64,
    pub batches_sent: u64,
    pub batches_received: u64,
    /// How often a class with frames waiting ran out of credit.
    pub credit_stalls: u64,
}

/// How much of its bounds a lane uses, per class, indexed by `Class as usize`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneUsage {
    /// Frames that wait for credit or for their turn.
    pub queued: [usize; 4],
    /// What was received and not yet released.
    pub outstanding: [Grant; 4],
    /// Frames that need no credit and wait for their turn.
    pub free: usize,
    /// Frames handed out and not yet acknowledged.
    pub unacknowledged: u64,
}

#[derive(Debug)]
struct Queued {
    frame: Frame,
    bytes: usize,
    origin: Option<Origin>,
}

#[derive(Debug, Default)]
struct ClassQueue {
    waiting: VecDeque<Queued>,
    spending: Spending,
    stalled: bool,
}

/// See the module's documentation. Owners call `enqueue`, `handle_batch`, `poll_batch` until `None`, then `poll_header`, and `check` at [`Lane::poll_timeout`].
#[derive(Debug)]
pub struct Lane {
    config: LaneConfig,
    local: Epoch,
    remote: Epoch,
    free: VecDeque<Queued>,
    classes: [ClassQueue; 4],
    granting: [Granting; 4],
    /// Which class the next batch begins with, so that none starves another.
    turn: usize,
    sent: u64,
    sent_acknowledged: u64,
    received: u64,
    /// When a header goes alone at the latest; `None`: there is nothing to tell.
    header_at: Option<Instant>,
    /// What the last header told: frames received, and totals granted.
    told: u64,
    told_grants: [Grant; 4],
    remote_progress: u64,
    last_progress: Instant,
    last_received: Instant,
    last_sent: Option<Instant>,
    stats: LaneStats,
}

impl Lane {
    pub fn new(config: LaneConfig, local: Epoch, remote: Epoch, now: Instant) -> Self {
        Self {
            config,
            local,
            remote,
            free: VecDeque::new(),
            classes: Default::default(),
            granting: config.grants.0.map(Granting::new),
            turn: 0,
            sent: 0,
            sent_acknowledged: 0,
            received: 0,
            header_at: Some(now),
            told: 0,
            told_grants: config.grants.0,
            remote_progress: 0,
            last_progress: now,
            last_received: now,
            last_sent: None,
            stats: LaneStats::default(),
        }
    }

    pub fn local(&self) -> Epoch {
        self.local
    }

    pub fn remote(&self) -> Epoch {
        self.remote
    }

    /// A backend learns the frontend's epoch from its first batch.
    pub fn set_remote(&mut self, remote: Epoch) {
        self.remote = remote;
    }

    pub fn stats(&self) -> LaneStats {
        self.stats
    }

    /// Frames of `class` that wait for credit or for their turn. Their bound is the owner's.
    pub fn queued(&self, class: Class) -> usize {
        self.classes[class as usize].waiting.len()
    }

    /// Whether everything enqueued was handed out.
    pub fn is_flushed(&self) -> bool {
        self.free.is_empty() && self.classes.iter().all(|c| c.waiting.is_empty())
    }

    /// Whether everything handed out was acknowledged.
    pub fn is_acknowledged(&self) -> bool {
        self.sent == self.sent_acknowledged
    }

    /// Number of the last frame handed out.
    pub fn last_frame(&self) -> u64 {
        self.sent
    }

    /// Number of the last frame handed out that the other end has acknowledged.
    pub fn last_acknowledged_frame(&self) -> u64 {
        self.sent_acknowledged
    }

    /// Number of the last frame received.
    pub fn last_received_frame(&self) -> u64 {
        self.received
    }

    /// What was received of `class` and not yet released.
    pub fn outstanding(&self, class: Class) -> Grant {
        self.granting[class as usize].outstanding()
    }

    pub fn usage(&self) -> LaneUsage {
        LaneUsage {
            queued: Class::ALL.map(|class| self.queued(class)),
            outstanding: Class::ALL.map(|class| self.outstanding(class)),
            free: self.free.len(),
            unacknowledged: self.sent - self.sent_acknowledged,
        }
    }

    pub fn enqueue(&mut self, command: Command, origin: Option<Origin>) {
        let class = Class::of(&command);
        let frame = Frame {
            command: Some(command),
        };
        let queued = Queued {
            bytes: frame.encoded_len(),
            frame,
            origin,
        };
        match class {
            None => self.free.push_back(queued),
            Some(class) => self.classes[class as usize].waiting.push_back(queued),
        }
    }

    /// Drops frames of `class` that have not gone out and that nobody wants any more.
    pub fn retain_queued(&mut self, class: Class, mut wanted: impl FnMut(&Command) -> bool) {
        let waiting = &mut self.classes[class as usize].waiting;
        waiting.retain(|queued| queued.frame.command.as_ref().is_none_or(&mut wanted));
    }

    /// Gives back the credit that a received frame was charged.
    pub fn release(&mut self, (class, bytes): (Class, u32)) {
        let amount = Grant {
            messages: 1,
            bytes: u64::from(bytes),
        };
        let held = self.granting[class as usize].release(amount);
        debug_assert!(held, "credit for {} was returned twice", class.label());
        self.header_at
            .get_or_insert(self.last_received + self.config.header_delay);
    }

    /// Takes a decoded batch; its frames are appended to `out` in order.
    pub fn handle_batch(
        &mut self,
        now: Instant,
        (header, frames): (Header, Vec<(Frame, u32)>),
        out: &mut Vec<Incoming>,
    ) -> Result<(), LaneError> {
        let from: Epoch = header.from.ok_or(LaneError::Malformed)?.into();
        let to: Option<Epoch> = header.to.map(Into::into);
        if from != self.remote || to.is_some_and(|to| to != self.local) {
            return Err(LaneError::StaleEpoch);
        }
        self.last_received = now;
        self.stats.batches_received += 1;
        self.handle_header(now, &header)?;
        // A header alone says it too: a peer that has no credit left sends nothing else.
        if header.first_frame != self.received + 1 {
            return Err(LaneError::Gap {
                expected: self.received + 1,
                got: header.first_frame,
            });
        }
        for (frame, bytes) in frames {
            self.received += 1;
            self.header_at.get_or_insert(now + self.config.header_delay);
            self.stats.frames_received += 1;
            // A command from a later protocol version: features say what may be sent, so it carries no promise.
            let Some(command) = frame.command else { continue };
            let charge = Class::of(&command).map(|class| (class, bytes));
            if let Some((class, bytes)) = charge
                && !self.granting[class as usize].charge(u64::from(bytes))
            {
                return Err(LaneError::CreditExceeded(class));
            }
            out.push(Incoming { command, charge });
        }
        Ok(())
    }

    fn handle_header(&mut self, now: Instant, header: &Header) -> Result<(), LaneError> {
        if header.acknowledged > self.sent {
            return Err(LaneError::FalseAcknowledgement(header.acknowledged));
        }
        self.sent_acknowledged = self.sent_acknowledged.max(header.acknowledged);
        let grants = [&header.requests, &header.replies, &header.lifecycle, &header.push];
        for (class, grant) in self.classes.iter_mut().zip(grants) {
            if let Some(grant) = grant {
                class.spending.handle_grant((*grant).into());
            }
        }
        if header.progress != self.remote_progress {
            self.remote_progress = header.progress;
            self.last_progress = now;
        }
        Ok(())
    }

    /// The next batch that holds frames, or `None` when none can go now. `on_sent` hears of each frame that has an origin.
    pub fn poll_batch(
        &mut self,
        now: Instant,
        progress: u64,
        mut on_sent: impl FnMut(Class, Origin),
    ) -> Option<Bytes> {
        let mut batch: Vec<Queued> = Vec::new();
        let mut room = Room {
            frames: MAX_BATCH_FRAMES,
            bytes: MAX_BATCH_BYTES,
        };
        room.frames = room
            .frames
            .min((MAX_UNACKNOWLEDGED - (self.sent - self.sent_acknowledged)) as usize);
        room.take_from(&mut self.free, &mut batch);
        for offset in 0..Class::ALL.len() {
            let class = Class::ALL[(self.turn + offset) % Class::ALL.len()];
            self.take_class(class, &mut room, &mut batch, &mut on_sent);
        }
        self.turn = (self.turn + 1) % Class::ALL.len();
        if batch.is_empty() {
            return None;
        }
        let header = self.header(self.sent + 1, progress);
        self.sent += batch.len() as u64;
        self.stats.frames_sent += batch.len() as u64;
        self.on_batch_out(now);
        Some(codec::encode_batch(
            &header,
            batch.iter().map(|q| (&q.frame, q.bytes)),
        ))
    }

    fn take_class(
        &mut self,
        class: Class,
        room: &mut Room,
        batch: &mut Vec<Queued>,
        on_sent: &mut impl FnMut(Class, Origin),
    ) {
        let queue = &mut self.classes[class as usize];
        while let Some(front) = queue.waiting.front() {
            if !room.fits(front.bytes, batch.is_empty()) {
                return;
            }
            if !queue.spending.allows(front.bytes as u64) {
                self.stats.credit_stalls += u64::from(!queue.stalled);
                queue.stalled = true;
                return;
            }
            queue.stalled = false;
            queue.spending.spend(front.bytes as u64);
            room.occupy(front.bytes);
            if let Some(origin) = front.origin {
                on_sent(class, origin);
            }
            batch.extend(queue.waiting.pop_front());
        }
    }

    /// A batch of the header alone, when a heartbeat is due or what there is to tell may wait no longer. To be called once
    /// the frames of a turn are out.
    pub fn poll_header(&mut self, now: Instant, progress: u64) -> Option<Bytes> {
        let heartbeat_due = self.last_sent.is_none_or(|at| now >= at + self.config.heartbeat);
        let header_due = self.header_at.is_some_and(|at| now >= at) || self.is_urgent();
        if !header_due && !heartbeat_due {
            return None;
        }
        let header = self.header(self.sent + 1, progress);
        self.on_batch_out(now);
        Some(codec::encode_batch(&header, std::iter::empty()))
    }

    /// The other end may soon have to stop for want of what a header would tell.
    fn is_urgent(&self) -> bool {
        let limits = self.config.grants.0;
        let low = |(index, told): (usize, &Grant)| {
            let total = self.granting[index].total();
            total.messages - told.messages > limits[index].messages / 2
                || total.bytes - told.bytes > limits[index].bytes / 2
        };
        self.received - self.told >= URGENT_FRAMES || self.told_grants.iter().enumerate().any(low)
    }

    fn header(&self, first_frame: u64, progress: u64) -> Header {
        let credit = |class: Class| Some(self.granting[class as usize].total().into());
        Header {
            from: Some(self.local.into()),
            to: (self.remote != UNKNOWN_EPOCH).then(|| self.remote.into()),
            first_frame,
            acknowledged: self.received,
            requests: credit(Class::Requests),
            replies: credit(Class::Replies),
            lifecycle: credit(Class::Lifecycle),
            push: credit(Class::Push),
            progress,
        }
    }

    fn on_batch_out(&mut self, now: Instant) {
        self.header_at = None;
        self.told = self.received;
        self.told_grants = std::array::from_fn(|index| self.granting[index].total());
        self.last_sent = Some(now);
        self.stats.batches_sent += 1;
    }

    /// When [`Lane::poll_header`] or [`Lane::check`] has something to do at the latest.
    pub fn poll_timeout(&self) -> Instant {
        let speak = self
            .last_sent
            .map_or(self.last_received, |at| at + self.config.heartbeat);
        let mut next = speak.min(self.last_received + self.config.timeout);
        next = self.header_at.map_or(next, |at| next.min(at));
        if let Some(limit) = self.config.progress_timeout {
            next = next.min(self.last_progress + limit);
        }
        next
    }

    /// Judges the other end. Drain the input first: only what was read counts as heard.
    pub fn check(&self, now: Instant) -> Option<Gone> {
        if now >= self.last_received + self.config.timeout {
            return Some(Gone::Silent);
        }
        let limit = self.config.progress_timeout?;
        (now >= self.last_progress + limit).then_some(Gone::Stuck)
    }

    /// After one's own loop was late: a paused machine must not take everyone else for gone.
    pub fn restart_clocks(&mut self, now: Instant) {
        self.last_received = now;
        self.last_progress = now;
    }
}

/// What a backend puts for the frontend's epoch until it has heard it.
pub const UNKNOWN_EPOCH: Epoch = Epoch { boot: 0, attach: 0 };

/// What is left of a batch's bounds.
struct Room {
    frames: usize,
    bytes: usize,
}

impl Room {
    /// A frame over the byte bound travels alone.
    fn fits(&self, bytes: usize, first: bool) -> bool {
        self.frames > 0 && (bytes <= self.bytes || first)
    }

    fn occupy(&mut self, bytes: usize) {
        self.frames -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    fn take_from(&mut self, queue: &mut VecDeque<Queued>, batch: &mut Vec<Queued>) {
        while let Some(front) = queue.front()
            && self.fits(front.bytes, batch.is_empty())
        {
            self.occupy(front.bytes);
            batch.extend(queue.pop_front());
        }
    }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
