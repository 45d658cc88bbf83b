//! Worlds that are broken on purpose: a simulation that cannot fail shows nothing.

use bytes::Bytes;
use holdfast_frontend::exchange::ToHub;
use holdfast_proto::MessageKind;
use holdfast_proto::link::Command;
use holdfast_proto::link::frames::{Batch, Frame};
use prost::Message as _;
use prost::encoding::encoded_len_varint;

use super::conn::ConnId;
use super::ledger::Parcel;
use super::nodes::FrontendLife;
use super::pipe::{Direction, PipeId};
use super::world::World;
use super::{Defences, message};

/// What a broken world does wrong, now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// The pipe delivers a batch twice.
    DoubleBatch,
    /// The pipe loses a batch and goes on.
    LoseBatch,
    /// The pipe delivers a backend's batch as another's.
    Misdeliver,
    /// Two replies in a batch swap what they say.
    SwapReplies,
    /// Two replies in a batch change places, of which the second names the first.
    Reorder,
    /// Two do, and forget which ones they come after.
    ReorderBlindly,
    /// A reply comes once more, in place of the one behind it.
    RepeatReply,
    /// The device gets a reply twice.
    DoubleMessage,
    /// The device does not get a reply that counts as written.
    LoseMessage,
    /// A service is called again by itself.
    DoubleCall,
    /// A shard's LOGOUT is lost on its way to the hub.
    LoseLogout,
    /// A credit is lost on its way to the hub.
    LoseCredit,
}

/// Decides when to bend what passes.
#[derive(Debug)]
pub(super) struct Bender {
    mutant: Option<Mutant>,
    /// Occasions so far.
    seen: u64,
    /// Pipes that did not deliver each batch once: their epochs must end.
    pub(super) tampered: Vec<PipeId>,
}

/// Every so many occasions one is used.
const OCCASIONS: u64 = 20;

impl Bender {
    pub(super) fn new(mutant: Option<Mutant>) -> Self {
        Self {
            mutant,
            seen: 0,
            tampered: Vec::new(),
        }
    }
}

impl World {
    /// Whether this occasion is one to do this wrong.
    fn bends(&mut self, mutant: Mutant) -> bool {
        if self.bender.mutant != Some(mutant) {
            return false;
        }
        self.bender.seen += 1;
        let bends = self.bender.seen.is_multiple_of(OCCASIONS);
        if bends {
            self.summary.bent += 1;
            self.trace.note(self.now, ("bends", mutant));
        }
        bends
    }

    pub(super) fn bend_batch(
        &mut self,
        pipe: PipeId,
        direction: Direction,
        batch: Parcel,
    ) -> Vec<(PipeId, Parcel)> {
        let Some(mutant) = self.bender.mutant else {
            return vec![(pipe, batch)];
        };
        if batch.frames.is_empty() {
            return vec![(pipe, batch)];
        }
        if matches!(mutant, Mutant::DoubleBatch | Mutant::LoseBatch) && self.bends(mutant) {
            self.bender.tampered.push(pipe);
            let times = if mutant == Mutant::DoubleBatch { 2 } else { 0 };
            return vec![(pipe, batch); times];
        }
        match mutant {
            Mutant::Misdeliver if direction == Direction::Up => {
                let frontend = self.pipes[pipe.0].frontend;
                let other = (0..self.pipes.len())
                    .find(|n| *n != pipe.0 && self.pipes[*n].open && self.pipes[*n].frontend == frontend);
                match other {
                    Some(other) if self.bends(mutant) => vec![(PipeId(other), batch.clone()), (pipe, batch)],
                    _ => vec![(pipe, batch)],
                }
            }
            Mutant::SwapReplies | Mutant::Reorder | Mutant::ReorderBlindly | Mutant::RepeatReply
                if direction == Direction::Up =>
            {
                vec![(pipe, Parcel::new(self.bend_replies(mutant, batch.batch)))]
            }
            _ => vec![(pipe, batch)],
        }
    }

