use super::*;
use holdfast_proto::{FrontendEpoch, FrontendId, Generation, SessionParts, ShardId, Slot};
use proptest::prelude::*;

const LINK: LinkIndex = LinkIndex::new(0);

fn session(slot: u32) -> SessionId {
    SessionId::mint(SessionParts {
        frontend: FrontendId(1),
        epoch: FrontendEpoch(1),
        shard: ShardId(0),
        slot: Slot(slot),
        generation: Generation(0),
    })
    .unwrap()
}

fn key(slot: u32, sequence: u64) -> RequestKey {
    RequestKey {
        link: LINK,
        session: session(slot),
        sequence: Sequence(sequence),
    }
}

fn answer(bytes: usize) -> Answer {
    Answer {
        binary: false,
        silent: false,
        payload: vec![0; bytes].into(),
    }
}

fn admit(sequencer: &mut Sequencer, sequence: u64, floor: u64, domain: Domain) {
    sequencer
        .admit(key(0, sequence), Sequence(floor), domain)
        .unwrap();
}

fn finish(sequencer: &mut Sequencer, sequence: u64) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    sequencer.finish(key(0, sequence), answer(1), &mut out).unwrap();
    out.iter().map(|r| (r.key.sequence.0, r.after.0)).collect()
}

#[test]
fn answers_wait_for_those_before_them() {
    let mut s = Sequencer::new(1, 1000);
    for n in 1..=3 {
        admit(&mut s, n, 1, Domain::Connection);
    }
    assert_eq!(finish(&mut s, 3), []);
    assert_eq!(finish(&mut s, 2), []);
    assert_eq!(finish(&mut s, 1), [(1, 0), (2, 1), (3, 2)]);
    assert_eq!(s.sessions(), 0, "nothing in flight, nothing remembered");
}

#[test]
fn a_predecessor_below_the_floor_is_not_named() {
    let mut s = Sequencer::new(1, 1000);
    admit(&mut s, 1, 1, Domain::Connection);
    admit(&mut s, 2, 1, Domain::Connection);
    assert_eq!(finish(&mut s, 1), [(1, 0)]);
    admit(&mut s, 3, 3, Domain::Connection);
    assert_eq!(finish(&mut s, 2), [(2, 1)]);
    assert_eq!(finish(&mut s, 3), [(3, 0)]);
}

#[test]
fn namespaces_and_unordered_requests_do_not_wait_for_others() {
    let mut s = Sequencer::new(1, 1000);
    admit(&mut s, 1, 1, Domain::Namespace("a".into()));
    admit(&mut s, 2, 1, Domain::Namespace("b".into()));
    admit(&mut s, 3, 1, Domain::Unordered);
    admit(&mut s, 4, 1, Domain::Namespace("a".into()));
    assert_eq!(finish(&mut s, 3), [(3, 0)]);
    assert_eq!(finish(&mut s, 4), []);
    assert_eq!(finish(&mut s, 2), [(2, 0)]);
    assert_eq!(finish(&mut s, 1), [(1, 0), (4, 1)]);
}

#[test]
fn a_request_in_flight_is_admitted_once() {
    let mut s = Sequencer::new(1, 1000);
    admit(&mut s, 1, 1, Domain::Connection);
    admit(&mut s, 2, 1, Domain::Unordered);
    for n in [1, 2] {
        assert_eq!(
            s.admit(key(0, n), Sequence(1), Domain::Connection),
            Err(Duplicate)
        );
    }
    finish(&mut s, 2);
    assert!(!s.is_in_flight(key(0, 2)));
    assert_eq!(finish(&mut s, 2), [], "answered once");
}

#[test]
fn a_lost_link_takes_its_requests_along() {
    let mut s = Sequencer::new(2, 10_000);
    admit(&mut s, 1, 1, Domain::Connection);
    admit(&mut s, 2, 1, Domain::Connection);
    finish(&mut s, 2);
    s.remove_link(LINK);
    assert_eq!((s.total_in_flight(), s.held_bytes()), (0, 0));
    assert_eq!(finish(&mut s, 1), []);
    assert_eq!(s.held_bytes(), 0);
}

#[test]
fn held_bytes_are_bounded_and_short_answers_always_fit() {
    let mut s = Sequencer::new(1, 18_000);
    for n in 1..=4 {
        admit(&mut s, n, 1, Domain::Connection);
    }
    let mut out = Vec::new();
    s.finish(key(0, 2), answer(9000), &mut out).unwrap();
    assert_eq!(s.finish(key(0, 3), answer(5000), &mut out), Err(answer(5000)));
    s.finish(key(0, 3), answer(ALWAYS_TAKEN_BYTES), &mut out).unwrap();
    assert!(out.is_empty());
    s.finish(key(0, 1), answer(0), &mut out).unwrap();
    assert_eq!(
        (out.len(), s.held_bytes(), s.in_flight(LINK)),
        (3, 9000 + ALWAYS_TAKEN_BYTES, 4)
    );
    for release in out {
        s.on_sent(LINK, release.answer.payload.len());
    }
    assert_eq!((s.held_bytes(), s.in_flight(LINK)), (0, 1));
}

