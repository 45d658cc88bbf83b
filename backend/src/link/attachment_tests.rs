use super::*;
use holdfast_proto::link::frames::{DrainMark, Fenced, Logout, Refused, Reply};
use holdfast_proto::link::{Gone, LaneConfig, encode_notice};

const FRONTEND: Epoch = Epoch { boot: 77, attach: 5 };

fn settings() -> Arc<LinkSettings> {
    Arc::new(LinkSettings {
        name: "b".into(),
        build: "1".into(),
        boot: 1,
        lane: LaneConfig::default(),
        retry: Duration::from_millis(100),
        share: Share::FULL,
    })
}

/// The frontend's end, scripted.
struct Peer {
    lane: Lane,
}

/// An attachment and its peer on virtual time.
struct Pair {
    now: Instant,
    link: Attachment,
    peer: Option<Peer>,
    received: Vec<Command>,
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Pair {
    fn new() -> Self {
        Self {
            now: Instant::now(),
            link: Attachment::new(settings(), 1),
            peer: None,
            received: Vec::new(),
        }
    }

    /// One that wants this share, attached to a frontend that knows these features.
    fn with_share(share: Share, features: &[&str]) -> Self {
        let settings = LinkSettings {
            share,
            ..(*settings()).clone()
        };
        let mut pair = Self::new();
        pair.link = Attachment::new(Arc::new(settings), 1);
        pair.attach(features);
        pair
    }

    fn attach(&mut self, features: &[&str]) {
        self.peer = None;
        self.received.clear();
        self.link.handle_connected(self.now);
        self.turn();
        let features = features.iter().map(|f| (*f).to_owned()).collect();
        let hello = Hello { features, ..hello() };
        self.peer().lane.enqueue(Command::Hello(hello), None);
        self.turn();
        self.turn();
    }

    /// The shares that READY named since the last time, in hundredths of a percent.
    fn said(&mut self) -> Vec<u16> {
        self.turn();
        let share = |command| match command {
            Command::Ready(ready) => Some(Share::from(ready).hundredths()),
            _ => None,
        };
        std::mem::take(&mut self.received)
            .into_iter()
            .filter_map(share)
            .collect()
    }

    fn connected() -> Self {
        let mut pair = Self::new();
        pair.link.handle_connected(pair.now);
        pair
    }

    fn attached() -> Self {
        let mut pair = Self::connected();
        pair.turn();
        pair.peer().lane.enqueue(Command::Hello(hello()), None);
        pair.turn();
        assert_eq!(pair.link.state(), LinkState::Attached);
        pair
    }

    fn peer(&mut self) -> &mut Peer {
        self.peer.as_mut().expect("the peer has heard a Hello")
    }

    /// What the peer has goes to the link, then what the link has to the peer.
    fn turn(&mut self) -> Option<Loss> {
        let now = self.now;
        let mut out = Vec::new();
        if let Some(peer) = &mut self.peer {
            let lane = &mut peer.lane;
            while let Some(batch) = lane
                .poll_batch(now, 0, |_, _| {})
                .or_else(|| lane.poll_header(now, 0))
            {
                if let Err(loss) = self.link.handle_batch(now, batch, &mut out) {
                    return Some(loss);
                }
            }
        }
        let charges: Vec<_> = out.iter().filter_map(|i| i.charge).collect();
        charges.into_iter().for_each(|charge| self.link.release(charge));
        self.receive();
        None
    }

    fn receive(&mut self) {
        let now = self.now;
        let mut got = Vec::new();
        while let Some(batch) = self.link.poll_transmit(now, 0, |_, _| {}) {
            let decoded = decode_batch(batch).unwrap();
            let from: Epoch = decoded.0.from.unwrap().into();
            let peer = self.peer.get_or_insert_with(|| {
                assert!(decoded.0.to.is_none(), "the first batch cannot know us");
                Peer {
                    lane: Lane::new(LaneConfig::default(), FRONTEND, from, now),
                }
            });
            peer.lane.handle_batch(now, decoded, &mut got).unwrap();
        }
        for incoming in got {
            if let Some(charge) = incoming.charge {
                self.peer().lane.release(charge);
            }
            self.received.push(incoming.command);
        }
    }

    fn lose(&mut self) -> Loss {
        loop {
            self.now += ms(10);
            self.receive();
            if let Some(loss) = self.link.handle_timeout(self.now) {
                return loss;
            }
        }
    }
}

fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        frontend_id: 9,
        heartbeat_ms: 30_000,
        ..Default::default()
    }
}

