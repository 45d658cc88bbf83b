//! A frontend's end of a link, scripted: answers Hello by itself and gives credit back; the rest is up to the test.

use std::time::Instant;

use bytes::Bytes;
use holdfast_proto::link::frames::{Close, Hello, PushResult, PushStatus, QueryResult};
use holdfast_proto::link::{
    Command, Epoch, FEATURE_SHARE, Incoming, Lane, LaneConfig, decode_batch, encode_notice,
};

/// See the module's documentation.
pub(super) struct ScriptedFrontend {
    pub(super) id: u16,
    /// Whether sockets can be connected.
    pub(super) reachable: bool,
    /// Whether it respects shares.
    pub(super) shares: bool,
    /// Whether it takes and sends anything.
    pub(super) alive: bool,
    pub(super) lane: Option<Lane>,
    attach: u32,
    notices: Vec<Bytes>,
    /// Everything but Hello.
    pub(super) received: Vec<Command>,
}

impl ScriptedFrontend {
    pub(super) fn new(id: u16) -> Self {
        let received = Vec::new();
        Self {
            id,
            reachable: true,
            shares: true,
            alive: true,
            lane: None,
            attach: 0,
            notices: Vec::new(),
            received,
        }
    }

    pub(super) fn send(&mut self, command: Command) {
        self.lane.as_mut().expect("it is attached").enqueue(command, None);
    }

    pub(super) fn notify(&mut self, command: Command) {
        let lane = self.lane.take().expect("it is attached");
        self.notices
            .push(encode_notice(lane.local(), lane.remote(), command));
    }

    pub(super) fn handle(&mut self, now: Instant, batch: Bytes) {
        if !self.alive {
            return;
        }
        let decoded = decode_batch(batch).unwrap();
        let from: Epoch = decoded.0.from.unwrap().into();
        if decoded.0.to.is_none() {
            self.attach += 1;
            let epoch = Epoch {
                boot: 100 + u128::from(self.id),
                attach: self.attach,
            };
            self.lane = Some(Lane::new(LaneConfig::default(), epoch, from, now));
        }
        let Some(lane) = &mut self.lane else { return };
        let mut got: Vec<Incoming> = Vec::new();
        if lane.handle_batch(now, decoded, &mut got).is_err() {
            // What came while it was silent is missing: this end of the link is over, as it would be for a real one.
            self.lane = None;
            return;
        }
        for Incoming { command, charge } in got {
            if let Some(charge) = charge {
                lane.release(charge);
            }
            match command {
                Command::Hello(_) => lane.enqueue(Command::Hello(self_hello(self.id, self.shares)), None),
                command => self.received.push(command),
            }
        }
    }

    pub(super) fn poll(&mut self, now: Instant) -> Vec<Bytes> {
        let mut out = std::mem::take(&mut self.notices);
        if let Some(lane) = self.lane.as_mut().filter(|_| self.alive) {
            while let Some(batch) = lane
                .poll_batch(now, 0, |_, _| {})
                .or_else(|| lane.poll_header(now, 0))
            {
                out.push(batch);
            }
        }
        out
    }

    /// The number of the last push, query or close that was asked for.
    pub(super) fn asked(&self) -> u64 {
        let number = |command: &Command| match command {
            Command::Push(push) => Some(push.number),
            Command::Query(query) => Some(query.number),
            Command::Close(Close { number, .. }) if *number > 0 => Some(*number),
            _ => None,
        };
        self.received
            .iter()
            .rev()
            .find_map(number)
            .expect("something was asked")
    }

    pub(super) fn answer_push(&mut self, status: PushStatus) {
        let result = PushResult {
            number: self.asked(),
            status: status as i32,
            ..Default::default()
        };
        self.send(Command::PushResult(result));
    }

    pub(super) fn answer_query(&mut self, result: QueryResult) {
        self.send(Command::QueryResult(QueryResult {
            number: self.asked(),
            ..result
        }));
    }
}

fn self_hello(id: u16, shares: bool) -> Hello {
    Hello {
        features: shares.then(|| FEATURE_SHARE.to_owned()).into_iter().collect(),
        version_min: 1,
        version_max: 1,
        frontend_id: id.into(),
        heartbeat_ms: 30_000,
        max_message_bytes: 1024,
        window_requests: 32,
        ..Default::default()
    }
}
