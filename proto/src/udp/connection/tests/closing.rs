use std::time::Duration;

use super::exchange::seeds;
use super::pair::*;
use crate::MessageKind;
use crate::codes::CloseCode;
use crate::udp::packet::generated::{Close, Packet};
use crate::udp::{CLOSE_LINGER, End, Event, Received, SendError, Side};

const LOSSY: Conditions = Conditions {
    loss: 20,
    doubled: 10,
    flipped: 0,
    delay: (5, 40),
};

fn opened(seed: u64, conditions: Conditions) -> Pair {
    let mut pair = Pair::new(seed, FINE);
    pair.device.text("hello");
    pair.run(Duration::from_secs(1));
    pair.conditions = conditions;
    pair
}

fn closed(code: u16, reason: &str) -> Event {
    Event::Closed {
        code,
        reason: reason.into(),
    }
}

#[test]
fn a_close_takes_with_it_what_was_sent() {
    for side in [Side::Device, Side::Server] {
        let mut pair = opened(1, FINE);
        let now = pair.now;
        let peer = pair.peer(side);
        peer.text(vec![1; 9_000]);
        peer.text("last");
        peer.connection
            .close(now, CloseCode::GoingAway as u16, "the server goes");
        assert_eq!(
            peer.send(MessageKind::Text, "late".into()),
            Err(SendError::Closed)
        );
        pair.run(Duration::from_secs(1));
        let (us, them) = match side {
            Side::Device => (&pair.device, &pair.server),
            Side::Server => (&pair.server, &pair.device),
        };
        assert_eq!((us.ended(), us.delivered), (Some(End::ClosedByUs), us.sent));
        assert_eq!(them.received.last().unwrap().1, "last");
        let ended = [closed(1001, "the server goes"), Event::Ended(End::ClosedByPeer)];
        assert_eq!(them.events, ended);
        for peer in [us, them] {
            assert!(peer.connection.is_idle() && peer.connection.poll_timeout().is_none());
        }
    }
}

/// Whatever is lost, both ends come to an end within the linger, and who closes counts nothing as delivered that is not.
#[test]
fn a_close_ends_in_time_on_any_network() {
    seeds(200, |seed| {
        let mut pair = opened(seed, LOSSY);
        let side = if seed.is_multiple_of(2) {
            Side::Device
        } else {
            Side::Server
        };
        let now = pair.now;
        for number in 0..seed as usize % 7 {
            pair.peer(side).text(message(side, number, 2_000));
        }
        pair.peer(side).connection.close(now, 1000, "");
        if seed.is_multiple_of(5) {
            let other = if side == Side::Device {
                Side::Server
            } else {
                Side::Device
            };
            pair.peer(other).connection.close(now, 1001, "");
        }
        let done = pair.run_until(CLOSE_LINGER, |pair| pair.peer(side).ended().is_some());
        assert!(done, "it did not end");
        assert_eq!(pair.peer(side).ended(), Some(End::ClosedByUs));
        // What the peer did not hear of the close it hears as a reset, or gives up in the end.
        pair.run(Duration::from_secs(70));
        let (us, them) = match side {
            Side::Device => (&pair.device, &pair.server),
            Side::Server => (&pair.server, &pair.device),
        };
        let greeted = usize::from(side == Side::Device);
        assert!(us.delivered <= them.received.len());
        assert!(them.received.len() <= greeted + seed as usize % 7);
        assert!(us.connection.is_idle());
    });
}

#[test]
fn a_message_that_is_missing_is_waited_for_but_not_for_long() {
    let mut pair = Pair::new(1, FINE);
    let close = Close {
        code: 1000,
        reason: "bye".into(),
        messages: 2,
    };
    let packet = Packet {
        close: Some(close),
        ..Packet::default()
    };
    assert_eq!(inject(&mut pair, Side::Server, 0, packet), Received::Taken);
    assert_eq!(
        pair.server.send(MessageKind::Text, "no".into()),
        Err(SendError::Closed)
    );
    pair.network.clear();
    let began = pair.now;
    pair.conditions.loss = 100;
    assert!(pair.run_until(Duration::from_secs(9), |pair| pair.server.ended().is_some()));
    assert_eq!(pair.now - began, CLOSE_LINGER);
    assert_eq!(
        pair.server.events,
        [closed(1000, "bye"), Event::Ended(End::ClosedByPeer)]
    );
}

