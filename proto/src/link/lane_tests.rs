use super::super::codec::decode_batch;
use super::super::frames::{Hello, Reply};
use super::*;

const A: Epoch = Epoch { boot: 1, attach: 1 };
const B: Epoch = Epoch { boot: 2, attach: 1 };

fn pair(now: Instant) -> (Lane, Lane) {
    pair_with(now, Duration::ZERO)
}

fn pair_with(now: Instant, header_delay: Duration) -> (Lane, Lane) {
    let config = LaneConfig {
        grants: Grants(
            [Grant {
                messages: 4,
                bytes: 1000,
            }; 4],
        ),
        progress_timeout: Some(Duration::from_secs(5)),
        header_delay,
        ..LaneConfig::default()
    };
    (Lane::new(config, A, B, now), Lane::new(config, B, A, now))
}

fn reply(n: u64, bytes: usize) -> Command {
    Command::Reply(Reply {
        sequence: n,
        payload: vec![0; bytes].into(),
        ..Default::default()
    })
}

/// Moves everything that can go from one lane to the other.
fn carry(now: Instant, from: &mut Lane, to: &mut Lane) -> Vec<Incoming> {
    let mut out = Vec::new();
    while let Some(batch) = from
        .poll_batch(now, 0, |_, _| {})
        .or_else(|| from.poll_header(now, 0))
    {
        to.handle_batch(now, decode_batch(batch).unwrap(), &mut out)
            .unwrap();
    }
    out
}

#[test]
fn frames_wait_for_credit_and_go_on_when_it_returns() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    for n in 1..=10 {
        a.enqueue(reply(n, 10), None);
    }
    assert!(
        carry(now, &mut a, &mut b).is_empty(),
        "nothing goes before the first grant"
    );
    carry(now, &mut b, &mut a);
    let mut got = Vec::new();
    for _ in 0..3 {
        let batch = carry(now, &mut a, &mut b);
        assert!(batch.len() <= 4);
        for incoming in batch {
            b.release(incoming.charge.unwrap());
            let Command::Reply(reply) = incoming.command else {
                panic!("only replies were sent")
            };
            got.push(reply.sequence);
        }
        carry(now, &mut b, &mut a);
    }
    assert_eq!(got, (1..=10).collect::<Vec<_>>());
    assert!(a.is_flushed() && a.is_acknowledged());
    assert_eq!(a.stats().credit_stalls, 3);
}

#[test]
fn a_full_class_does_not_hold_up_the_link_itself() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    a.enqueue(reply(1, 10), None);
    a.enqueue(Command::Hello(Hello::default()), None);
    let got = carry(now, &mut a, &mut b);
    assert!(matches!(
        got.as_slice(),
        [Incoming {
            command: Command::Hello(_),
            charge: None
        }]
    ));
}

#[test]
fn origins_are_told_when_their_frame_goes() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    carry(now, &mut b, &mut a);
    for ticket in 1..=5 {
        a.enqueue(reply(ticket, 1), Some(Origin { source: 3, ticket }));
    }
    let mut sent = Vec::new();
    a.poll_batch(now, 0, |class, origin| sent.push((class, origin.ticket)));
    assert_eq!(sent, [1, 2, 3, 4].map(|t| (Class::Replies, t)));
}

#[test]
fn batches_keep_their_bounds_and_a_large_frame_goes_alone() {
    let now = Instant::now();
    let config = LaneConfig {
        grants: Grants(
            [Grant {
                messages: 500,
                bytes: 1 << 20,
            }; 4],
        ),
        ..LaneConfig::default()
    };
    let (mut a, mut b) = (Lane::new(config, A, B, now), Lane::new(config, B, A, now));
    carry(now, &mut b, &mut a);
    for n in 0..100 {
        a.enqueue(reply(n, 1), None);
    }
    a.enqueue(reply(100, 100_000), None);
    a.enqueue(reply(101, 1), None);
    let mut sizes = Vec::new();
    while let Some(batch) = a.poll_batch(now, 0, |_, _| {}) {
        sizes.push(decode_batch(batch).unwrap().1.len());
    }
    assert_eq!(sizes, [64, 36, 1, 1]);
}

#[test]
fn another_epoch_is_dropped_and_a_gap_is_fatal() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    let mut c = Lane::new(LaneConfig::default(), Epoch { boot: 1, attach: 2 }, B, now);
    let stray = decode_batch(c.poll_header(now, 0).unwrap()).unwrap();
    assert_eq!(
        b.handle_batch(now, stray, &mut Vec::new()),
        Err(LaneError::StaleEpoch)
    );
    a.enqueue(Command::Hello(Hello::default()), None);
    let first = decode_batch(a.poll_batch(now, 0, |_, _| {}).unwrap()).unwrap();
    b.handle_batch(now, first.clone(), &mut Vec::new()).unwrap();
    assert_eq!(
        b.handle_batch(now, first, &mut Vec::new()),
        Err(LaneError::Gap { expected: 2, got: 1 })
    );
}