    /// Changes a batch of replies, frame by frame, without changing how many there are.
    fn bend_replies(&mut self, mutant: Mutant, bytes: Bytes) -> Bytes {
        let Ok(mut batch) = Batch::decode(bytes.clone()) else {
            return bytes;
        };
        let replies: Vec<usize> = (0..batch.frames.len())
            .filter(|n| matches!(&batch.frames[*n].command, Some(Command::Reply(r)) if !r.silent))
            .collect();
        match (mutant, replies.as_slice()) {
            (Mutant::Reorder, replies) => {
                let names = |pair: &&[usize]| follows(&batch.frames[pair[0]], &batch.frames[pair[1]]);
                let pair = replies.windows(2).find(names).map(|pair| (pair[0], pair[1]));
                match pair {
                    Some((first, second)) if self.bends(mutant) => batch.frames.swap(first, second),
                    _ => return bytes,
                }
            }
            (Mutant::ReorderBlindly, [first, second, ..]) if self.bends(mutant) => {
                batch.frames.swap(*first, *second);
                batch.frames.iter_mut().for_each(forget_order);
            }
            (Mutant::SwapReplies, [first, second, ..]) if self.bends(mutant) => {
                let (head, tail) = batch.frames.split_at_mut(*second);
                if let (Some(Command::Reply(a)), Some(Command::Reply(b))) =
                    (&mut head[*first].command, &mut tail[0].command)
                {
                    std::mem::swap(&mut a.payload, &mut b.payload);
                }
            }
            (Mutant::RepeatReply, [first, second, ..]) if self.bends(mutant) => {
                batch.frames[*second] = batch.frames[*first].clone();
            }
            _ => return bytes,
        }
        batch.encode_to_vec().into()
    }

    pub(super) fn bend_message(
        &mut self,
        conn: ConnId,
        message: (MessageKind, Bytes),
    ) -> Vec<(MessageKind, Bytes)> {
        let Some(mutant) = self.bender.mutant else {
            return vec![message];
        };
        let is_reply = matches!(
            message::read(message.0, &message.1),
            message::Heard::Event { seq, .. } if seq > 0 && !self.conns[conn.0].vanished
        );
        match mutant {
            Mutant::DoubleMessage if is_reply && self.bends(mutant) => vec![message.clone(), message],
            Mutant::LoseMessage if is_reply && self.bends(mutant) => Vec::new(),
            _ => vec![message],
        }
    }

    /// Whether backends only ever leave after having finished, and nothing else ends their links.
    pub(super) fn is_graceful(&self) -> bool {
        let breaks_links = matches!(
            self.bender.mutant,
            Some(Mutant::DoubleBatch | Mutant::LoseBatch | Mutant::RepeatReply)
        );
        self.scenario.is_graceful() && !breaks_links && self.options.crash.is_none()
    }

    /// How often a call is made.
    pub(super) fn times_called(&mut self) -> usize {
        1 + usize::from(self.bends(Mutant::DoubleCall))
    }

    /// Whether a message reaches the hub.
    pub(super) fn lets_pass(&mut self, message: &ToHub) -> bool {
        match message {
            ToHub::Work {
                command: Command::Logout(_),
                ..
            } => {
                // LOGOUTs are few. In the end they arrive, as everything does.
                let loses = self.bender.mutant == Some(Mutant::LoseLogout) && self.healed.is_none();
                let bends = loses && self.rng.chance(400);
                self.summary.bent += u64::from(bends);
                !bends
            }
            ToHub::Release { .. } => !self.bends(Mutant::LoseCredit),
            _ => true,
        }
    }

    pub(super) fn count_defences(&self) -> Defences {
        let mut defences = self.summary.defences;
        for life in self.frontends.iter().filter_map(|node| node.life.as_ref()) {
            defences.add_frontend(life);
        }
        defences
    }
}

/// Whether the second reply names the first. A session that had nothing in flight in between is not remembered by its
/// backend: the order of the link alone is enough there.
fn follows(first: &Frame, second: &Frame) -> bool {
    match (&first.command, &second.command) {
        (Some(Command::Reply(first)), Some(Command::Reply(second))) => {
            first.id == second.id && first.sequence == second.after
        }
        _ => false,
    }
}

/// Who comes after itself waits for nobody. As long as it was, for credits count bytes.
fn forget_order(frame: &mut Frame) {
    if let Some(Command::Reply(reply)) = &mut frame.command
        && encoded_len_varint(reply.after) == encoded_len_varint(reply.sequence)
        && reply.after > 0
    {
        reply.after = reply.sequence;
    }
}

impl Defences {
    pub(super) fn add_frontend(&mut self, life: &FrontendLife) {
        self.fenced += life.metrics.fenced.get();
        self.malformed += life.metrics.malformed.get();
        self.stale_epoch += life.metrics.stale_epoch.get();
        for shard in &life.shards {
            self.duplicate_replies += shard.metrics.duplicate_replies.get();
            self.late_frames += shard.metrics.late_frames.get();
        }
    }
}
