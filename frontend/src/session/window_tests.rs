use super::*;
use proptest::prelude::*;

const A: PeerId = PeerId(1);
const B: PeerId = PeerId(2);
const LIMITS: WindowLimits = WindowLimits {
    requests: 4,
    bytes: 100,
    held_bytes: 50,
};

fn window() -> Window {
    let mut window = Window::default();
    window.begin(Sequence(1));
    window
}

fn answer(text: &str) -> Answer {
    Answer {
        kind: MessageKind::Text,
        silent: false,
        payload: Bytes::copy_from_slice(text.as_bytes()),
    }
}

fn reply_to(
    window: &mut Window,
    peer: PeerId,
    sequence: Sequence,
    after: Sequence,
    answer: Answer,
) -> Result<(), ReplyError> {
    window.handle_reply(
        peer,
        FinalReply {
            sequence,
            after,
            answer,
        },
        &LIMITS,
    )
}

fn push(window: &mut Window, text: &'static str) -> Sequence {
    window.push(
        Instant::now(),
        MessageKind::Text,
        Bytes::from_static(text.as_bytes()),
    )
}

fn dispatch(window: &mut Window, peer: PeerId) -> Vec<(u64, u64, u32)> {
    let mut ticket = 0;
    let mut next = || {
        ticket += 1;
        Ticket(ticket)
    };
    std::iter::from_fn(|| window.poll_dispatch(peer, &mut next))
        .map(|d| (d.sequence.0, d.floor.0, d.attempt))
        .collect()
}

fn answers(window: &mut Window) -> Vec<u64> {
    std::iter::from_fn(|| window.poll_answer())
        .map(|(sequence, _)| sequence.0)
        .collect()
}

#[test]
fn a_request_stays_until_its_reply_is_written() {
    let mut w = window();
    let one = push(&mut w, "one");
    assert_eq!(dispatch(&mut w, A), [(1, 1, 0)]);
    reply_to(&mut w, A, one, Sequence(0), answer("1")).unwrap();
    assert_eq!(answers(&mut w), [1]);
    assert!(!w.is_empty() && w.bytes() == 0 && w.may_move());
    w.on_written(one);
    assert!(w.is_empty());
    assert_eq!(
        reply_to(&mut w, A, one, Sequence(0), answer("1")),
        Err(ReplyError::Duplicate)
    );
    assert_eq!(push(&mut w, "two"), Sequence(2));
}

#[test]
fn bounds_hold_and_one_always_fits() {
    let mut w = window();
    assert!(w.fits(1000, &LIMITS));
    push(&mut w, "1");
    assert!(!w.fits(100, &LIMITS) && w.fits(99, &LIMITS));
    for _ in 0..3 {
        push(&mut w, "x");
    }
    assert!(!w.fits(1, &LIMITS));
}

#[test]
fn an_early_reply_waits_for_its_predecessor() {
    let mut w = window();
    for text in ["1", "2", "3"] {
        push(&mut w, text);
    }
    dispatch(&mut w, A);
    reply_to(&mut w, A, Sequence(3), Sequence(2), answer("3")).unwrap();
    reply_to(&mut w, A, Sequence(2), Sequence(1), answer("2")).unwrap();
    assert_eq!(answers(&mut w), [] as [u64; 0]);
    assert!(!w.may_move());
    assert_eq!(
        reply_to(&mut w, A, Sequence(2), Sequence(1), answer("2")),
        Err(ReplyError::Duplicate)
    );
    reply_to(&mut w, A, Sequence(1), Sequence(0), answer("1")).unwrap();
    assert_eq!(answers(&mut w), [1, 2, 3]);
}

#[test]
fn held_replies_are_bounded() {
    let mut w = window();
    for text in ["1", "2"] {
        push(&mut w, text);
    }
    dispatch(&mut w, A);
    let long = answer(&"x".repeat(51));
    assert_eq!(
        reply_to(&mut w, A, Sequence(2), Sequence(1), long.clone()),
        Err(ReplyError::Full)
    );
    // One that need not wait is not held.
    reply_to(&mut w, A, Sequence(2), Sequence(0), long).unwrap();
    assert_eq!(answers(&mut w), [2]);
}

#[test]
fn another_domain_is_not_held_up() {
    let mut w = window();
    for text in ["1", "2"] {
        push(&mut w, text);
    }
    dispatch(&mut w, A);
    reply_to(&mut w, A, Sequence(2), Sequence(0), answer("2")).unwrap();
    assert_eq!(answers(&mut w), [2]);
    w.on_written(Sequence(2));
    push(&mut w, "3");
    assert_eq!(dispatch(&mut w, A), [(3, 1, 0)]);
}

