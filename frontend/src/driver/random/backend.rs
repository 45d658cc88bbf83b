//! A backend: it answers what it has in any order, and names predecessors as the real one does.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::link::frames::{self, bound, logged_in};
use holdfast_proto::link::{
    Command, Epoch, Incoming, Lane, LaneConfig, UNKNOWN_EPOCH, decode_batch, read_notice, session_id,
};
use holdfast_proto::{SessionId, Share};

pub(super) struct Backend {
    pub(super) identity: Bytes,
    pub(super) lane: Lane,
    /// On the way to it.
    pub(super) inbox: VecDeque<Bytes>,
    /// On the way to the hub.
    pub(super) outbox: VecDeque<Bytes>,
    pub(super) hung: bool,
    fenced: bool,
    drain: Drain,
    share: Share,
    pending: Vec<Command>,
    /// The last request of each session, in the order in which they came.
    last: HashMap<SessionId, u64>,
    asked: HashSet<u64>,
    next_push: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Drain {
    No,
    Asked,
    Marked(u64),
    Done,
}

impl Backend {
    pub(super) fn new(now: Instant, boot: u128) -> Self {
        let epoch = Epoch { boot, attach: 1 };
        let config = LaneConfig::default();
        let mut lane = Lane::new(config, epoch, UNKNOWN_EPOCH, now);
        let hello = frames::Hello {
            version_min: 1,
            version_max: 1,
            ..Default::default()
        };
        lane.enqueue(Command::Hello(hello), None);
        lane.enqueue(Command::Ready(frames::Ready::default()), None);
        Self {
            identity: epoch.to_string().into(),
            lane,
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            hung: false,
            fenced: false,
            drain: Drain::No,
            share: Share::FULL,
            pending: Vec::new(),
            last: HashMap::new(),
            asked: HashSet::new(),
            next_push: 0,
        }
    }

    /// Nothing more comes of it.
    pub(super) fn is_over(&self) -> bool {
        self.fenced || (self.drain == Drain::Done && self.lane.is_flushed() && self.lane.is_acknowledged())
    }

    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.inbox.is_empty() && self.outbox.is_empty()
    }

    pub(super) fn takes_work(&self) -> bool {
        !self.hung && !self.fenced && self.drain == Drain::No && !self.share.is_none()
    }

    pub(super) fn share(&mut self, share: Share) {
        if self.drain == Drain::No {
            self.share = share;
            self.lane.enqueue(Command::Ready(share.into()), None);
        }
    }

    pub(super) fn drain(&mut self) {
        if self.drain == Drain::No {
            self.drain = Drain::Asked;
            self.lane.enqueue(Command::Draining(frames::Draining {}), None);
        }
    }

    pub(super) fn read(&mut self, now: Instant) {
        let Some(batch) = self.inbox.pop_front().filter(|_| !self.hung) else {
            return;
        };
        let (header, frames) = decode_batch(batch).unwrap();
        if read_notice(self.lane.local(), &header, &frames).is_some() {
            self.fenced = true;
            return;
        }
        if self.lane.remote() == UNKNOWN_EPOCH {
            self.lane.set_remote(header.from.unwrap().into());
        }
        let mut incoming = Vec::new();
        self.lane
            .handle_batch(now, (header, frames), &mut incoming)
            .unwrap();
        for Incoming { command, charge } in incoming {
            if let Some(charge) = charge {
                self.lane.release(charge);
            }
            self.take(command);
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::DrainMark(mark) => self.drain = Drain::Marked(mark.last_frame),
            Command::PushResult(result) => {
                assert!(
                    self.asked.remove(&result.number),
                    "a push that was reported twice"
                );
            }
            Command::TextMessage(mut request) => {
                assert!(
                    self.drain == Drain::No || self.drain == Drain::Asked,
                    "work after the mark"
                );
                let id = session_id(request.session.as_ref().and_then(|s| s.id)).unwrap();
                let last = self.last.insert(id, request.sequence).unwrap_or(0);
                assert!(last < request.sequence, "requests out of order");
                // From here on `floor` is the predecessor that the reply will name.
                request.floor = if last >= request.floor { last } else { 0 };
                self.pending.push(Command::TextMessage(request));
            }
            Command::Hello(_) | Command::Ping(_) | Command::QueryResult(_) => {}
            work => self.pending.push(work),
        }
    }

