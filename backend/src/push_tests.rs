use super::*;
use proptest::prelude::*;
use std::time::Duration;

const A: LinkIndex = LinkIndex::new(0);
const B: LinkIndex = LinkIndex::new(1);

fn device() -> DeviceId {
    "lamp-1".parse().unwrap()
}

fn asked(links: &[LinkIndex], missing: usize) -> Asked {
    Asked {
        links: links.to_vec(),
        missing,
    }
}

fn begin(tracker: &mut Tracker, question: Question, asked: Asked, now: Instant) -> u64 {
    tracker
        .begin(Ticket(9), question, asked, now + Duration::from_secs(5))
        .unwrap()
        .0
}

fn push_device(tracker: &mut Tracker, asked: Asked, now: Instant) -> u64 {
    begin(tracker, Question::Push(PushTarget::Device(device())), asked, now)
}

fn result(number: u64, status: FrameStatus) -> frames::PushResult {
    frames::PushResult {
        number,
        status: status as i32,
        reason: "because".into(),
        ..Default::default()
    }
}

fn status(tracker: &mut Tracker) -> Option<PushStatus> {
    match tracker.poll_done() {
        Some((Ticket(9), Outcome::Push(_, outcome))) => Some(outcome.status),
        None => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_written_decides_and_all_offline_is_offline() {
    let now = Instant::now();
    for (answers, expected) in [
        ([FrameStatus::Offline, FrameStatus::Written], PushStatus::Written),
        ([FrameStatus::Written, FrameStatus::Dropped], PushStatus::Written),
        ([FrameStatus::Dropped, FrameStatus::Offline], PushStatus::Dropped),
        ([FrameStatus::Offline, FrameStatus::Offline], PushStatus::Offline),
        (
            [FrameStatus::Unconfirmed, FrameStatus::Written],
            PushStatus::Written,
        ),
        (
            [FrameStatus::Dropped, FrameStatus::Unconfirmed],
            PushStatus::Unconfirmed,
        ),
        (
            [FrameStatus::Unconfirmed, FrameStatus::Offline],
            PushStatus::Unconfirmed,
        ),
        (
            [FrameStatus::Offline, FrameStatus::Unspecified],
            PushStatus::Unconfirmed,
        ),
    ] {
        let mut tracker = Tracker::default();
        let n = push_device(&mut tracker, asked(&[A, B], 0), now);
        assert!(tracker.handle_push_result(A, result(n, answers[0])));
        assert_eq!(status(&mut tracker), None);
        assert!(
            !tracker.handle_push_result(A, result(n, answers[0])),
            "each frontend answers once"
        );
        assert!(tracker.handle_push_result(B, result(n, answers[1])));
        assert_eq!(status(&mut tracker), Some(expected));
        assert_eq!((tracker.outstanding(), tracker.poll_timeout()), (0, None));
    }
}

#[test]
fn what_was_not_asked_or_not_answered_is_unconfirmed() {
    let now = Instant::now();
    let mut tracker = Tracker::default();
    push_device(&mut tracker, asked(&[], 2), now);
    assert_eq!(status(&mut tracker), Some(PushStatus::Unconfirmed));

    let n = push_device(&mut tracker, asked(&[A], 1), now);
    tracker.handle_push_result(A, result(n, FrameStatus::Offline));
    assert_eq!(status(&mut tracker), Some(PushStatus::Unconfirmed));

    let n = push_device(&mut tracker, asked(&[A], 1), now);
    tracker.handle_push_result(A, result(n, FrameStatus::Written));
    assert_eq!(status(&mut tracker), Some(PushStatus::Written));

    push_device(&mut tracker, asked(&[A, B], 0), now);
    tracker.handle_link_lost(A);
    assert_eq!(status(&mut tracker), None);
    tracker.handle_timeout(now + Duration::from_secs(4));
    assert_eq!(status(&mut tracker), None);
    tracker.handle_timeout(tracker.poll_timeout().unwrap());
    assert_eq!(status(&mut tracker), Some(PushStatus::Unconfirmed));
}

#[test]
fn a_push_to_all_adds_up() {
    let now = Instant::now();
    let mut tracker = Tracker::default();
    let n = begin(
        &mut tracker,
        Question::Push(PushTarget::All),
        asked(&[A, B], 1),
        now,
    );
    tracker.handle_push_result(
        A,
        frames::PushResult {
            number: n,
            written: 7,
            dropped: 1,
            ..Default::default()
        },
    );
    tracker.handle_push_result(
        B,
        frames::PushResult {
            number: n,
            written: 5,
            unconfirmed: 2,
            ..Default::default()
        },
    );
    let counts = PushCounts {
        written: 12,
        dropped: 1,
        unconfirmed: 2,
        frontends_unconfirmed: 1,
    };
    assert_eq!(tracker.poll_done(), Some((Ticket(9), Outcome::All(counts))));
}

#[test]
fn presence_lists_sessions_and_says_whether_all_answered() {
    let now = Instant::now();
    let mut tracker = Tracker::default();
    let n = begin(&mut tracker, Question::Presence(device()), asked(&[A, B], 0), now);
    let sessions = vec![
        SessionInfo {
            since_ms: 3,
            ..Default::default()
        };
        2 * MAX_LISTED_SESSIONS
    ];
    assert!(tracker.handle_query_result(
        A,
        QueryResult {
            number: n,
            sessions,
            closed: 0
        }
    ));
    tracker.handle_timeout(now + Duration::from_secs(5));
    let Some((_, Outcome::Presence(_, presence))) = tracker.poll_done() else {
        panic!("it ended")
    };
    assert_eq!(
        (presence.sessions.len(), presence.complete),
        (MAX_LISTED_SESSIONS, false)
    );
}

#[test]
fn closes_add_up() {
    let now = Instant::now();
    let mut tracker = Tracker::default();
    let n = begin(&mut tracker, Question::Close, asked(&[A, B], 0), now);
    tracker.handle_query_result(
        A,
        QueryResult {
            number: n,
            closed: 2,
            ..Default::default()
        },
    );
    tracker.handle_query_result(
        B,
        QueryResult {
            number: n,
            closed: 1,
            ..Default::default()
        },
    );
    assert_eq!(
        tracker.poll_done(),
        Some((
            Ticket(9),
            Outcome::Closed {
                sessions: 3,
                complete: true
            }
        ))
    );
}

#[test]
fn an_answer_of_the_wrong_kind_counts_as_none() {
    let now = Instant::now();
    let mut tracker = Tracker::default();
    let n = push_device(&mut tracker, asked(&[A], 0), now);
    tracker.handle_query_result(
        A,
        QueryResult {
            number: n,
            ..Default::default()
        },
    );
    assert_eq!(status(&mut tracker), Some(PushStatus::Unconfirmed));
    assert!(!tracker.handle_push_result(A, result(n + 1, FrameStatus::Written)));
}

#[test]
fn operations_are_bounded() {
    let now = Instant::now();
    let mut tracker = Tracker::default();
    for _ in 0..MAX_OUTSTANDING {
        begin(&mut tracker, Question::Close, asked(&[A], 0), now);
    }
    assert_eq!(
        tracker.begin(Ticket(1), Question::Close, asked(&[A], 0), now),
        Err(Question::Close)
    );
}

proptest! {
    /// Whatever comes in whatever order, each operation ends exactly once, and `written` is only said when a frontend said so.
    #[test]
    fn each_operation_ends_once(steps in prop::collection::vec((0u8..6, 0usize..2, 0u64..20, 0i32..5), 1..150)) {
        let start = Instant::now();
        let mut tracker = Tracker::default();
        let (mut begun, mut written) = (Vec::new(), std::collections::HashSet::new());
        for (step, (action, link, number, status)) in steps.into_iter().enumerate() {
            let link = LinkIndex::new(link);
            match action {
                0 | 1 => {
                    let ticket = Ticket(begun.len() as u64 + 1);
                    let question = Question::Push(PushTarget::Device(device()));
                    tracker.begin(ticket, question, asked(&[A, B], 0), start + Duration::from_secs(step as u64)).unwrap();
                    begun.push(ticket);
                }
                2 | 3 => {
                    let result = frames::PushResult { number, status, ..Default::default() };
                    if tracker.handle_push_result(link, result) && status == FrameStatus::Written as i32 {
                        written.insert(Ticket(number));
                    }
                }
                4 => tracker.handle_link_lost(link),
                _ => tracker.handle_timeout(start + Duration::from_secs(number)),
            }
        }
        tracker.handle_timeout(start + Duration::from_secs(1000));
        let mut ended = Vec::new();
        while let Some((ticket, Outcome::Push(_, outcome))) = tracker.poll_done() {
            prop_assert_eq!(outcome.status == PushStatus::Written, written.contains(&ticket));
            ended.push(ticket);
        }
        ended.sort();
        prop_assert_eq!(ended, begun);
        prop_assert_eq!(tracker.outstanding(), 0);
    }
}
