mod bounds;

use super::*;
use crate::dispatch::lifecycle::tests::{id, session};
use crate::service::FailureDetail;

const LINK: LinkIndex = LinkIndex::new(0);
const OTHER: LinkIndex = LinkIndex::new(1);

const ROUTES: &str = r#"
[[route]]
namespace = "N"
name = "*"
url = "http://h/"
timeout = "1s"
concurrency = 2
queue = 2
[[route]]
namespace = "Wide"
name = "*"
url = "http://h/"
order = "none"
[[route]]
namespace = "Quiet"
name = "*"
url = "http://h/"
one_way = true
[[route]]
namespace = "*"
name = "own"
url = "http://h/"
order = "namespace"
"#;

struct Bench {
    start: Instant,
    now: Now,
    requests: Requests,
    metrics: RequestMetrics,
    calls: Vec<(CallId, ServiceRequest)>,
    cancelled: Vec<CallId>,
    replies: Vec<frames::Reply>,
    released: usize,
}

impl Bench {
    fn new(max_in_flight: usize) -> Self {
        let start = Instant::now();
        let metrics = RequestMetrics::default();
        let settings = RequestSettings {
            links: 2,
            max_in_flight,
            max_held_bytes: 20_000,
            breaker: BreakerSettings {
                failures: 3,
                ..Default::default()
            },
        };
        let table = Arc::new(RouteTable::parse(ROUTES).unwrap());
        Self {
            start,
            now: Now {
                instant: start,
                unix_ms: 1_000_000,
            },
            requests: Requests::new(settings, table, metrics.clone()),
            metrics,
            calls: Vec::new(),
            cancelled: Vec::new(),
            replies: Vec::new(),
            released: 0,
        }
    }

    fn collect(&mut self) {
        while let Some(output) = self.requests.poll_output() {
            match output {
                RequestOutput::Call { call, request } => self.calls.push((call, *request)),
                RequestOutput::Cancel(call) => self.cancelled.push(call),
                RequestOutput::Reply { link, reply } => {
                    self.requests.on_sent(link, reply.payload.len());
                    self.replies.push(reply);
                }
                RequestOutput::Release { .. } => self.released += 1,
            }
        }
    }

    fn send(&mut self, request: frames::Request) {
        self.send_on(LINK, request);
    }

    fn send_on(&mut self, link: LinkIndex, request: frames::Request) {
        let charge = Some((Class::Requests, 100));
        let arrival = Arrival {
            request,
            binary: false,
            charge,
            at: self.now.instant,
        };
        self.requests.handle_arrival(link, arrival, self.now);
        self.collect();
    }

    fn done(&mut self, call: CallId, outcome: CallOutcome) {
        self.requests.handle_call_done(call, outcome, self.now);
        self.collect();
    }

    fn reply(&mut self, index: usize) {
        let call = self.calls[index].0;
        self.done(call, CallOutcome::Reply(Bytes::from_static(b"{}")));
    }

    fn advance(&mut self, ms: u64) {
        self.now.instant += Duration::from_millis(ms);
        self.now.unix_ms += ms;
        self.requests.handle_timeout(self.now);
        self.collect();
    }

    /// Sequence, predecessor and error code or "ok" of each reply so far.
    fn outcomes(&self) -> Vec<(u64, u64, String)> {
        let code = |reply: &frames::Reply| {
            let value: serde_json::Value = serde_json::from_slice(&reply.payload).unwrap();
            value["payload"]["code"].as_str().unwrap_or("ok").to_owned()
        };
        self.replies
            .iter()
            .map(|r| (r.sequence, r.after, code(r)))
            .collect()
    }
}