#[test]
fn hellos_are_exchanged_and_ready_follows() {
    let mut pair = Pair::attached();
    assert_eq!(pair.link.frontend().unwrap().id, FrontendId(9));
    pair.turn();
    let [Command::Hello(ours), Command::Ready(_), Command::Sync(sync)] = &pair.received[..] else {
        panic!("{:?}", pair.received)
    };
    assert_eq!((ours.version_min, ours.name.as_str(), sync.cursor), (1, "b", 0));
}

#[test]
fn no_identity_is_used_twice() {
    let mut pair = Pair::new();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..5 {
        assert!(seen.insert(pair.link.next_identity()));
        pair.link.handle_disconnected(pair.now).unwrap();
        assert!(seen.insert(pair.link.next_identity()));
        pair.link.handle_connected(pair.now);
        pair.link.handle_disconnected(pair.now).unwrap();
    }
    assert!(seen.contains("b/00000000000000000000000000000001.1"));
    let long = LinkSettings {
        name: "x".repeat(64),
        boot: u128::MAX,
        ..(*settings()).clone()
    };
    assert!(Attachment::new(Arc::new(long), 1).next_identity().len() <= 255);
}

#[test]
fn who_does_not_answer_is_tried_again_with_growing_pauses() {
    let mut pair = Pair::new();
    let mut pauses = Vec::new();
    for _ in 0..6 {
        pair.link.handle_connected(pair.now);
        pair.peer = None;
        let begun = pair.now;
        let loss = pair.lose();
        assert_eq!((loss.reason, pair.now - begun), (LossReason::NoAnswer, ms(1000)));
        pauses.push(loss.retry_at - pair.now);
        pair.now = loss.retry_at;
    }
    for (pause, full) in pauses.iter().zip([100, 200, 400, 800, 1000, 1000]) {
        assert!(*pause >= ms(full) / 2 && *pause <= ms(full), "{pauses:?}");
    }
    let mut pair = Pair::attached();
    let loss = pair.link.handle_disconnected(pair.now).unwrap();
    assert!(
        loss.retry_at - pair.now <= ms(100),
        "being attached once starts the pauses anew"
    );
}

#[test]
fn a_refusal_is_told_and_tried_again_slowly() {
    let mut pair = Pair::new();
    let mut longest = Duration::ZERO;
    for attach in 1..=8 {
        pair.link.handle_connected(pair.now);
        let refused = Command::Refused(Refused {
            code: "version".into(),
            reason: "too old".into(),
        });
        let notice = encode_notice(FRONTEND, Epoch { boot: 1, attach }, refused);
        let loss = pair
            .link
            .handle_batch(pair.now, notice, &mut Vec::new())
            .unwrap_err();
        let LossReason::Refused { code, .. } = &loss.reason else {
            panic!("{loss:?}")
        };
        assert_eq!(code, "version");
        longest = loss.retry_at - pair.now;
    }
    assert!(longest >= MAX_REFUSED_RETRY / 2 && longest <= MAX_REFUSED_RETRY);
}

#[test]
fn a_fenced_link_attaches_anew_at_once_but_not_in_a_loop() {
    let mut pair = Pair::attached();
    let fence = |pair: &mut Pair, from: u128| {
        let to = Epoch {
            boot: 1,
            attach: pair.link.next_attach() - 1,
        };
        let notice = encode_notice(
            Epoch {
                boot: from,
                attach: 1,
            },
            to,
            Command::Fenced(Fenced {}),
        );
        pair.link
            .handle_batch(pair.now, notice, &mut Vec::new())
            .unwrap_err()
    };
    let loss = fence(&mut pair, 12345);
    assert_eq!((loss.reason, loss.retry_at), (LossReason::Fenced, pair.now));
    assert_eq!(pair.link.state(), LinkState::Detached);
    pair.link.handle_connected(pair.now);
    assert!(fence(&mut pair, 77).retry_at > pair.now);
}

#[test]
fn silence_is_a_loss_unless_we_were_late_ourselves() {
    let mut pair = Pair::attached();
    assert_eq!(pair.lose().reason, LossReason::Silent);

    let mut pair = Pair::attached();
    pair.now += Duration::from_secs(60);
    assert_eq!(pair.link.handle_timeout(pair.now), None, "the machine slept");
    let begun = pair.now;
    assert_eq!(pair.lose().reason, LossReason::Silent);
    assert!(pair.now - begun >= ms(1000));
}

