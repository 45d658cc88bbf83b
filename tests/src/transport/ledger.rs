//! What was sent, taken and reported on each connection: the truth that both ends are held against.

use std::collections::BTreeMap;

use holdfast_proto::MessageKind;
use holdfast_proto::udp::{ConnectionId, End, Side};

use super::Promise;
use super::message::Message;

/// A broken promise.
pub(crate) type Broken = (Promise, String);

#[derive(Debug, Default)]
pub(crate) struct Ledger(BTreeMap<ConnectionId, Log>);

/// One connection. Each end's flow is what it sends.
#[derive(Debug, Default)]
pub(crate) struct Log {
    device: Flow,
    server: Flow,
}

/// One direction.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    pub(crate) sent: Vec<Message>,
    pub(crate) taken: usize,
    pub(crate) delivered: usize,
    /// Of messages delivered and not taken: the receiver must hold them.
    pub(crate) owed_bytes: usize,
    /// How its sender closed the connection.
    pub(crate) closed: Option<(u16, String)>,
    /// What has become of the end that sends here.
    pub(crate) sender: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub(crate) enum Fate {
    /// It has not come to its last event.
    #[default]
    Running,
    /// Its application has polled to the end.
    Ended(End),
    /// It went without a word, or its application stopped asking.
    Vanished,
}

impl Log {
    pub(crate) fn flow(&self, sender: Side) -> &Flow {
        match sender {
            Side::Device => &self.device,
            Side::Server => &self.server,
        }
    }

    pub(crate) fn flow_mut(&mut self, sender: Side) -> &mut Flow {
        match sender {
            Side::Device => &mut self.device,
            Side::Server => &mut self.server,
        }
    }

    /// Whether whatever either end has sent was taken, and its sender was told.
    pub(crate) fn is_settled(&self) -> bool {
        [&self.device, &self.server]
            .iter()
            .all(|flow| flow.taken == flow.sent.len() && flow.delivered == flow.sent.len())
    }
}

pub(crate) fn other(side: Side) -> Side {
    match side {
        Side::Device => Side::Server,
        Side::Server => Side::Device,
    }
}

impl Ledger {
    pub(crate) fn open(&mut self, cid: ConnectionId) {
        self.0.entry(cid).or_default();
    }

    pub(crate) fn log(&self, cid: ConnectionId) -> &Log {
        &self.0[&cid]
    }

    pub(crate) fn flow_mut(&mut self, cid: ConnectionId, sender: Side) -> &mut Flow {
        self.0.entry(cid).or_default().flow_mut(sender)
    }

    pub(crate) fn on_sent(&mut self, cid: ConnectionId, side: Side, message: Message) {
        self.flow_mut(cid, side).sent.push(message);
    }

    /// The application at `side` was handed a message.
    pub(crate) fn on_taken(
        &mut self,
        (cid, side): (ConnectionId, Side),
        kind: MessageKind,
        content: &[u8],
    ) -> Result<(), Broken> {
        let flow = self.flow_mut(cid, other(side));
        let number = flow.taken;
        let Some(message) = flow.sent.get(number) else {
            let what = format!("{side:?} of {cid} was handed message {number}, which nobody sent");
            return Err((Promise::Once, what));
        };
        if !message.is(kind, content) {
            let place = flow.sent.iter().position(|m| m.is(kind, content));
            let bytes = content.len();
            let what = format!(
                "{side:?} of {cid} was handed {kind:?} of {bytes} bytes as message {number}: {message:?} was sent"
            );
            return Err(match place {
                Some(place) if place < number => (Promise::Once, format!("{what}, this is {place} again")),
                Some(place) => (Promise::InOrder, format!("{what}, this is {place}")),
                None => (Promise::Unchanged, what),
            });
        }
        flow.taken += 1;
        if number < flow.delivered {
            flow.owed_bytes -= content.len();
        }
        Ok(())
    }

    /// The end at `side` says that so many more of its messages are at the peer.
    pub(crate) fn on_delivered(
        &mut self,
        (cid, side): (ConnectionId, Side),
        count: usize,
    ) -> Result<(), Broken> {
        let receiver = self.log(cid).flow(other(side)).sender;
        let flow = self.flow_mut(cid, side);
        let (from, to) = (flow.delivered, flow.delivered + count);
        if count == 0 || to > flow.sent.len() {
            let what = format!(
                "{side:?} of {cid} was told of {to} delivered messages of {}",
                flow.sent.len()
            );
            return Err((Promise::Truthful, what));
        }
        flow.delivered = to;
        flow.owed_bytes += (from.max(flow.taken)..to)
            .map(|n| flow.sent[n].bytes)
            .sum::<usize>();
        if let Fate::Ended(end) = receiver
            && flow.taken < to
        {
            let what = format!(
                "{side:?} of {cid} was told of {to} delivered messages: the peer took {} before it ended ({end:?})",
                flow.taken
            );
            return Err((Promise::Truthful, what));
        }
        Ok(())
    }

    /// The application at `side` has polled its last event: whatever its peer believes delivered it must have had.
    pub(crate) fn on_ended(&mut self, (cid, side): (ConnectionId, Side), end: End) -> Result<(), Broken> {
        let flow = self.log(cid).flow(other(side));
        if flow.taken < flow.delivered {
            let what = format!(
                "{side:?} of {cid} ended ({end:?}) with {} messages taken: the peer was told of {} delivered",
                flow.taken, flow.delivered
            );
            return Err((Promise::Truthful, what));
        }
        self.flow_mut(cid, side).sender = Fate::Ended(end);
        Ok(())
    }

    pub(crate) fn on_vanished(&mut self, cid: ConnectionId, side: Side) {
        let sender = &mut self.flow_mut(cid, side).sender;
        if *sender == Fate::Running {
            *sender = Fate::Vanished;
        }
    }
}