/// Otherwise a few devices with a slow request in front of large answers would turn everybody's answers into errors.
#[test]
fn early_answers_leave_room_for_those_whose_turn_has_come() {
    const TOTAL: usize = 320_000;
    let mut s = Sequencer::new(1, TOTAL);
    let mut out = Vec::new();
    let mut refused = 0;
    for slot in 1..=20 {
        for n in 1..=32 {
            let (early, domain) = (key(slot, n), Domain::Connection);
            s.admit(early, Sequence(1), domain).unwrap();
            if n > 1 && s.finish(early, answer(15_000), &mut out).is_err() {
                refused += 1;
                s.finish(early, answer(100), &mut out).unwrap();
            }
        }
    }
    assert!(out.is_empty() && refused > 0, "all wait for a slow one");
    admit(&mut s, 1, 1, Domain::Connection);
    s.finish(key(0, 1), answer(TOTAL / 4), &mut out).unwrap();
    admit(&mut s, 2, 1, Domain::Unordered);
    s.finish(key(0, 2), answer(15_000), &mut out).unwrap();
    assert_eq!(out.len(), 2);
    for slot in 1..=20 {
        s.finish(key(slot, 1), answer(0), &mut out).unwrap();
    }
    assert_eq!(out.len(), 2 + 20 * 32);
    assert_eq!(s.early_bytes, 0);
}

#[test]
fn one_session_has_a_part_of_the_room_for_early_answers() {
    let mut s = Sequencer::new(1, 320_000);
    for (slot, n) in [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)] {
        s.admit(key(slot, n), Sequence(1), Domain::Connection).unwrap();
    }
    let mut out = Vec::new();
    s.finish(key(1, 2), answer(100_000), &mut out).unwrap();
    assert!(s.finish(key(1, 3), answer(5000), &mut out).is_err());
    s.finish(key(2, 2), answer(5000), &mut out).unwrap();
    s.remove_link(LINK);
    assert_eq!((s.held_bytes(), s.early_bytes), (0, 0));
}

#[test]
fn idle_domains_are_bounded() {
    let mut s = Sequencer::new(1, 1000);
    admit(&mut s, 1, 1, Domain::Connection);
    for n in 2..1000 {
        admit(&mut s, n, 1, Domain::Namespace(n.to_string().into()));
        finish(&mut s, n);
    }
    let state = s.links[0].sessions.values().next().unwrap();
    assert!(state.domains.len() <= MAX_IDLE_DOMAINS + 2);
}

/// The specification, slowly: everything that was ever admitted since the session was last idle.
#[derive(Default)]
struct Model {
    /// Session, sequence, domain (0 connection, 1 and 2 namespaces, 3 unordered), `after`, finished, released.
    requests: Vec<(u32, u64, u8, u64, bool, bool)>,
}

impl Model {
    fn admit(&mut self, slot: u32, sequence: u64, floor: u64, domain: u8) {
        let same = self
            .requests
            .iter()
            .rev()
            .find(|r| r.0 == slot && r.2 == domain && domain != 3);
        let after = same.map_or(0, |r| if r.1 >= floor { r.1 } else { 0 });
        self.requests.push((slot, sequence, domain, after, false, false));
    }

    fn finish(&mut self, slot: u32, sequence: u64) -> Vec<(u64, u64)> {
        let index = self
            .requests
            .iter()
            .position(|r| r.0 == slot && r.1 == sequence)
            .unwrap();
        self.requests[index].4 = true;
        let domain = self.requests[index].2;
        let mut out = Vec::new();
        for request in self.requests.iter_mut().filter(|r| r.0 == slot && r.2 == domain) {
            if domain == 3 && request.1 != sequence {
                continue;
            }
            if !request.4 {
                break;
            }
            if !request.5 {
                request.5 = true;
                out.push((request.1, request.3));
            }
        }
        if self.requests.iter().filter(|r| r.0 == slot).all(|r| r.5) {
            self.requests.retain(|r| r.0 != slot);
        }
        out
    }

    fn floor(&self, slot: u32, next: u64) -> u64 {
        self.requests
            .iter()
            .filter(|r| r.0 == slot && !r.5)
            .map(|r| r.1)
            .min()
            .unwrap_or(next)
    }
}

proptest! {
    #[test]
    fn it_does_what_the_model_does(steps in prop::collection::vec((0u32..3, 0u8..4, any::<bool>(), any::<prop::sample::Index>()), 1..200)) {
        let mut s = Sequencer::new(1, 1 << 20);
        let mut model = Model::default();
        let mut next = [1u64; 3];
        let mut open: Vec<(u32, u64)> = Vec::new();
        for (slot, domain, admit, pick) in steps {
            if admit || open.is_empty() {
                let sequence = next[slot as usize];
                next[slot as usize] += 1;
                let floor = model.floor(slot, sequence);
                let order = match domain {
                    0 => Domain::Connection,
                    3 => Domain::Unordered,
                    n => Domain::Namespace(n.to_string().into()),
                };
                s.admit(key(slot, sequence), Sequence(floor), order).unwrap();
                model.admit(slot, sequence, floor, domain);
                open.push((slot, sequence));
            } else {
                let (slot, sequence) = open.swap_remove(pick.index(open.len()));
                let mut out = Vec::new();
                s.finish(key(slot, sequence), answer(1), &mut out).unwrap();
                let got: Vec<_> = out.iter().map(|r| (r.key.sequence.0, r.after.0)).collect();
                prop_assert_eq!(got, model.finish(slot, sequence));
                for _ in out {
                    s.on_sent(LINK, 1);
                }
            }
            prop_assert!(s.total_in_flight() >= open.len());
        }
        for (slot, sequence) in open {
            let mut out = Vec::new();
            s.finish(key(slot, sequence), answer(1), &mut out).unwrap();
            out.iter().for_each(|_| s.on_sent(LINK, 1));
        }
        prop_assert_eq!((s.total_in_flight(), s.held_bytes(), s.sessions()), (0, 0, 0));
    }
}