    pub(super) fn write(&mut self, now: Instant) {
        if self.hung {
            return;
        }
        if let Drain::Marked(last) = self.drain
            && self.pending.is_empty()
            && self.lane.is_flushed()
            && self.lane.last_received_frame() >= last
        {
            self.drain = Drain::Done;
            let last_frame = self.lane.last_frame() + 1;
            self.lane
                .enqueue(Command::Done(frames::Done { last_frame }), None);
        }
        let lane = &mut self.lane;
        while let Some(batch) = lane
            .poll_batch(now, 0, |_, _| {})
            .or_else(|| lane.poll_header(now, 0))
        {
            self.outbox.push_back(batch);
        }
    }

    pub(super) fn push(&mut self, target: frames::push::Target) {
        if matches!(self.drain, Drain::No) && !self.hung {
            self.next_push += 1;
            self.asked.insert(self.next_push);
            self.lane.enqueue(
                Command::Push(frames::Push {
                    number: self.next_push,
                    target: Some(target),
                    payload: Bytes::from_static(b"push"),
                    ..Default::default()
                }),
                None,
            );
        }
    }

    pub(super) fn close(&mut self, id: SessionId) {
        if matches!(self.drain, Drain::No) {
            self.lane.enqueue(
                Command::Close(frames::Close {
                    target: Some(frames::close::Target::Session(id.into())),
                    code: 4001,
                    ..Default::default()
                }),
                None,
            );
        }
    }

    pub(super) fn answer_all(&mut self) {
        while !self.pending.is_empty() && !self.hung {
            self.answer(self.pending.len() - 1);
        }
    }

    /// Answers one of the things that it has.
    pub(super) fn answer(&mut self, which: usize) {
        if self.pending.is_empty() || self.hung {
            return;
        }
        let command = self.pending.remove(which % self.pending.len());
        let answer = match command {
            Command::Bind(bind) => admit(bind.id),
            Command::Login(login) => welcome(&login),
            Command::Logout(logout) => Command::LoggedOut(frames::LoggedOut {
                id: id_of(logout.session),
            }),
            Command::TextMessage(request) => Command::Reply(frames::Reply {
                payload: format!("r{}", request.sequence).into(),
                id: id_of(request.session),
                sequence: request.sequence,
                after: request.floor,
                r#final: true,
                ..Default::default()
            }),
            Command::Control(control) => Command::ControlReply(frames::ControlReply {
                id: id_of(control.session),
                number: control.number,
                reply: Bytes::from_static(b"@answer"),
            }),
            Command::Update(update) => {
                let session = update.session.unwrap();
                Command::Updated(frames::Updated {
                    id: session.id,
                    number: update.number,
                    reply: Bytes::from_static(b"@answer"),
                    blob: Some(frames::BlobWrite {
                        blob: Bytes::from_static(b"blob"),
                        base_version: session.blob_version,
                    }),
                })
            }
            other => panic!("{other:?}"),
        };
        self.lane.enqueue(answer, None);
    }

    pub(super) fn assert_paid(&self) {
        assert!(self.asked.is_empty(), "pushes without a result: {:?}", self.asked);
    }
}

fn id_of(session: Option<frames::Session>) -> Option<frames::SessionId> {
    session.and_then(|s| s.id)
}

/// Few devices, so that sessions replace each other.
fn admit(id: Option<frames::SessionId>) -> Command {
    let parts = session_id(id).unwrap().parts();
    let device = (parts.slot.0 * 2 + u32::from(parts.shard.0)) % 17;
    let admitted = frames::Admitted {
        device: format!("device-{device}").into(),
        principal: Bytes::new(),
        challenge: None,
    };
    Command::Bound(frames::Bound {
        id,
        result: Some(bound::Result::Admitted(admitted)),
    })
}

fn welcome(login: &frames::Login) -> Command {
    let id = login.session.as_ref().and_then(|s| s.id);
    let welcomed = frames::Welcomed {
        welcome: Bytes::from_static(b"@welcome"),
        login_ms: 1,
        blob: None,
    };
    Command::LoggedIn(frames::LoggedIn {
        id,
        result: Some(logged_in::Result::Welcomed(welcomed)),
    })
}

/// Longer than any silence that the hub forgives.
pub(super) const SILENCE: Duration = Duration::from_millis(1500);
