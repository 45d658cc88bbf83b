use super::*;
use crate::bench::order::Order;
use crate::bench::payload::{Payloads, RequestId};
use crate::bench::phase::Kind;
use crate::bench::report::Connections;
use crate::bench::service::Calls;
use crate::bench::verdict::{Evidence, Verdict};

const PAYLOADS: Payloads = Payloads::new(5, 100);
const DEVICES: u32 = 3;

/// A reply as a device sees it: on whose connection, to which request, with which body.
#[derive(Clone)]
struct Seen {
    at: RequestId,
    body: Vec<u8>,
}

/// Ten requests of each of three devices, answered rightly.
fn replies() -> Vec<Seen> {
    let ids = (0..10).flat_map(|number| (0..DEVICES).map(move |device| RequestId { device, number }));
    ids.map(|at| Seen {
        at,
        body: PAYLOADS.make(at).into_bytes(),
    })
    .collect()
}

fn tally() -> Tally {
    Tally::new(Duration::from_secs(1), Duration::from_secs(5))
}

fn sent(mark: u32) -> Sent {
    Sent {
        due: Duration::ZERO,
        phase: Phase::FIRST,
        mark,
    }
}

/// What the tally and the verdict say of devices that saw these replies.
fn judge(replies: &[Seen]) -> (Requests, Verdict) {
    let mut tally = tally();
    let mut orders: Vec<Order> = (0..DEVICES).map(|_| Order::default()).collect();
    for _ in 0..10 {
        for _ in 0..DEVICES {
            tally.handle_sent(&sent(0), None);
        }
    }
    for seen in replies {
        let arrival = orders[seen.at.device as usize].handle_reply(seen.at.number + 1);
        tally.handle_arrival(arrival);
        // A device gives its owner one reply to each request.
        if arrival == Arrival::Again {
            continue;
        }
        let outcome = Outcome::Reply(PAYLOADS.judge(seen.at, &seen.body));
        tally.handle_outcome(&sent(0), &outcome, (Duration::from_millis(1), Phase::FIRST));
    }
    for _ in 0..tally.unanswered() {
        tally.handle_outcome(
            &sent(0),
            &Outcome::Lost("unanswered"),
            (Duration::ZERO, Phase::FIRST),
        );
    }
    let service = Calls {
        calls: 30,
        side_effects: 30,
        ..Calls::default()
    };
    let verdict = Verdict::on(&Evidence {
        connections: &Connections::default(),
        requests: &tally.requests,
        service: &service,
        events: &[],
        max_wait: Duration::from_secs(5),
    });
    (tally.requests, verdict)
}

#[test]
fn a_faultless_history_is_clean() {
    let (requests, verdict) = judge(&replies());
    assert_eq!((requests.sent, requests.answered), (30, 30));
    assert!(verdict.clean, "{verdict:?}");
}

#[test]
fn a_dropped_reply_is_lost() {
    for place in 0..30 {
        let mut history = replies();
        history.remove(place);
        let (requests, verdict) = judge(&history);
        assert_eq!(requests.lost.total(), 1);
        assert!(!verdict.clean);
        // Unless it was its device's last, the next reply overtook it.
        assert_eq!(requests.misordered, u64::from(place < 27));
    }
}

#[test]
fn a_doubled_reply_is_told() {
    for place in 0..30 {
        let mut history = replies();
        let again = history[place].clone();
        history.push(again);
        let (requests, verdict) = judge(&history);
        assert_eq!(requests.doubled, 1);
        assert!(!verdict.clean);
    }
}

#[test]
fn swapped_replies_are_out_of_order() {
    for place in 0..27 {
        let mut history = replies();
        history.swap(place, place + 3);
        let (requests, verdict) = judge(&history);
        assert_eq!((requests.misordered, requests.lost.total()), (1, 0));
        assert!(!verdict.clean);
    }
}

#[test]
fn bodies_that_changed_places_are_wrong_or_crossed() {
    for (other, crossed, wrong) in [(3, 0, 2), (1, 2, 0)] {
        let mut history = replies();
        let body = history[0].body.clone();
        history[0].body = std::mem::replace(&mut history[other].body, body);
        let (requests, verdict) = judge(&history);
        assert_eq!((requests.crossed, requests.wrong_body), (crossed, wrong));
        assert!(!verdict.clean);
    }
}