#[test]
fn who_takes_no_messages_hears_of_a_good_close_behind_them() {
    let mut pair = opened(1, FINE);
    pair.server.takes = false;
    pair.device.text("last");
    pair.device.connection.close(pair.now, 1000, "");
    pair.run(Duration::from_secs(9));
    assert_eq!(
        (pair.device.ended(), pair.device.delivered),
        (Some(End::ClosedByUs), 2)
    );
    assert!(pair.server.events.is_empty());
    pair.server.takes = true;
    pair.settle();
    assert_eq!(pair.server.received.last().unwrap().1, "last");
    assert_eq!(pair.server.ended(), Some(End::ClosedByPeer));
    assert!(pair.server.connection.is_idle());
}

#[test]
fn who_has_not_done_with_the_last_message_hears_of_no_good_close() {
    let mut pair = opened(1, FINE);
    pair.device.text("last");
    pair.device.connection.close(pair.now, 1000, "bye");
    let (config, mut last) = (pair.server.config.clone(), None);
    pair.server.takes = false;
    pair.run_until(Duration::from_secs(1), |pair| {
        last = pair.server.connection.poll_event(&config);
        last.is_some()
    });
    assert!(matches!(last, Some(Event::Message(_, data)) if data == "last"));
    // Long after both are over.
    pair.run(2 * CLOSE_LINGER);
    assert_eq!(
        (pair.device.ended(), pair.server.events.len()),
        (Some(End::ClosedByUs), 0)
    );
    pair.server.takes = true;
    pair.settle();
    assert_eq!(
        pair.server.events,
        [closed(1000, "bye"), Event::Ended(End::ClosedByPeer)]
    );
    assert!(pair.server.connection.is_idle());
}

#[test]
fn an_end_without_a_close_is_told_at_once_and_what_was_accepted_is_not_lost() {
    let mut pair = opened(1, FINE);
    pair.server.takes = false;
    pair.device.text("accepted");
    pair.server.text("never arrives");
    pair.conditions.loss = 0;
    pair.run_until(Duration::from_millis(5), |_| false);
    pair.run_until(Duration::from_millis(30), |pair| {
        pair.server.connection.held_input_bytes() > 0
    });
    pair.server.connection.end(End::GaveUp);
    let config = pair.server.config.clone();
    let connection = &mut pair.server.connection;
    assert!(matches!(connection.poll_event(&config), Some(Event::Message(_, data)) if data == "accepted"));
    assert_eq!(connection.poll_notice(), Some(Event::Ended(End::GaveUp)));
    assert_eq!(
        (connection.poll_event(&config), connection.is_idle()),
        (None, true)
    );
}

#[test]
fn an_abort_is_silent() {
    let mut pair = opened(1, FINE);
    pair.server.text("never sent");
    pair.server.connection.abort();
    let before = pair.server.datagrams_out;
    pair.run(Duration::from_secs(1));
    assert_eq!(
        (pair.server.ended(), pair.server.datagrams_out),
        (Some(End::ClosedByUs), before)
    );
    assert!(pair.server.connection.is_idle() && pair.device.ended().is_none());
    pair.server.connection.close(pair.now, 1000, "");
    pair.server.connection.ping();
    assert!(pair.server.connection.is_idle());
}

#[test]
fn a_long_reason_is_cut() {
    let mut pair = opened(1, FINE);
    pair.server.connection.close(pair.now, 1000, &"é".repeat(200));
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.device.events[0], closed(1000, &"é".repeat(61)));
}
