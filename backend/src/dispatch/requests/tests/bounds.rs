//! Bounds, losses, reloads, and what holds whatever happens.

use super::*;
use proptest::prelude::*;

#[test]
fn beyond_the_bound_requests_stay_on_their_credit() {
    let mut bench = Bench::new(2);
    for n in 1..=4 {
        bench.send(request(n, event("Wide", "n")));
    }
    bench.send_on(OTHER, request(1, event("Wide", "n")));
    assert_eq!((bench.calls.len(), bench.released), (2, 2));
    assert_eq!(
        bench.requests.poll_timeout(),
        Some(bench.start + Duration::from_secs(10))
    );
    bench.reply(0);
    assert!(
        bench.requests.poll_timeout().unwrap() <= bench.now.instant,
        "there is room"
    );
    bench.advance(0);
    assert_eq!((bench.calls.len(), bench.released), (3, 3));
    bench.reply(1);
    bench.advance(0);
    let links: Vec<u64> = bench.calls[2..].iter().map(|c| c.1.sequence.0).collect();
    assert_eq!(links, [1, 3], "both links get their turn");
    // Nothing ends, but what waits too long is answered and its credit returns.
    bench.now.instant += Duration::from_millis(9_999);
    bench.advance(1);
    assert_eq!(bench.released, 5);
    assert_eq!(
        bench.metrics.errors(ErrorCode::DeadlineExceeded) + bench.metrics.errors(ErrorCode::UpstreamTimeout),
        3
    );
}

/// Their answers wait behind the order of what is under way: without a bound they would be held without one.
#[test]
fn expired_requests_are_taken_up_to_a_bound_of_their_own() {
    let mut bench = Bench::new(2);
    for n in 1..=2 {
        bench.send(request(n, event("N", "n")));
    }
    for n in 3..=8 {
        bench.send(frames::Request {
            deadline_ms: 100,
            ..request(n, event("N", "n"))
        });
    }
    bench.advance(100);
    assert_eq!((bench.requests.in_flight(), bench.requests.waiting()), (4, 4));
    assert_eq!(
        bench.requests.poll_timeout(),
        Some(bench.start + Duration::from_secs(1)),
        "what cannot be taken wakes nobody"
    );
    bench.reply(0);
    bench.reply(1);
    bench.advance(0);
    assert_eq!((bench.requests.waiting(), bench.released), (0, 8));
    let codes: Vec<String> = bench.outcomes().into_iter().skip(2).map(|o| o.2).collect();
    assert_eq!(codes, vec!["deadline_exceeded"; 6]);
}

#[test]
fn a_frontend_with_slow_requests_leaves_others_their_places() {
    let mut bench = Bench::new(16);
    for n in 1..=20 {
        bench.send(request(n, event("Wide", "n")));
    }
    assert_eq!((bench.requests.in_flight(), bench.requests.waiting()), (14, 6));
    for n in 1..=3 {
        bench.send_on(OTHER, request(n, event("Wide", "n")));
    }
    bench.advance(0);
    assert_eq!((bench.requests.in_flight(), bench.requests.waiting()), (16, 7));
    // A shared place comes free: it goes to whoever has fewer, however long the others have waited.
    bench.reply(0);
    bench.reply(1);
    bench.advance(0);
    let taken: Vec<u64> = bench.calls[14..].iter().map(|c| c.1.sequence.0).collect();
    assert_eq!(taken, [1, 2, 3, 15]);
}

#[test]
fn a_lost_link_cancels_its_work_only() {
    let mut bench = Bench::new(3);
    bench.send(request(1, event("N", "n")));
    bench.send_on(OTHER, request(1, event("N", "n")));
    bench.send(request(2, event("N", "n")));
    bench.send(request(3, event("N", "n")));
    assert!(!bench.requests.is_idle(LINK));
    bench.requests.remove_link(LINK, bench.now);
    bench.collect();
    assert_eq!(bench.cancelled, [bench.calls[0].0]);
    assert!(bench.requests.is_idle(LINK) && !bench.requests.is_idle(OTHER));
    bench.reply(0);
    assert!(bench.replies.is_empty(), "nothing late is sent");
    bench.reply(1);
    assert_eq!((bench.replies.len(), bench.requests.in_flight()), (1, 0));
}

