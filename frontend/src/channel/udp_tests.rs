//! Tests of [`super`]: a channel and a device's connection, without a socket.

use super::*;
use holdfast_proto::secure::{TrafficKey, TrafficKeys};
use holdfast_proto::udp::{Datagram, INITIAL_SERVER_CREDIT, parse};

const CID: ConnectionId = ConnectionId(0x0000_0005_1234_5678);

fn address(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn shared() -> UdpShared {
    let config = udp::Config::default();
    UdpShared::new(config, ResetKey::from_bytes([7; 32]), 2_000, Instant::now())
}

fn asked() -> UdpChannel {
    let parameters = Parameters {
        attempt: 9,
        max_datagram: 1200,
        receive_bytes: 65_536,
        receive_messages: 32,
    };
    UdpChannel::new(CID, parameters, address(5))
}

fn keys() -> TrafficKeys {
    let key = |byte| TrafficKey::from_bytes(&[byte; 32]).unwrap();
    TrafficKeys {
        to_server: key(1),
        to_device: key(2),
    }
}

fn challenge() -> Option<Box<Challenge>> {
    let message = Bytes::from_static(&[4; 48]);
    Some(Box::new(Challenge {
        message,
        keys: keys(),
    }))
}

fn device() -> Connection {
    Connection::new(Side::Device, device_opening(), Instant::now())
}

fn device_opening() -> Opening {
    Opening {
        cid: CID,
        keys: keys(),
        peer: address(1),
        peer_max_datagram: 1200,
        peer_credit: INITIAL_SERVER_CREDIT,
        own_credit: PeerCredit {
            messages: 32,
            bytes: 65_536,
        },
        reset_token: None,
    }
}

/// What the device has to say goes to the channel.
fn carry(device: &mut Connection, channel: &mut UdpChannel, shared: &UdpShared) -> Vec<Received> {
    let (mut out, mut told) = (Vec::new(), Vec::new());
    while device
        .poll_transmit(&shared.config, shared.now, &mut out)
        .is_some()
    {
        let datagrams = std::iter::once(&mut out[..]);
        channel.handle_datagrams(shared, address(5), datagrams, (1, |received| told.push(received)));
        out.clear();
    }
    told
}

fn says(channel: &mut UdpChannel, shared: &UdpShared) -> usize {
    let mut said = 0;
    while channel.transmit(shared, &mut Vec::new(), 8, |to, bytes| {
        assert_eq!((to, bytes > 0), (address(5), true));
        said += 1;
    }) {}
    said
}

#[test]
fn nothing_is_said_before_a_packet_was_opened() {
    let (mut shared, mut channel) = (shared(), asked());
    assert_eq!(channel.cid(), None);
    channel.accept(&mut shared, challenge()).unwrap();
    assert!(matches!(
        parse(&shared.answer).unwrap(),
        Datagram::Challenge {
            attempt: 9,
            cid: CID,
            message2: &[4, ..]
        }
    ));
    assert!(channel.accept(&mut shared, challenge()).is_err(), "once");
    assert_eq!((channel.cid(), channel.is_open()), (Some(CID), false));
    assert_eq!(says(&mut channel, &shared), 0);
    let hello = Bytes::from_static(b"@hello");
    assert!(channel.send(&mut shared, MessageKind::Text, &hello).is_err());
    let mut forged = [&[0x40][..], &CID.0.to_be_bytes(), &[0; 40]].concat();
    let mut told = Vec::new();
    let datagrams = std::iter::once(&mut forged[..]);
    channel.handle_datagrams(
        &shared,
        address(5),
        datagrams,
        (1, |received| told.push(received)),
    );
    assert_eq!((told, channel.is_proven()), (vec![Received::Forged], false));

    let mut device = device();
    device
        .send(&shared.config, MessageKind::Text, hello.clone())
        .unwrap();
    assert_eq!(carry(&mut device, &mut channel, &shared), [Received::Taken]);
    assert!(channel.is_proven() && channel.is_open());
    let events: Vec<_> = std::iter::from_fn(|| channel.poll_event(&mut shared).unwrap()).collect();
    assert_eq!(
        events,
        [
            ChannelEvent::Message(MessageKind::Text, hello),
            ChannelEvent::Alive
        ]
    );
    assert!(says(&mut channel, &shared) > 0);
}

/// The transport goes by what opened, also when there was no room for it: then there is something to say, and to wait for.
#[test]
fn a_first_packet_without_room_is_proof_too() {
    let (mut shared, mut channel) = (shared(), asked());
    channel.accept(&mut shared, challenge()).unwrap();
    let mut opening = device_opening();
    opening.peer_credit.messages = 100;
    let mut device = Connection::new(Side::Device, opening, Instant::now());
    for _ in 0..=INITIAL_SERVER_CREDIT.messages {
        device
            .send(&shared.config, MessageKind::Text, "m".into())
            .unwrap();
        let mut out = Vec::new();
        device
            .poll_transmit(&shared.config, shared.now, &mut out)
            .unwrap();
        let is_last = device.held_output_bytes() > INITIAL_SERVER_CREDIT.messages as usize * 129;
        if is_last {
            // From another address, so that it is to be challenged.
            let (mut told, datagrams) = (Vec::new(), std::iter::once(&mut out[..]));
            channel.handle_datagrams(
                &shared,
                address(6),
                datagrams,
                (1, |received| told.push(received)),
            );
            assert_eq!(told, [Received::Refused]);
        }
    }
    assert!(channel.is_proven());
    let mut asked = 0;
    while channel.transmit(&shared, &mut Vec::new(), 8, |to, _| {
        asked += u32::from(to == address(6))
    }) {}
    assert_eq!(asked, 1, "the new address is challenged");
    assert!(
        channel.poll_timeout().is_some_and(|at| at > shared.now),
        "a timer that is due would never rest"
    );
    assert_eq!(
        channel.poll_event(&mut shared).unwrap(),
        None,
        "nothing was taken"
    );
}

#[test]
fn messages_wait_while_only_notices_are_taken() {
    let (mut shared, mut channel, mut device) = (shared(), asked(), device());
    channel.accept(&mut shared, challenge()).unwrap();
    let text = Bytes::from_static(b"request");
    device
        .send(&shared.config, MessageKind::Text, text.clone())
        .unwrap();
    carry(&mut device, &mut channel, &shared);
    assert_eq!(
        channel.poll_notice(&mut shared).unwrap(),
        Some(ChannelEvent::Alive)
    );
    assert_eq!(channel.poll_notice(&mut shared).unwrap(), None);
    let event = channel.poll_event(&mut shared).unwrap();
    assert_eq!(event, Some(ChannelEvent::Message(MessageKind::Text, text)));
}

#[test]
fn a_refusal_says_what_it_can_and_ends_the_channel() {
    let (mut shared, mut channel) = (shared(), asked());
    let refusal = Refusal::overloaded(Duration::from_millis(1_200));
    channel.refuse(&mut shared, &refusal).unwrap();
    match parse(&shared.answer).unwrap() {
        Datagram::Refused(refused) => {
            assert_eq!(
                (refused.attempt, refused.status, refused.code),
                (9, 503, "overloaded")
            );
            assert_eq!((refused.retry_after_ms, refused.retryable), (1_200, true));
        }
        other => panic!("{other:?}"),
    }
    assert!(channel.is_over());
    assert!(channel.refuse(&mut shared, &refusal).is_err());
}

#[test]
fn who_proved_nothing_is_left_in_silence() {
    let (mut shared, mut channel) = (shared(), asked());
    channel.accept(&mut shared, challenge()).unwrap();
    channel.close(&mut shared, 4009, "challenge_failed").unwrap();
    assert!(channel.is_over());
    assert_eq!((says(&mut channel, &shared), channel.poll_timeout()), (0, None));
}

#[test]
fn what_is_held_is_counted_and_given_back() {
    let (mut shared, mut channel, mut device) = (shared(), asked(), device());
    channel.accept(&mut shared, challenge()).unwrap();
    device.ping();
    carry(&mut device, &mut channel, &shared);
    let payload = Bytes::from_static(&[1; 900]);
    channel.send(&mut shared, MessageKind::Binary, &payload).unwrap();
    channel.settle(&mut shared, 0);
    let output = 900 + udp::MESSAGE_COST_BYTES;
    assert_eq!(shared.held(), Held { input: 0, output });
    channel.settle(&mut shared, 300);
    let expected = Held { input: 300, output };
    assert_eq!(
        shared.held(),
        expected,
        "what its session did not take yet counts"
    );
    channel.release(&mut shared);
    assert_eq!(shared.held(), Held::default());
}

#[test]
fn what_does_not_fit_is_a_slow_consumer() {
    let (mut shared, mut channel, mut device) = (shared(), asked(), device());
    shared.config.send_messages = 2;
    channel.accept(&mut shared, challenge()).unwrap();
    device.ping();
    carry(&mut device, &mut channel, &shared);
    let payload = Bytes::from_static(b"x");
    let mut send = || channel.send(&mut shared, MessageKind::Text, &payload);
    send().unwrap();
    send().unwrap();
    let error = send().unwrap_err();
    assert_eq!(error.close_code(), holdfast_proto::CloseCode::SlowConsumer);
}

/// What was taken from the channel and could not be handed on comes before the close behind it.
#[test]
fn a_close_waits_for_who_takes_messages() {
    let (mut shared, mut channel, mut device) = (shared(), asked(), device());
    channel.accept(&mut shared, challenge()).unwrap();
    let text = Bytes::from_static(b"request");
    device
        .send(&shared.config, MessageKind::Text, text.clone())
        .unwrap();
    device.close(shared.now, 1000, "");
    carry(&mut device, &mut channel, &shared);
    let event = channel.poll_event(&mut shared).unwrap();
    assert_eq!(
        event,
        Some(ChannelEvent::Message(MessageKind::Text, text.clone()))
    );
    assert_eq!(
        channel.poll_notice(&mut shared).unwrap(),
        Some(ChannelEvent::Alive)
    );
    assert_eq!(channel.poll_notice(&mut shared).unwrap(), None);
    let error = channel.send(&mut shared, MessageKind::Text, &text).unwrap_err();
    assert!(matches!(error, ChannelError::PeerCloses));
    let closed = ChannelEvent::Closed {
        code: Some(1000),
        authentic: true,
    };
    assert_eq!(channel.poll_event(&mut shared).unwrap(), Some(closed));
}

/// Output never counts: nobody is closed, or heard less, for what others do not acknowledge.
#[test]
fn while_all_hold_too_much_input_each_has_a_share() {
    let (mut shared, [mut one, mut two]) = (shared(), [asked(), asked()]);
    assert_eq!(shared.config.input_share, usize::MAX);
    one.settle(&mut shared, 2_000);
    assert_eq!(shared.config.input_share, usize::MAX);
    two.settle(&mut shared, 1);
    assert_eq!(shared.config.input_share, SHARE_BYTES);
    two.settle(&mut shared, 2_002);
    assert_eq!(shared.config.input_share, LEAST_SHARE_BYTES);
    assert!(!shared.must_relieve());
    shared.now += INPUT_PATIENCE;
    assert!(shared.must_relieve());
    assert!(!shared.must_relieve(), "one at a time");
    one.release(&mut shared);
    assert_eq!(shared.config.input_share, SHARE_BYTES);
    two.settle(&mut shared, 0);
    shared.now += INPUT_PATIENCE;
    assert!(!shared.must_relieve());
    assert_eq!(shared.config.input_share, usize::MAX);
}