#[test]
fn a_lost_backends_requests_are_asked_again_in_order() {
    let mut w = window();
    for text in ["1", "2", "3", "4"] {
        push(&mut w, text);
    }
    dispatch(&mut w, A);
    reply_to(&mut w, A, Sequence(3), Sequence(1), answer("3")).unwrap();
    reply_to(&mut w, A, Sequence(1), Sequence(0), answer("1")).unwrap();
    assert_eq!(answers(&mut w), [1, 3]);
    // Tickets up to 2 had gone out: request 4 never was with A.
    assert_eq!(w.on_lost(A, |_, ticket| ticket <= Ticket(2)), 1);
    assert!(w.may_move() && w.has_unsent());
    assert_eq!(
        reply_to(&mut w, A, Sequence(2), Sequence(0), answer("late")),
        Err(ReplyError::Unasked)
    );
    assert_eq!(dispatch(&mut w, B), [(2, 2, 1), (4, 2, 0)]);
    assert_eq!(
        reply_to(&mut w, A, Sequence(2), Sequence(0), answer("late")),
        Err(ReplyError::Unasked)
    );
    reply_to(&mut w, B, Sequence(2), Sequence(0), answer("2")).unwrap();
    assert_eq!(w.on_lost(A, |_, _| true), 0);
}

#[test]
fn a_reply_that_names_itself_or_the_future_as_predecessor_does_not_wait_for_ever() {
    let mut w = window();
    for text in ["1", "2"] {
        push(&mut w, text);
    }
    dispatch(&mut w, A);
    reply_to(&mut w, A, Sequence(1), Sequence(2), answer("1")).unwrap();
    reply_to(&mut w, A, Sequence(2), Sequence(2), answer("2")).unwrap();
    assert_eq!(answers(&mut w), [1, 2]);
    assert_eq!(
        reply_to(&mut w, A, Sequence(9), Sequence(0), answer("9")),
        Err(ReplyError::Unasked)
    );
}

proptest! {
    /// Whatever order replies come in and however often backends are lost: one answer each, in order.
    #[test]
    fn every_request_is_answered_once_and_in_order(steps in prop::collection::vec((0u8..6, any::<u8>()), 1..200)) {
        let limits = WindowLimits { requests: 8, bytes: 1 << 20, held_bytes: 1 << 20 };
        let (mut w, mut peer, mut written) = (window(), 1u32, Vec::new());
        let mut unwritten = VecDeque::new();
        let mut out: Vec<u64> = Vec::new();
        let mut pushed = 0;
        for (step, pick) in steps {
            match step {
                0 | 1 if w.fits(1, &limits) => pushed = push(&mut w, "x").0,
                2 => out.extend(dispatch(&mut w, PeerId(peer)).iter().map(|d| d.0)),
                3 | 4 if !out.is_empty() => {
                    let sequence = out.remove(pick as usize % out.len());
                    let reply = reply_to(&mut w, PeerId(peer), Sequence(sequence), Sequence(sequence - 1), answer("y"));
                    prop_assert_eq!(reply, Ok(()));
                    unwritten.extend(answers(&mut w));
                }
                5 if pick % 4 == 0 => {
                    w.on_lost(PeerId(peer), |_, _| true);
                    out.clear();
                    peer += 1;
                }
                _ => if let Some(sequence) = unwritten.pop_front() {
                    w.on_written(Sequence(sequence));
                    written.push(sequence);
                }
            }
            prop_assert!(w.len() <= 8);
        }
        while written.len() < pushed as usize {
            out.extend(dispatch(&mut w, PeerId(peer)).iter().map(|d| d.0));
            for sequence in out.drain(..).rev() {
                reply_to(&mut w, PeerId(peer), Sequence(sequence), Sequence(sequence - 1), answer("y")).unwrap();
            }
            unwritten.extend(answers(&mut w));
            for sequence in unwritten.drain(..) {
                w.on_written(Sequence(sequence));
                written.push(sequence);
            }
        }
        prop_assert_eq!(written, (1..=pushed).collect::<Vec<_>>());
        prop_assert!(w.is_empty() && w.bytes() == 0);
    }
}

impl Window {
    /// Recounts everything that is kept as a total.
    pub(crate) fn assert_consistent(&self, next: Sequence) {
        let open = |e: &&Entry| matches!(e.progress, Progress::Open);
        let held = self.entries.iter().filter_map(|e| match &e.progress {
            Progress::Held { answer, .. } => Some(answer.payload.len()),
            _ => None,
        });
        let (count, bytes) = held.fold((0, 0), |(n, b), len| (n + 1, b + len));
        assert_eq!((self.held, self.held_bytes), (count, bytes), "held");
        assert_eq!(
            self.bytes,
            self.entries.iter().map(|e| e.payload.len()).sum::<usize>(),
            "bytes"
        );
        let unsent = self
            .entries
            .iter()
            .filter(open)
            .filter(|e| e.delivery.with.is_none())
            .count();
        assert_eq!(self.unsent, unsent, "unsent");
        assert_eq!(self.out + unsent, self.entries.iter().filter(open).count(), "out");
        assert!(
            !matches!(self.entries.front(), Some(e) if matches!(e.progress, Progress::Done)),
            "what is done leaves"
        );
        if !self.entries.is_empty() {
            assert_eq!(self.before + self.entries.len() as u64 + 1, next.0, "sequence");
        }
    }
}