#[test]
fn replies_that_find_no_room_become_errors() {
    let mut bench = Bench::new(10);
    for n in 1..=2 {
        bench.send(request(n, event("N", "n")));
    }
    bench.send(request(3, event("Wide", "n")));
    let large = |bytes| CallOutcome::Reply(Bytes::from(format!("\"{}\"", "x".repeat(bytes))));
    let (second, third) = (bench.calls[1].0, bench.calls[2].0);
    bench.done(second, large(9_000));
    bench.done(third, large(12_000));
    bench.reply(0);
    assert_eq!(
        bench.outcomes(),
        [
            outcome(3, 0, "overloaded"),
            outcome(1, 0, "ok"),
            outcome(2, 1, "ok")
        ]
    );
}

#[test]
fn routes_are_replaced_while_calls_go_on() {
    let mut bench = Bench::new(10);
    for n in 1..=4 {
        bench.send(request(n, event("N", "n")));
    }
    let table = ROUTES
        .replace("concurrency = 2", "concurrency = 3")
        .replace("http://h/", "http://new/");
    bench
        .requests
        .handle_routes(Arc::new(RouteTable::parse(&table).unwrap()), bench.now);
    bench.collect();
    assert_eq!(
        (bench.calls.len(), bench.calls[2].1.route.url.host()),
        (3, Some("h"))
    );
    bench.requests.handle_routes(Arc::default(), bench.now);
    bench.send(request(5, event("N", "n")));
    for index in 0..3 {
        bench.reply(index);
    }
    bench.reply(3);
    assert_eq!(bench.outcomes().last(), Some(&outcome(5, 4, "no_route")));
}

#[test]
fn malformed_frames_are_dropped_and_their_credit_returns() {
    let mut bench = Bench::new(10);
    let good = request(1, event("N", "n"));
    let mut bad_device = good.clone();
    bad_device.session.as_mut().unwrap().device = "no good".into();
    let mut bad_id = good.clone();
    bad_id.session.as_mut().unwrap().id = Some(frames::SessionId { high: 1, low: 1 });
    for bad in [
        bad_device,
        bad_id,
        frames::Request {
            session: None,
            ..good.clone()
        },
        frames::Request { sequence: 0, ..good },
    ] {
        bench.send(bad);
    }
    assert_eq!(
        (
            bench.metrics.malformed.get(),
            bench.released,
            bench.calls.len(),
            bench.replies.len()
        ),
        (4, 4, 0, 0)
    );
}

#[test]
fn small_payloads_do_not_keep_their_batch() {
    let mut bench = Bench::new(10);
    let payload = event("N", "n");
    bench.send(request(1, payload.clone()));
    assert!(payload.is_unique());
}

proptest! {
    /// Whatever is sent and however calls end, each request is answered exactly once, in the order of its connection, and
    /// every credit returns.
    #[test]
    fn every_request_gets_one_answer(
        steps in prop::collection::vec((0u8..8, 1u32..4, any::<prop::sample::Index>()), 1..120),
        max_in_flight in 1usize..12,
    ) {
        let mut bench = Bench::new(max_in_flight);
        let mut next = [0u64; 4];
        let mut open: Vec<CallId> = Vec::new();
        let mut sent = 0;
        for (action, slot, pick) in steps {
            let known = bench.calls.len();
            match action {
                0..=4 => {
                    next[slot as usize] += 1;
                    sent += 1;
                    let payload = match action { 0 => Bytes::from_static(b"x"), 1 => event("None", "n"), 2 => event("Quiet", "n"), _ => event("N", "n") };
                    let attempt = u32::from(action == 4) * 2;
                    bench.send(frames::Request { session: Some(session(slot)), attempt, ..request(next[slot as usize], payload) });
                }
                5 | 6 if !open.is_empty() => {
                    let call = open.swap_remove(pick.index(open.len()));
                    let outcome = if action == 5 { CallOutcome::Empty } else { FailureDetail::Broken.into() };
                    bench.done(call, outcome);
                }
                _ => bench.advance(pick.index(700) as u64),
            }
            bench.advance(0);
            open.extend(bench.calls[known..].iter().map(|c| c.0));
        }
        bench.advance(20_000);
        while bench.requests.poll_timeout().is_some_and(|at| at <= bench.now.instant) {
            bench.advance(0);
        }
        prop_assert_eq!((bench.replies.len(), bench.released, bench.requests.in_flight()), (sent, sent, 0));
        for slot in 1..4u32 {
            let of_session: Vec<u64> = bench.replies.iter()
                .filter(|r| r.id == Some(id(slot).into())).map(|r| r.sequence).collect();
            prop_assert_eq!(of_session, (1..=next[slot as usize]).collect::<Vec<_>>());
        }
        prop_assert!(bench.requests.poll_timeout().is_none());
    }
}