pub(crate) fn event(namespace: &str, name: &str) -> Bytes {
    format!(r#"{{"header":{{"namespace":"{namespace}","name":"{name}","id":"e"}},"payload":{{"a":1}}}}"#)
        .into()
}

pub(crate) fn request(sequence: u64, payload: Bytes) -> frames::Request {
    frames::Request {
        session: Some(session(1)),
        sequence,
        floor: 1,
        deadline_ms: 10_000,
        payload,
        ..Default::default()
    }
}

fn outcome(sequence: u64, after: u64, code: &str) -> (u64, u64, String) {
    (sequence, after, code.to_owned())
}

#[test]
fn every_answer_is_counted_with_the_time_since_the_request_arrived() {
    let mut bench = Bench::new(100);
    let upper = |ms: u64| crate::dispatch::DURATION_BOUNDS_US.partition_point(|bound| *bound < ms * 1000);
    for n in 1..=2 {
        bench.send(request(n, event("N", "n")));
    }
    bench.send(request(3, event("Nowhere", "n")));
    bench.advance(5);
    // The second is done first: its time ends here, though it waits for its order.
    bench.reply(1);
    bench.advance(300);
    bench.reply(0);
    let read = bench.metrics.durations.read();
    assert_eq!(
        (read.counts[0], read.counts[upper(5)], read.counts[upper(305)]),
        (1, 1, 1)
    );
    assert_eq!(read.sum_us, 310_000);
    assert_eq!(
        (bench.metrics.answered(), bench.metrics.errors(ErrorCode::NoRoute)),
        (3, 1)
    );
    // One that waits for a place of its route until its time is up.
    for n in 4..=6 {
        bench.send(request(n, event("N", "n")));
    }
    bench.advance(1000);
    let read = bench.metrics.durations.read();
    assert_eq!((read.counts[upper(1000)], bench.metrics.answered()), (3, 6));
}

#[test]
fn a_request_is_called_and_answered() {
    let mut bench = Bench::new(10);
    bench.send(frames::Request {
        age_ms: 400,
        attempt: 1,
        ..request(7, event("N", "n"))
    });
    let service = bench.calls[0].1.clone();
    assert_eq!(
        (
            service.namespace.as_str(),
            service.event_id.as_deref(),
            service.attempt
        ),
        ("N", Some("e"), 1)
    );
    assert_eq!(
        (&service.payload[..], service.device.as_str(), service.session),
        (&br#"{"a":1}"#[..], "device-1", id(1))
    );
    assert_eq!(
        service.received_at,
        std::time::SystemTime::UNIX_EPOCH + Duration::from_millis(999_600)
    );
    assert_eq!(bench.released, 1);
    bench.reply(0);
    let reply = &bench.replies[0];
    assert_eq!(
        (reply.sequence, reply.after, reply.r#final, reply.silent),
        (7, 0, true, false)
    );
    assert!(
        std::str::from_utf8(&reply.payload)
            .unwrap()
            .contains(r#""name":"n.Reply""#)
    );
    assert_eq!(bench.requests.in_flight(), 0);
    bench.reply(0);
    assert_eq!(bench.replies.len(), 1, "a call ends once");
}

#[test]
fn answers_keep_the_order_of_the_requests() {
    let mut bench = Bench::new(10);
    for n in 1..=2 {
        bench.send(request(n, event("N", "n")));
    }
    bench.send(request(3, Bytes::from_static(b"not json")));
    bench.send(request(4, event("Nobody", "n")));
    assert!(bench.replies.is_empty());
    bench.reply(1);
    bench.reply(0);
    let expected = [
        outcome(1, 0, "ok"),
        outcome(2, 1, "ok"),
        outcome(3, 2, "bad_request"),
        outcome(4, 3, "no_route"),
    ];
    assert_eq!(bench.outcomes(), expected);
}

#[test]
fn a_route_chooses_its_order() {
    let mut bench = Bench::new(10);
    bench.send(request(1, event("N", "n")));
    bench.send(request(2, event("Wide", "x")));
    bench.send(request(3, event("A", "own")));
    bench.send(request(4, event("B", "own")));
    bench.send(request(5, event("A", "own")));
    for index in [4, 3, 1, 2, 0] {
        bench.reply(index);
    }
    let expected = [
        outcome(4, 0, "ok"),
        outcome(2, 0, "ok"),
        outcome(3, 0, "ok"),
        outcome(5, 3, "ok"),
        outcome(1, 0, "ok"),
    ];
    assert_eq!(bench.outcomes(), expected);
}

#[test]
fn expired_and_poisonous_requests_are_not_called() {
    let mut bench = Bench::new(10);
    bench.send(frames::Request {
        age_ms: 10_000,
        ..request(1, event("N", "n"))
    });
    bench.send(frames::Request {
        attempt: 2,
        ..request(2, event("N", "n"))
    });
    assert!(bench.calls.is_empty());
    assert_eq!(
        bench.outcomes(),
        [
            outcome(1, 0, "deadline_exceeded"),
            outcome(2, 0, "backend_failed")
        ]
    );
    assert!(
        !std::str::from_utf8(&bench.replies[1].payload)
            .unwrap()
            .contains("reply_to"),
        "it was not read"
    );
    assert_eq!((bench.metrics.poison.get(), bench.metrics.replays.get()), (1, 1));
}

/// It is not read, so its namespace is not known: it takes its turn among the connection's, and no namespace waits for it.
#[test]
fn a_poisonous_request_holds_up_nobody() {
    let mut bench = Bench::new(10);
    let poison = |n| frames::Request {
        attempt: 2,
        ..request(n, event("Own", "own"))
    };
    bench.send(request(1, event("Own", "own")));
    bench.send(poison(2));
    bench.send(request(3, event("Own", "own")));
    assert_eq!(bench.outcomes(), [outcome(2, 0, "backend_failed")], "at once");
    bench.reply(1);
    bench.reply(0);
    assert_eq!(bench.outcomes()[1..], [outcome(1, 0, "ok"), outcome(3, 1, "ok")]);
    // Behind a slow request of the connection's own domain it waits, and nobody waits for it who did not wait anyway.
    bench.send(request(4, event("N", "n")));
    bench.send(poison(5));
    bench.send(request(6, event("Own", "own")));
    bench.send(request(7, event("N", "n")));
    bench.reply(3);
    bench.reply(4);
    assert_eq!(bench.outcomes()[3..], [outcome(6, 0, "ok")]);
    bench.reply(2);
    let rest = [
        outcome(4, 0, "ok"),
        outcome(5, 4, "backend_failed"),
        outcome(7, 5, "ok"),
    ];
    assert_eq!(bench.outcomes()[4..], rest);
}

#[test]
fn a_slow_call_is_cancelled_and_those_behind_it_go_on() {
    let mut bench = Bench::new(10);
    bench.send(request(1, event("N", "slow")));
    bench.send(frames::Request {
        age_ms: 9_900,
        ..request(2, event("Wide", "n"))
    });
    bench.send(request(3, event("N", "n")));
    bench.reply(2);
    assert_eq!(
        bench.requests.poll_timeout(),
        Some(bench.start + Duration::from_millis(100))
    );
    bench.advance(99);
    assert!(bench.replies.is_empty());
    bench.advance(1);
    assert_eq!(
        bench.outcomes(),
        [outcome(2, 0, "upstream_timeout")],
        "the frontend's deadline is the nearer one"
    );
    bench.advance(900);
    assert_eq!(
        bench.outcomes()[1..],
        [outcome(1, 0, "upstream_timeout"), outcome(3, 1, "ok")]
    );
    assert_eq!(bench.cancelled, [bench.calls[1].0, bench.calls[0].0]);
    bench.reply(0);
    assert_eq!(bench.replies.len(), 3, "too late");
}

#[test]
fn a_full_route_is_overloaded_and_its_queue_moves_on() {
    let mut bench = Bench::new(10);
    for n in 1..=5 {
        bench.send(request(n, event("N", "n")));
    }
    assert_eq!(
        (bench.calls.len(), bench.metrics.errors(ErrorCode::Overloaded)),
        (2, 1)
    );
    bench.reply(0);
    assert_eq!((bench.calls.len(), bench.calls[2].1.sequence), (3, Sequence(3)));
    bench.advance(1000);
    assert_eq!(bench.cancelled.len(), 2, "the waiting one was never called");
    let codes: Vec<String> = bench.outcomes().into_iter().map(|o| o.2).collect();
    assert_eq!(
        codes,
        [
            "ok",
            "upstream_timeout",
            "upstream_timeout",
            "upstream_timeout",
            "overloaded"
        ]
    );
    assert_eq!(bench.requests.in_flight(), 0);
}

#[test]
fn a_service_that_cannot_be_reached_is_left_alone() {
    let mut bench = Bench::new(10);
    for n in 1..=3 {
        bench.send(request(n, event("N", "n")));
        let call = bench.calls.last().unwrap().0;
        bench.done(call, FailureDetail::Connect.into());
    }
    bench.send(request(4, event("N", "n")));
    assert_eq!(bench.calls.len(), 3, "not called");
    assert!(bench.outcomes().iter().all(|o| o.2 == "upstream_unavailable"));
    bench.advance(2_000);
    bench.send(request(5, event("N", "n")));
    bench.reply(3);
    assert_eq!(bench.outcomes()[4], outcome(5, 0, "ok"));
}

#[test]
fn one_way_requests_are_answered_silently_whatever_happens() {
    let mut bench = Bench::new(10);
    for n in 1..=3 {
        bench.send(request(n, event("Quiet", "n")));
    }
    bench.reply(0);
    let call = bench.calls[1].0;
    bench.done(call, FailureDetail::Status(500).into());
    bench.advance(10_000);
    assert!(bench.replies.iter().all(|r| r.silent && r.payload.is_empty()) && bench.replies.len() == 3);
}

#[test]
fn a_duplicate_in_flight_is_ignored() {
    let mut bench = Bench::new(10);
    bench.send(request(1, event("N", "n")));
    bench.send(frames::Request {
        attempt: 1,
        ..request(1, event("N", "n"))
    });
    assert_eq!(
        (bench.calls.len(), bench.metrics.duplicates.get(), bench.released),
        (1, 1, 2)
    );
    bench.reply(0);
    assert_eq!(bench.replies.len(), 1);
}