#[test]
fn heartbeats_keep_both_ends_alive() {
    let mut pair = Pair::attached();
    for _ in 0..1000 {
        pair.now += ms(50);
        assert_eq!(pair.turn(), None);
        assert_eq!(pair.link.handle_timeout(pair.now), None);
        let now = pair.now;
        assert_ne!(pair.peer().lane.check(now), Some(Gone::Silent));
    }
    let stats = pair.link.stats();
    assert!(
        (190..=220).contains(&stats.batches_sent),
        "one per 250 ms: {stats:?}"
    );
}

#[test]
fn draining_ends_with_done_and_its_acknowledgement() {
    let mut pair = Pair::attached();
    pair.turn();
    pair.link.start_draining();
    pair.turn();
    assert!(matches!(pair.received.last(), Some(Command::Draining(_))));
    pair.link.advance_drain(true);
    assert_eq!(
        pair.link.state(),
        LinkState::Draining,
        "the frontend has not said that there is no more"
    );
    let last_frame = pair.peer().lane.last_frame() + 1;
    pair.peer()
        .lane
        .enqueue(Command::DrainMark(DrainMark { last_frame }), None);
    pair.turn();
    pair.link.advance_drain(false);
    assert!(
        pair.link.enqueue(Command::Reply(Reply::default()), None),
        "work is still answered"
    );
    pair.link.advance_drain(true);
    pair.turn();
    assert!(
        matches!(pair.received.last(), Some(Command::Reply(_))),
        "replies go before DONE"
    );
    pair.link.advance_drain(true);
    assert!(
        !pair.link.enqueue(Command::Reply(Reply::default()), None),
        "DONE is the last frame"
    );
    pair.receive();
    let Some(Command::Done(done)) = pair.received.last() else {
        panic!("{:?}", pair.received)
    };
    assert_eq!(
        done.last_frame,
        pair.peer.as_ref().unwrap().lane.last_received_frame()
    );
    pair.link.advance_drain(true);
    assert_eq!(pair.link.state(), LinkState::Draining, "not acknowledged yet");
    pair.turn();
    pair.link.advance_drain(true);
    assert_eq!(pair.link.state(), LinkState::Finished);
    assert_eq!(pair.link.handle_disconnected(pair.now), None);
}

#[test]
fn a_mark_ahead_of_its_frames_is_waited_for() {
    let mut pair = Pair::attached();
    pair.link.start_draining();
    pair.turn();
    let last_frame = pair.peer().lane.last_frame() + 2;
    pair.peer()
        .lane
        .enqueue(Command::DrainMark(DrainMark { last_frame }), None);
    pair.turn();
    pair.link.advance_drain(true);
    pair.receive();
    assert!(!matches!(pair.received.last(), Some(Command::Done(_))));
    pair.peer().lane.enqueue(Command::Logout(Logout::default()), None);
    pair.turn();
    pair.link.advance_drain(true);
    pair.receive();
    assert!(matches!(pair.received.last(), Some(Command::Done(_))));
}

#[test]
fn a_link_that_is_not_attached_has_nothing_to_drain() {
    let mut pair = Pair::connected();
    pair.link.start_draining();
    assert_eq!(pair.link.state(), LinkState::Finished);
    let mut pair = Pair::attached();
    pair.link.start_draining();
    pair.link.handle_disconnected(pair.now).unwrap();
    assert_eq!(pair.link.state(), LinkState::Finished);
}

#[test]
fn batches_of_other_epochs_are_dropped() {
    let mut pair = Pair::attached();
    let to = pair.link.lane().unwrap().local();
    for (from, to) in [
        (Epoch { boot: 77, attach: 6 }, to),
        (FRONTEND, Epoch { boot: 1, attach: 99 }),
    ] {
        let mut stray = Lane::new(LaneConfig::default(), from, to, pair.now);
        let batch = stray.poll_header(pair.now, 0).unwrap();
        assert_eq!(
            pair.link.handle_batch(pair.now, batch, &mut Vec::new()),
            Ok(Step::Stale)
        );
    }
}