#[test]
fn what_a_device_closed_its_connection_for_is_counted() {
    let mut tally = tally();
    let ended = [
        Error::Protocol(Violation::Duplicate { seq: 1 }),
        Error::Protocol(Violation::Reordered { seq: 1, after: 2 }),
        Error::Protocol(Violation::Unsent { seq: 9, sent: 2 }),
        Error::Protocol(Violation::Crossed {
            seq: 1,
            id: "a".into(),
            named: "b".into(),
        }),
        Error::Protocol(Violation::Unreadable("no JSON".into())),
        Error::ClosedByServer {
            code: 4006,
            reason: "backend_failed".into(),
        },
        Error::Connect("the connection broke".into()),
        Error::HeartbeatTimeout,
    ];
    ended.iter().for_each(|error| tally.handle_drop(error));
    let Requests {
        doubled,
        misordered,
        unasked,
        misnamed,
        unreadable,
        ..
    } = tally.requests;
    assert_eq!((unasked, misnamed, unreadable), (1, 1, 1));
    assert_eq!((doubled, misordered), (0, 0), "counted when they came");
    let dropped: Vec<_> = tally.dropped.iter().collect();
    let expected = [
        ("1002 by the device", 5),
        ("1006 broken", 1),
        ("4006 backend_failed", 1),
        ("heartbeat_timeout", 1),
    ];
    assert_eq!(dropped, expected);
}

#[test]
fn an_error_reply_counts_by_its_code() {
    let mut tally = tally();
    tally.handle_sent(&sent(0), None);
    let outcome = Outcome::ErrorReply("overloaded".into());
    tally.handle_outcome(&sent(0), &outcome, (Duration::ZERO, Phase::FIRST));
    assert_eq!(
        tally.requests.error_replies.iter().collect::<Vec<_>>(),
        [("overloaded", 1)]
    );
}

#[test]
fn it_is_settled_when_all_before_the_mark_is_answered() {
    let mut tally = tally();
    let right = Outcome::Reply(Body::Right);
    let now = (Duration::ZERO, Phase::FIRST);
    tally.handle_sent(&sent(0), None);
    tally.handle_sent(&sent(1), None);
    assert!(tally.is_settled(0) && !tally.is_settled(1));
    tally.handle_outcome(&sent(0), &right, now);
    assert!(tally.is_settled(1) && !tally.is_settled(2));
    assert_eq!(tally.unanswered(), 1);
}

#[test]
fn latencies_belong_to_the_event_that_a_request_met() {
    let mut tally = tally();
    let quiet = Phase::FIRST.next(Stage::Quiet);
    let during = quiet.next(Stage::During(Kind::Hang));
    let after = during.next(Stage::After(Kind::Hang));
    let right = Outcome::Reply(Body::Right);
    for (due_in, answered_in) in [(quiet, quiet), (quiet, during), (during, after), (after, after)] {
        let sent = Sent {
            phase: due_in,
            ..sent(0)
        };
        tally.handle_sent(&sent, Some(Duration::ZERO));
        tally.handle_outcome(&sent, &right, (Duration::from_millis(7), answered_in));
    }
    let stages: Vec<_> = tally
        .stages()
        .map(|(stage, found)| (stage, found.count()))
        .collect();
    let expected = [
        (Stage::Quiet, 1),
        (Stage::During(Kind::Hang), 2),
        (Stage::After(Kind::Hang), 1),
    ];
    assert_eq!(stages, expected);
    assert_eq!(tally.take_event(during).0, 2);
    assert_eq!(tally.take_event(during).0, 0, "once");
}

#[test]
fn names_that_nobody_foresaw_do_not_pile_up() {
    let mut counts = Counts::default();
    (0..1000).for_each(|n| counts.add(&format!("code-{n}")));
    assert_eq!(counts.total(), 1000);
    assert_eq!(counts.iter().count(), Counts::MAX_NAMES + 1);
}

#[test]
fn who_waits_too_long_notices_and_the_longest_wait_is_kept() {
    let mut tally = tally();
    let due = Duration::from_secs(100);
    for waited_ms in [20, 5_000, 5_001, 7_000] {
        let sent = Sent { due, ..sent(0) };
        tally.handle_sent(&sent, Some(Duration::ZERO));
        let now = (due + Duration::from_millis(waited_ms), Phase::FIRST);
        tally.handle_outcome(&sent, &Outcome::Reply(Body::Right), now);
    }
    assert_eq!(
        (tally.requests.overlong, tally.requests.longest_wait_ms),
        (2, 7_000)
    );
    assert_eq!(tally.noticed(), 2);
}

#[test]
fn pushes_and_what_was_never_sent_are_noticed() {
    let mut tally = tally();
    tally.handle_push();
    tally.handle_unsent();
    assert_eq!((tally.requests.pushed, tally.requests.lost.total()), (1, 1));
    assert_eq!((tally.requests.sent, tally.noticed()), (1, 2));
}
