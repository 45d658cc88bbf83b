//! Whether anything was noticed. Pure.

#![deny(clippy::disallowed_methods)]

use std::time::Duration;

use serde::Serialize;

use super::report::{Connections, EventReport};
use super::service::Calls;
use super::tally::Requests;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Verdict {
    /// Nothing was noticed, and every event went as it should.
    pub(crate) clean: bool,
    /// What was noticed, most important first.
    pub(crate) noticed: Vec<String>,
}

/// What a verdict rests on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Evidence<'a> {
    pub(crate) connections: &'a Connections,
    pub(crate) requests: &'a Requests,
    pub(crate) service: &'a Calls,
    pub(crate) events: &'a [EventReport],
    /// Beyond it a wait is noticed.
    pub(crate) max_wait: Duration,
}

impl Verdict {
    pub(crate) fn on(evidence: &Evidence<'_>) -> Self {
        let mut noticed = Vec::new();
        let mut count = |number: u64, what: &str| {
            if number > 0 {
                noticed.push(format!("{number} {what}"));
            }
        };
        let Evidence {
            connections,
            requests,
            service,
            events,
            max_wait,
        } = evidence;
        count(connections.dropped.total(), "connections dropped");
        count(requests.lost.total(), "requests lost");
        count(requests.doubled, "requests answered twice");
        count(requests.misordered, "replies out of order");
        count(requests.crossed, "replies that are another device's");
        count(requests.wrong_body, "replies with a wrong body");
        count(requests.unasked, "replies that nobody asked for");
        count(requests.misnamed, "replies that name another request");
        count(requests.unreadable, "replies that cannot be read");
        count(requests.pushed, "pushes that nobody sent");
        count(requests.error_replies.total(), "error replies");
        let longest = requests.longest_wait_ms as f64 / 1000.0;
        count(
            requests.overlong,
            &format!("requests that waited longer than {max_wait:?} (the longest {longest:.1} s)"),
        );
        count(
            service.again.in_graceful,
            "calls doubled at the service by a graceful event",
        );
        count(
            service.again.in_quiet,
            "calls doubled at the service without any event",
        );
        count(
            service.again.not_in_flight,
            "calls doubled at the service that were not in flight at a crash",
        );
        count(service.bad_keys, "calls under a key that is not their request's");
        let missing = requests.answered.saturating_sub(service.side_effects);
        count(missing, "requests answered without a side effect at the service");
        let surplus = service.side_effects.saturating_sub(requests.sent);
        count(surplus, "side effects beyond the requests sent");
        let ended: u64 = ended(requests);
        count(requests.sent.saturating_sub(ended), "requests unaccounted for");
        let failed = events.iter().filter(|event| !event.as_planned).count() as u64;
        count(failed, "events that did not go as planned");
        let unmet = events.iter().filter(|event| event.requests == 0).count() as u64;
        count(unmet, "events that no request met");
        if requests.sent == 0 {
            noticed.push("no requests were sent, so nothing could be noticed".into());
        }
        Self {
            clean: noticed.is_empty(),
            noticed,
        }
    }
}

/// Requests that ended in one way or another; a doubled reply is no other end.
fn ended(requests: &Requests) -> u64 {
    requests.answered
        + requests.error_replies.total()
        + requests.lost.total()
        + requests.wrong_body
        + requests.crossed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::service::Again;

    fn verdict(change: impl FnOnce(&mut Connections, &mut Requests, &mut Calls)) -> Verdict {
        let mut connections = Connections::default();
        let mut requests = Requests {
            sent: 10,
            answered: 10,
            ..Requests::default()
        };
        let mut service = Calls {
            calls: 12,
            side_effects: 10,
            again: Again {
                after_crashes: 2,
                ..Again::default()
            },
            bad_keys: 0,
        };
        change(&mut connections, &mut requests, &mut service);
        Verdict::on(&Evidence {
            connections: &connections,
            requests: &requests,
            service: &service,
            events: &[],
            max_wait: Duration::from_secs(5),
        })
    }

    #[test]
    fn calls_repeated_after_a_crash_are_no_fault() {
        assert!(verdict(|_, _, _| {}).clean);
    }

    #[test]
    fn each_fault_is_noticed_by_its_name() {
        type Change = fn(&mut Connections, &mut Requests, &mut Calls);
        let cases: [(&str, Change); 18] = [
            ("dropped", |connections, _, _| connections.dropped.add("1006")),
            ("lost", |_, requests, _| {
                requests.answered -= 1;
                requests.lost.add("disconnected");
            }),
            ("twice", |_, requests, _| requests.doubled += 1),
            ("out of order", |_, requests, _| requests.misordered += 1),
            ("another device's", |_, requests, _| {
                (requests.answered, requests.crossed) = (9, 1);
            }),
            ("wrong body", |_, requests, _| {
                (requests.answered, requests.wrong_body) = (9, 1);
            }),
            ("nobody asked", |_, requests, _| requests.unasked += 1),
            ("name another", |_, requests, _| requests.misnamed += 1),
            ("cannot be read", |_, requests, _| requests.unreadable += 1),
            ("error replies", |_, requests, _| {
                requests.answered -= 1;
                requests.error_replies.add("backend_failed");
            }),
            ("by a graceful event", |_, _, service| {
                service.again.in_graceful += 1
            }),
            ("without any event", |_, _, service| service.again.in_quiet += 1),
            ("key", |_, _, service| service.bad_keys += 1),
            ("without a side effect", |_, _, service| service.side_effects -= 1),
            ("unaccounted", |_, requests, _| requests.sent += 1),
            ("nobody sent", |_, requests, _| requests.pushed += 1),
            ("longer than 5s (the longest 7.1 s)", |_, requests, _| {
                (requests.overlong, requests.longest_wait_ms) = (1, 7_100);
            }),
            ("not in flight", |_, _, service| service.again.not_in_flight += 1),
        ];
        for (name, change) in cases {
            let found = verdict(change);
            assert!(!found.clean, "{name}");
            assert_eq!(found.noticed.len(), 1, "{name}: {:?}", found.noticed);
            assert!(found.noticed[0].contains(name), "{name}: {:?}", found.noticed);
        }
        let surplus = verdict(|_, _, service| service.side_effects += 1);
        assert_eq!(surplus.noticed, ["1 side effects beyond the requests sent"]);
    }

    #[test]
    fn a_run_without_load_is_no_pass() {
        let none = verdict(|_, requests, service| {
            (*requests, *service) = (Requests::default(), Calls::default());
        });
        assert!(
            !none.clean && none.noticed[0].contains("no requests were sent"),
            "{none:?}"
        );
        let requests = Requests {
            sent: 1,
            answered: 1,
            ..Requests::default()
        };
        let service = Calls {
            calls: 1,
            side_effects: 1,
            ..Calls::default()
        };
        let mut events = crate::bench::sample::report(true).events;
        let judged = |events: &[EventReport]| {
            Verdict::on(&Evidence {
                connections: &Connections::default(),
                requests: &requests,
                service: &service,
                events,
                max_wait: Duration::from_secs(5),
            })
        };
        assert!(judged(&events).clean);
        events[1].requests = 0;
        assert_eq!(judged(&events).noticed, ["1 events that no request met"]);
    }
}
