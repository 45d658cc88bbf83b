use std::time::Duration;

use super::exchange::seeds;
use super::pair::*;
use crate::udp::{Event, Received, Side};

/// Moves the device, with what its network still had for its old address lost.
fn move_device(pair: &mut Pair, port: u16) {
    pair.device.address.set_port(port);
}

fn opened() -> Pair {
    let mut pair = Pair::new(3, FINE);
    pair.device.text("hello");
    pair.run(Duration::from_secs(1));
    pair.tape = Some(Vec::new());
    pair
}

fn bytes(pair: &Pair, from: std::net::SocketAddr, to: std::net::SocketAddr) -> usize {
    let tape = pair.tape.as_ref().unwrap();
    tape.iter()
        .filter(|d| (d.from, d.to) == (from, to))
        .map(|d| d.bytes.len())
        .sum()
}

#[test]
fn a_device_that_moved_is_found_and_asked_first() {
    let mut pair = opened();
    let old = pair.device.address;
    move_device(&mut pair, 6_000);
    let new = pair.device.address;
    pair.device.text("still me");
    pair.run_until(Duration::from_millis(10), |pair| pair.server.received.len() == 2);
    // One push to where the device was: it is sent again when the device was found.
    pair.server.text(vec![3; 5_000]);
    pair.settle();
    assert!(bytes(&pair, pair.server.address, old) > 5_000);
    assert!(bytes(&pair, pair.server.address, new) <= bytes(&pair, new, pair.server.address));
    assert_eq!(pair.server.connection.peer(), old);
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.server.events, [Event::PeerMoved(new)]);
    assert_eq!((pair.server.delivered, pair.server.connection.peer()), (1, new));
    assert!(pair.server.connection.is_idle() && pair.device.connection.is_idle());
    assert_eq!(pair.server.connection.stats().lost, 0);
}

#[test]
fn the_round_trip_and_the_window_start_anew() {
    let mut pair = opened();
    for _ in 0..30 {
        pair.server.text(vec![3; 60_000]);
        pair.run(Duration::from_secs(1));
    }
    let before = pair.server.connection.stats();
    assert!(before.congestion_window > 20_000, "{before:?}");
    move_device(&mut pair, 6_000);
    pair.conditions.delay = (100, 100);
    pair.device.text("still me");
    let moved = pair.run_until(Duration::from_secs(1), |pair| !pair.server.events.is_empty());
    let after = pair.server.connection.stats();
    assert!(moved && after.srtt.is_none(), "{after:?}");
    assert_eq!(after.congestion_window, 12_000);
    pair.server.text("there?");
    pair.run(Duration::from_secs(2));
    assert!(pair.server.connection.stats().srtt.unwrap() >= Duration::from_millis(200));
}

/// Someone on the path sends the device's datagrams on from elsewhere: nothing but a challenge goes there, and never more than came.
#[test]
fn who_only_sends_datagrams_on_gets_nothing_but_challenges() {
    let mut pair = opened();
    let thief = address("203.0.113.66:66");
    let (server, device) = (pair.server.address, pair.device.address);
    for number in 0..10 {
        pair.device.text(message(Side::Device, number, 20));
        pair.settle();
        // It takes the device's datagram away and sends it itself.
        let taken: Vec<_> = pair.network.extract_if(.., |d| d.to == server).collect();
        for datagram in taken {
            let stolen = Datagram {
                from: thief,
                ..datagram
            };
            pair.tape.as_mut().unwrap().push(stolen.clone());
            assert_eq!(pair.deliver(stolen), Some(Received::Taken));
            pair.settle();
            assert!(bytes(&pair, server, thief) <= bytes(&pair, thief, server));
        }
        pair.server.text(vec![9; 4_000]);
        pair.run(Duration::from_millis(300));
        assert!(bytes(&pair, server, thief) <= bytes(&pair, thief, server));
    }
    pair.run(Duration::from_secs(20));
    assert!(bytes(&pair, server, thief) > 0);
    let challenges = pair.tape.as_ref().unwrap().iter().filter(|d| d.to == thief);
    assert!(challenges.clone().all(|d| d.bytes.len() == 38));
    assert_eq!(pair.server.connection.peer(), device);
    assert_eq!((pair.server.delivered, pair.server.events.len()), (10, 0));
    assert!(pair.server.connection.is_idle());
}

#[test]
fn an_answer_counts_from_where_it_was_asked_and_only_with_its_token() {
    use crate::udp::packet::generated::Packet;
    let mut pair = opened();
    let elsewhere = address("203.0.113.66:66");
    let mut number = 1_000;
    let mut put = |pair: &mut Pair, from, packet: Packet| {
        use prost::Message;
        number += 1;
        let datagram = Datagram {
            from,
            ..forge(pair, Side::Server, number, &packet.encode_to_vec())
        };
        assert_eq!(pair.deliver(datagram), Some(Received::Taken));
    };
    let ping = Packet {
        ping: true,
        padding: vec![0; 20].into(),
        ..Packet::default()
    };
    put(&mut pair, elsewhere, ping);
    let token = pair
        .server
        .connection
        .busy
        .as_ref()
        .unwrap()
        .candidate
        .as_ref()
        .unwrap()
        .token();
    let answer = |path_response| Packet {
        path_response,
        ..Packet::default()
    };
    let home = pair.device.address;
    put(&mut pair, home, answer(token));
    put(&mut pair, elsewhere, answer(token ^ 1));
    assert_eq!(pair.server.connection.peer(), home);
    put(&mut pair, elsewhere, answer(token));
    assert_eq!(pair.server.connection.peer(), elsewhere);
}

/// A device whose address changes all the time, on a bad network.
#[test]
fn messages_come_through_while_the_device_moves() {
    seeds(100, |seed| {
        let conditions = Conditions {
            loss: seed % 3 * 10,
            doubled: 5,
            flipped: 1,
            delay: (5, 25),
        };
        let mut pair = Pair::new(seed, conditions);
        let count = 30;
        let mut numbers = [0, 0];
        let mut next_move = pair.now + Duration::from_secs(2);
        let mut port = 5_000;
        let done = pair.run_until(Duration::from_secs(3_000), |pair| {
            if pair.now >= next_move {
                port += 1;
                move_device(pair, port);
                next_move = pair.now + Duration::from_millis(300 + pair.random.below(3_000));
            }
            for (index, side) in [Side::Device, Side::Server].into_iter().enumerate() {
                if numbers[index] < count && pair.random.percent(30) {
                    pair.peer(side).text(message(side, numbers[index], 700));
                    numbers[index] += 1;
                }
            }
            pair.device.delivered == count && pair.server.delivered == count
        });
        let delivered = (pair.device.delivered, pair.server.delivered);
        assert!(
            done,
            "{delivered:?} {:?} {:?}",
            pair.device.events.last(),
            pair.server.events.last()
        );
        assert!((0..count).all(|n| pair.server.received[n].1 == message(Side::Device, n, 700)));
        assert!((0..count).all(|n| pair.device.received[n].1 == message(Side::Server, n, 700)));
    });
}
