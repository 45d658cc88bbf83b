use super::*;
use crate::MessageKind;
use crate::secure::{Credential, MasterKey, SecureChannel, Verified};
use crate::udp::{Config, Event, Received, ResetKey};
use proptest::prelude::*;

const ATTEMPT: u64 = 77;
const CID: ConnectionId = ConnectionId(0x0100_0002_0000_0003);

const PARAMETERS: Parameters = Parameters {
    attempt: ATTEMPT,
    max_datagram: 1200,
    receive_bytes: 65_536,
    receive_messages: 32,
};

fn identity() -> Identity {
    Identity {
        key_id: "k1".into(),
        product: "speaker".into(),
        class: "home".into(),
        device: "d-1".parse().unwrap(),
        key_version: 7,
    }
}

fn device_key(n: u8) -> DeviceKey {
    MasterKey::from_bytes(&[n; 32]).unwrap().device_key(&identity())
}

/// A device that dials, on a clock of its own.
struct World {
    dial: Dial,
    start: Instant,
    server: SocketAddr,
}

impl World {
    fn new() -> Self {
        let start = Instant::now();
        let dialing = Dialing {
            identity: &identity(),
            key: &device_key(1),
            parameters: PARAMETERS,
            now_ms: Some(5),
            timeout: DIAL_TIMEOUT,
        };
        Self {
            dial: Dial::new(start, &dialing).unwrap(),
            start,
            server: "192.0.2.1:5000".parse().unwrap(),
        }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    /// The HELLO that is due, if there is one.
    fn sent(&mut self, ms: u64) -> Option<Vec<u8>> {
        let (mut out, now) = (Vec::new(), self.at(ms));
        let sent = self.dial.poll_transmit(now, &mut out);
        assert_eq!(sent, !out.is_empty());
        assert!(!self.dial.poll_transmit(now, &mut Vec::new()), "one at a time");
        sent.then_some(out)
    }

    fn receive(&mut self, ms: u64, datagram: &[u8]) -> Dialed {
        let now = self.at(ms);
        self.dial.handle_datagram(now, self.server, datagram)
    }

    fn pending(&mut self, ms: u64, datagram: &[u8]) {
        assert!(matches!(self.receive(ms, datagram), Dialed::Pending));
    }

    fn timeout(&mut self, ms: u64) -> Dialed {
        let now = self.at(ms);
        self.dial.handle_timeout(now)
    }

    fn due(&self) -> u64 {
        (self.dial.poll_timeout() - self.start).as_millis() as u64
    }

    /// The server's answer to this HELLO, under the key of master key `n`.
    fn challenge(hello: &[u8], n: u8) -> Option<Vec<u8>> {
        let Ok(Datagram::Hello(hello)) = datagram::parse(hello) else {
            panic!()
        };
        let credential = Credential::parse_datagram(&hello.parameters.encode(), hello.credential).unwrap();
        let verified = Verified::verify(SecureChannel::Udp, &credential, &device_key(n)).ok()?;
        assert_eq!(verified.timestamp_ms(), Some(5));
        let (message2, _) = verified.answer().unwrap();
        Some(challenge(ATTEMPT, &message2))
    }
}

fn challenge(attempt: u64, message2: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    datagram::encode_challenge(attempt, CID, message2.try_into().unwrap(), &mut out);
    out
}

fn retry(attempt: u64, cookie: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    datagram::encode_retry(attempt, cookie, &mut out);
    out
}

fn refused(attempt: u64, code: &str, retry_after_ms: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let refused = Refused {
        attempt,
        status: 503,
        retry_after_ms,
        retryable: true,
        code,
    };
    datagram::encode_refused(&refused, &mut out);
    out
}

fn cookie_of(hello: &[u8]) -> Vec<u8> {
    match datagram::parse(hello) {
        Ok(Datagram::Hello(hello)) => hello.cookie.to_vec(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_challenge_that_authenticates_opens_the_connection() {
    let mut world = World::new();
    let hello = world.sent(0).unwrap();
    let challenge = World::challenge(&hello, 1).unwrap();
    let Dialed::Open(connection) = world.receive(40, &challenge) else {
        panic!()
    };
    assert_eq!(
        (connection.cid(), connection.peer(), connection.side()),
        (CID, world.server, Side::Device)
    );
    assert!(World::challenge(&hello, 2).is_none(), "nobody else can answer");
}

/// From the first HELLO to a message each way, with the server's end made as a server makes it.
#[test]
fn what_was_opened_carries_messages() {
    let config = Config::default();
    let mut world = World::new();
    let hello = world.sent(0).unwrap();
    let Ok(Datagram::Hello(read)) = datagram::parse(&hello) else {
        panic!()
    };
    let parameters = read.parameters;
    let credential = Credential::parse_datagram(&parameters.encode(), read.credential).unwrap();
    let verified = Verified::verify(SecureChannel::Udp, &credential, &device_key(1)).unwrap();
    let (message2, keys) = verified.answer().unwrap();
    let here: SocketAddr = "198.51.100.7:4000".parse().unwrap();
    let token = ResetKey::from_bytes([3; 32]).token(CID);
    let opening = Opening {
        cid: CID,
        keys,
        peer: here,
        peer_max_datagram: parameters.max_datagram,
        peer_credit: PeerCredit {
            messages: parameters.receive_messages.into(),
            bytes: parameters.receive_bytes.into(),
        },
        own_credit: INITIAL_SERVER_CREDIT,
        reset_token: Some(token),
    };
    let mut server = Connection::new(Side::Server, opening, world.at(20));
    let Dialed::Open(mut device) = world.receive(40, &challenge(ATTEMPT, &message2)) else {
        panic!()
    };
    let (now, addresses) = (world.at(40), (here, world.server));
    let said = [(MessageKind::Text, "@hello {}"), (MessageKind::Binary, "\0")];
    device.send(&config, said[0].0, said[0].1.into()).unwrap();
    let expected = said.map(|(kind, text)| (kind, text.to_owned()));
    assert_eq!(pass(&mut device, &mut server, (now, addresses.0)), expected[..1]);
    server.send(&config, said[1].0, said[1].1.into()).unwrap();
    assert_eq!(pass(&mut server, &mut device, (now, addresses.1)), expected[1..]);
    assert!(!device.handle_reset(&[0; 16]));
    assert!(
        device.handle_reset(&token.0),
        "the token came with the first packet"
    );
}

/// Hands over what one end sends, and gives the messages that come out at the other.
fn pass(
    from: &mut Connection,
    to: &mut Connection,
    (now, address): (Instant, SocketAddr),
) -> Vec<(MessageKind, String)> {
    let config = Config::default();
    let mut out = Vec::new();
    while from.poll_transmit(&config, now, &mut out).is_some() {
        assert!(matches!(
            datagram::parse(&out),
            Ok(Datagram::Data { cid: CID, .. })
        ));
        assert_eq!(
            to.handle_datagram(&config, now, address, &mut out, 1),
            Received::Taken
        );
        out.clear();
    }
    let mut messages = Vec::new();
    while let Some(event) = to.poll_event(&config) {
        if let Event::Message(kind, payload) = event {
            messages.push((kind, String::from_utf8(payload.to_vec()).unwrap()));
        }
    }
    messages
}

#[test]
fn a_hello_is_repeated_unchanged_at_growing_intervals_and_then_given_up() {
    let mut world = World::new();
    let first = world.sent(0).unwrap();
    let mut times = vec![0];
    while matches!(world.timeout(world.due()), Dialed::Pending) {
        let at = world.due();
        assert_eq!(world.sent(at - 1), None);
        assert_eq!(world.sent(at).as_ref(), Some(&first));
        times.push(at);
    }
    assert_eq!(times, [0, 1_000, 3_000, 7_000]);
    assert_eq!(world.due(), 15_000);
    assert!(matches!(world.timeout(15_000), Dialed::TimedOut));
    assert_eq!(world.sent(15_000), None);
    assert_eq!(world.dial.stats().hellos, 4);
}

#[test]
fn the_answer_to_any_repetition_counts() {
    let mut world = World::new();
    let first = world.sent(0).unwrap();
    world.sent(1_000).unwrap();
    let challenge = World::challenge(&first, 1).unwrap();
    assert!(matches!(world.receive(2_500, &challenge), Dialed::Open(_)));
}

#[test]
fn a_cookie_is_sent_back_at_once_but_not_for_ever() {
    let mut world = World::new();
    assert_eq!(cookie_of(&world.sent(0).unwrap()), b"");
    world.sent(1_000).unwrap();
    for n in 1..=3u8 {
        let at = 1_000 + 100 * u64::from(n);
        world.pending(at, &retry(ATTEMPT, &[n; 20]));
        assert_eq!(world.due(), at);
        assert_eq!(cookie_of(&world.sent(at).unwrap()), [n; 20]);
    }
    // The server is there, so a lost HELLO is repeated soon, with the cookie.
    assert_eq!(world.due(), 2_300);
    world.pending(1_400, &retry(ATTEMPT, &[4; 20]));
    assert_eq!((world.sent(1_400), world.dial.stats().strays), (None, 1));
    let hello = world.sent(2_300).unwrap();
    assert_eq!(cookie_of(&hello), [3; 20]);
    let challenge = World::challenge(&hello, 1).unwrap();
    assert!(matches!(world.receive(2_400, &challenge), Dialed::Open(_)));
}

#[test]
fn retries_do_not_lengthen_an_attempt() {
    let mut world = World::new();
    world.sent(0).unwrap();
    world.pending(14_999, &retry(ATTEMPT, b"c"));
    world.sent(14_999).unwrap();
    assert_eq!(world.due(), 15_000);
    assert!(matches!(world.timeout(15_000), Dialed::TimedOut));
}

#[test]
fn forged_challenges_do_not_keep_the_right_one_out() {
    let mut world = World::new();
    let hello = world.sent(0).unwrap();
    let good = World::challenge(&hello, 1).unwrap();
    let mut changed = good.clone();
    *changed.last_mut().unwrap() ^= 1;
    for forged in [&changed, &challenge(ATTEMPT, &[0; MESSAGE_2_BYTES])] {
        world.pending(10, forged);
    }
    assert_eq!(world.dial.stats().forged, 2);
    assert!(matches!(world.receive(20, &good), Dialed::Open(_)));
}

#[test]
fn no_more_than_a_few_forged_challenges_are_computed() {
    let mut world = World::new();
    let hello = world.sent(0).unwrap();
    let good = World::challenge(&hello, 1).unwrap();
    for _ in 0..MAX_CHALLENGES {
        world.pending(10, &challenge(ATTEMPT, &[1; MESSAGE_2_BYTES]));
    }
    world.pending(20, &good);
    assert_eq!(world.dial.stats().forged, MAX_CHALLENGES + 1);
    assert!(matches!(world.timeout(15_000), Dialed::TimedOut));
}

#[test]
fn a_refusal_is_believed_when_nothing_better_came() {
    let mut world = World::new();
    world.sent(0).unwrap();
    world.pending(300, &refused(ATTEMPT, "overloaded", 1_200));
    world.pending(900, &refused(ATTEMPT, "other", 0));
    assert_eq!(world.due(), 1_000);
    assert!(matches!(world.timeout(1_000), Dialed::Pending));
    world.sent(1_000).unwrap();
    assert_eq!(world.due(), 1_300);
    assert!(matches!(world.timeout(1_299), Dialed::Pending));
    let Dialed::Refused(refusal) = world.timeout(1_300) else {
        panic!()
    };
    let expected = Refusal {
        status: 503,
        retry_after: Some(Duration::from_millis(1_200)),
        retryable: true,
        code: "overloaded".into(),
    };
    assert_eq!(refusal, expected, "the first counts");
}

#[test]
fn a_forged_refusal_does_not_keep_the_challenge_out() {
    let mut world = World::new();
    let hello = world.sent(0).unwrap();
    world.pending(1, &refused(ATTEMPT, "denied", 0));
    let challenge = World::challenge(&hello, 1).unwrap();
    assert!(matches!(world.receive(999, &challenge), Dialed::Open(_)));
}

#[test]
fn a_refusal_at_the_very_end_is_told_all_the_same() {
    let mut world = World::new();
    world.sent(0).unwrap();
    world.pending(14_900, &refused(ATTEMPT, "overloaded", 0));
    let Dialed::Refused(refusal) = world.timeout(15_000) else {
        panic!()
    };
    assert_eq!(refusal.retry_after, None);
}

#[test]
fn what_answers_another_attempt_or_nothing_is_passed_over() {
    let mut world = World::new();
    let hello = world.sent(0).unwrap();
    let mut for_another = World::challenge(&hello, 1).unwrap();
    for_another[9] ^= 1;
    let strays = [
        for_another,
        retry(ATTEMPT + 1, b"c"),
        refused(ATTEMPT + 1, "denied", 0),
        hello.clone(),
        datagram::data_header(CID, 0).repeat(3),
        vec![5; datagram::RESET_BYTES],
        b"".to_vec(),
        b"\x03".to_vec(),
    ];
    for stray in &strays {
        world.pending(10, stray);
    }
    assert_eq!(world.dial.stats().strays as usize, strays.len());
    assert_eq!((world.due(), world.sent(10)), (1_000, None));
}

#[test]
fn an_identity_that_nobody_would_take_is_not_sent() {
    let wrong = Identity {
        key_id: String::new(),
        ..identity()
    };
    let dialing = Dialing {
        identity: &wrong,
        key: &device_key(1),
        parameters: PARAMETERS,
        now_ms: None,
        timeout: DIAL_TIMEOUT,
    };
    assert!(matches!(
        Dial::new(Instant::now(), &dialing),
        Err(HandshakeError::Identity(_))
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes, an attempt ends in time and sends a bounded number of HELLOs.
    #[test]
    fn an_attempt_is_bounded(events in prop::collection::vec((0u64..400, 0u8..5, any::<u8>()), 0..80)) {
        let mut world = World::new();
        let mut now = 0;
        world.sent(now);
        let mut events = events.into_iter();
        loop {
            let due = world.due();
            prop_assert!(due <= 15_000);
            match events.next() {
                Some((pause, kind, n)) if now + pause < due => {
                    now += pause;
                    let datagram = match kind {
                        0 => retry(ATTEMPT, &[n; 20]),
                        1 => refused(ATTEMPT, "code", n.into()),
                        2 => challenge(ATTEMPT, &[n; MESSAGE_2_BYTES]),
                        3 => challenge(ATTEMPT ^ 1, &[n; MESSAGE_2_BYTES]),
                        _ => vec![n; usize::from(n)],
                    };
                    prop_assert!(matches!(world.receive(now, &datagram), Dialed::Pending));
                }
                _ => {
                    now = now.max(due);
                    if !matches!(world.timeout(now), Dialed::Pending) {
                        break;
                    }
                }
            }
            world.sent(now);
        }
        prop_assert!(world.dial.stats().hellos <= 4 + MAX_RETRIES * 4);
    }
}