#[test]
fn a_frontend_that_breaks_the_protocol_is_left() {
    let mut pair = Pair::attached();
    let loss = pair
        .link
        .handle_batch(pair.now, Bytes::from_static(b"\x0a\xff"), &mut Vec::new())
        .unwrap_err();
    assert_eq!(loss.reason, LossReason::Lane(LaneError::Malformed));

    let mut pair = Pair::attached();
    pair.peer().lane.enqueue(Command::Hello(hello()), None);
    assert_eq!(
        pair.turn().unwrap().reason,
        LossReason::Protocol("a second Hello")
    );

    for (command, reason) in [
        (Command::Ready(Share::FULL.into()), "a frame before Hello"),
        (
            Command::Hello(Hello {
                version_min: 2,
                version_max: 3,
                ..hello()
            }),
            "no common protocol version",
        ),
        (
            Command::Hello(Hello {
                frontend_id: 65_536,
                ..hello()
            }),
            "a frontend id over 65535",
        ),
    ] {
        let mut pair = Pair::connected();
        pair.turn();
        pair.peer().lane.enqueue(command, None);
        assert_eq!(pair.turn().unwrap().reason, LossReason::Protocol(reason));
    }
}

const SHARES: &[&str] = &["something", FEATURE_SHARE];

fn part(hundredths: u32) -> Share {
    Share::clamped(hundredths)
}

#[test]
fn a_standby_says_nothing_until_it_gets_a_share() {
    let mut pair = Pair::with_share(Share::NONE, SHARES);
    assert_eq!(
        (pair.link.state(), pair.link.is_standby()),
        (LinkState::Attached, true)
    );
    assert!(matches!(pair.received[..], [Command::Hello(_), Command::Sync(_)]));
    pair.link.set_share(Share::NONE);
    assert!(pair.said().is_empty());
    pair.link.set_share(part(500));
    assert_eq!((pair.said(), pair.link.is_standby()), (vec![500], false));
    pair.link.set_share(part(500));
    assert!(pair.said().is_empty(), "it is known");
    pair.link.set_share(Share::FULL);
    assert_eq!(pair.said(), [10_000]);
    pair.link.set_share(Share::NONE);
    assert_eq!((pair.said(), pair.link.is_standby()), (vec![0], true));
}

#[test]
fn every_attachment_is_told_the_share_of_the_day() {
    let mut pair = Pair::with_share(part(500), SHARES);
    assert_eq!(pair.said(), [500]);
    pair.link.handle_disconnected(pair.now);
    pair.link.set_share(part(700));
    pair.attach(SHARES);
    assert_eq!(pair.said(), [700]);
}

#[test]
fn a_frontend_that_knows_no_shares_hears_only_of_full_members() {
    let mut pair = Pair::with_share(part(500), &[]);
    assert!(pair.said().is_empty() && pair.link.is_standby());
    assert!(pair.link.allows(part(600)) && pair.link.allows(Share::NONE));
    pair.link.set_share(part(600));
    assert!(pair.said().is_empty());
    pair.link.set_share(Share::FULL);
    assert_eq!((pair.said(), pair.link.is_standby()), (vec![10_000], false));
    assert!(!pair.link.allows(part(600)) && !pair.link.allows(Share::NONE));
    pair.link.set_share(part(600));
    assert!(pair.said().is_empty());
    assert!(!pair.link.is_standby(), "it is still given work");
    pair.link.handle_disconnected(pair.now);
    assert!(pair.link.allows(part(600)), "the next attachment begins anew");
}

#[test]
fn no_share_is_named_once_the_link_drains() {
    let mut pair = Pair::with_share(part(500), SHARES);
    pair.link.start_draining();
    pair.link.set_share(Share::FULL);
    assert_eq!(pair.said(), [500]);
}

#[test]
fn a_standby_drains_like_any_other() {
    let mut pair = Pair::with_share(Share::NONE, SHARES);
    pair.link.start_draining();
    assert_eq!(pair.link.state(), LinkState::Draining);
    pair.turn();
    let last_frame = pair.peer().lane.last_frame();
    pair.peer()
        .lane
        .enqueue(Command::DrainMark(DrainMark { last_frame }), None);
    for _ in 0..3 {
        pair.turn();
        pair.link.advance_drain(true);
    }
    assert_eq!(pair.link.state(), LinkState::Finished);
    assert!(matches!(pair.received.last(), Some(Command::Done(_))));
}