#[test]
fn a_lost_batch_is_noticed_by_the_header_that_follows() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    a.enqueue(Command::Hello(Hello::default()), None);
    assert!(a.poll_batch(now, 0, |_, _| {}).is_some(), "it is lost");
    let later = now + Duration::from_millis(250);
    let header = decode_batch(a.poll_header(later, 0).unwrap()).unwrap();
    assert_eq!(
        b.handle_batch(later, header, &mut Vec::new()),
        Err(LaneError::Gap { expected: 1, got: 2 })
    );
}

#[test]
fn who_sends_beyond_its_credit_is_caught() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    let generous = Grants(
        [Grant {
            messages: 500,
            bytes: 1 << 20,
        }; 4],
    );
    let mut liar = Lane::new(
        LaneConfig {
            grants: generous,
            ..LaneConfig::default()
        },
        B,
        A,
        now,
    );
    carry(now, &mut liar, &mut a);
    for n in 0..5 {
        a.enqueue(reply(n, 1), None);
    }
    let batch = decode_batch(a.poll_batch(now, 0, |_, _| {}).unwrap()).unwrap();
    let error = b.handle_batch(now, batch, &mut Vec::new()).unwrap_err();
    assert_eq!(error, LaneError::CreditExceeded(Class::Replies));
    assert!(error.is_fatal());
}

#[test]
fn an_acknowledgement_of_what_was_not_sent_is_caught() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    let mut batch = decode_batch(b.poll_header(now, 0).unwrap()).unwrap();
    batch.0.acknowledged = 1;
    assert_eq!(
        a.handle_batch(now, batch, &mut Vec::new()),
        Err(LaneError::FalseAcknowledgement(1))
    );
}

#[test]
fn unacknowledged_frames_are_bounded() {
    let now = Instant::now();
    let (mut a, _) = pair(now);
    for _ in 0..MAX_UNACKNOWLEDGED + 10 {
        a.enqueue(Command::Hello(Hello::default()), None);
    }
    while a.poll_batch(now, 0, |_, _| {}).is_some() {}
    assert_eq!(a.last_frame(), MAX_UNACKNOWLEDGED);
    assert!(!a.is_flushed());
}

#[test]
fn silence_and_standstill_are_told_apart() {
    let start = Instant::now();
    let (mut a, mut b) = pair(start);
    let late = start + Duration::from_secs(1);
    assert_eq!(a.check(late - Duration::from_millis(1)), None);
    assert_eq!(a.check(late), Some(Gone::Silent));
    a.restart_clocks(late);
    assert_eq!(a.check(late), None);
    let mut now = late;
    while a.check(now).is_none() {
        now += Duration::from_millis(250);
        let header = b.poll_header(now, 7).expect("a heartbeat is due every 250 ms");
        a.handle_batch(now, decode_batch(header).unwrap(), &mut Vec::new())
            .unwrap();
        assert!(now < late + Duration::from_secs(20));
    }
    assert_eq!(a.check(now), Some(Gone::Stuck));
}

#[test]
fn a_header_alone_is_not_answered_by_another() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    carry(now, &mut a, &mut b);
    carry(now, &mut b, &mut a);
    assert!(a.poll_header(now, 0).is_none());
    assert!(b.poll_header(now, 0).is_none());
    assert!(a.poll_timeout() == now + Duration::from_millis(250));
    assert!(
        a.poll_header(now + Duration::from_millis(250), 0).is_some(),
        "a heartbeat"
    );
}

#[test]
fn what_there_is_to_tell_waits_a_little_for_frames_to_travel_with() {
    let now = Instant::now();
    let (mut a, mut b) = pair_with(now, HEADER_DELAY);
    carry(now, &mut a, &mut b);
    carry(now, &mut b, &mut a);
    b.enqueue(reply(1, 1), None);
    let charge = carry(now, &mut b, &mut a).remove(0).charge.unwrap();
    a.release(charge);
    assert!(a.poll_header(now, 0).is_none());
    assert_eq!(a.poll_timeout(), now + HEADER_DELAY);
    assert!(a.poll_header(now + HEADER_DELAY, 0).is_some());
    assert!(a.poll_header(now + HEADER_DELAY, 0).is_none());
}

#[test]
fn credit_that_runs_low_does_not_wait() {
    let now = Instant::now();
    let (mut a, mut b) = pair_with(now, HEADER_DELAY);
    carry(now, &mut a, &mut b);
    carry(now, &mut b, &mut a);
    for n in 1..=3 {
        b.enqueue(reply(n, 1), None);
    }
    for incoming in carry(now, &mut b, &mut a) {
        a.release(incoming.charge.unwrap());
    }
    assert!(a.poll_header(now, 0).is_some(), "3 of 4 are to be given back");
}
