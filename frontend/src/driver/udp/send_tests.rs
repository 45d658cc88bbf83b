//! Tests of [`super`] on real sockets of the loopback.

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::time::Duration;

use super::*;

fn receiver() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2048];
    let (n, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..n].to_vec(), from)
}

fn to(socket: &UdpSocket, from: Option<IpAddr>, bytes: u16) -> Outgoing {
    Outgoing {
        to: socket.local_addr().unwrap(),
        from,
        bytes,
    }
}

#[test]
fn one_call_reaches_many_and_each_from_the_address_it_wrote_to() {
    let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
    let (one, two) = (receiver(), receiver());
    let mut headers = Headers::default();
    let from = [None, Some([127, 0, 0, 5].into())];
    let batch = [to(&one, from[0], 3), to(&two, from[1], 2), to(&one, from[1], 1)];
    assert_eq!(headers.send(sender.as_fd(), &batch, b"abcdef", 64).unwrap(), 3);
    assert_eq!(receive(&one).0, b"abc");
    let (bytes, source) = receive(&two);
    assert_eq!((&bytes[..], source.ip()), (&b"de"[..], [127, 0, 0, 5].into()));
    let (bytes, source) = receive(&one);
    assert_eq!((&bytes[..], source.ip()), (&b"f"[..], [127, 0, 0, 5].into()));
}

#[test]
fn a_socket_of_both_families_reaches_both() {
    let sender = UdpSocket::bind("[::]:0").unwrap();
    let one = receiver();
    let IpAddr::V4(v4) = one.local_addr().unwrap().ip() else {
        panic!("it is bound to IPv4")
    };
    let mapped = Outgoing {
        to: SocketAddr::new(v4.to_ipv6_mapped().into(), one.local_addr().unwrap().port()),
        from: Some("::ffff:127.0.0.7".parse().unwrap()),
        bytes: 2,
    };
    Headers::default()
        .send(sender.as_fd(), &[mapped], b"hi", 1)
        .unwrap();
    let (bytes, source) = receive(&one);
    assert_eq!((&bytes[..], source.ip()), (&b"hi"[..], [127, 0, 0, 7].into()));
}

#[test]
fn a_row_for_one_device_is_cut_by_the_kernel() {
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (one, two) = (receiver(), receiver());
    let batch = [
        to(&one, None, 1200),
        to(&one, None, 1200),
        to(&one, None, 7),
        to(&one, None, 1200),
        to(&two, None, 1),
    ];
    let bytes: Vec<u8> = (0..3608).map(|n| n as u8).collect();
    let mut messages = [Message::NONE; MAX_MESSAGES];
    assert_eq!(group(&batch, 64, &mut messages), 3);
    assert_eq!(
        messages[..3].iter().map(|m| m.count).collect::<Vec<_>>(),
        [3, 1, 1]
    );
    let sent = Headers::default().send(sender.as_fd(), &batch, &bytes, 64);
    assert_eq!(sent.unwrap(), 5);
    let mut at = 0;
    for datagram in &batch {
        let socket = if datagram.to == one.local_addr().unwrap() {
            &one
        } else {
            &two
        };
        let length = usize::from(datagram.bytes);
        assert_eq!(receive(socket).0, &bytes[at..at + length]);
        at += length;
    }
}

#[test]
fn more_than_a_call_takes_is_left_over() {
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let receivers: Vec<_> = (0..=MAX_MESSAGES).map(|_| receiver()).collect();
    let batch: Vec<_> = receivers.iter().map(|socket| to(socket, None, 1)).collect();
    let bytes = vec![7; batch.len()];
    let sent = Headers::default()
        .send(sender.as_fd(), &batch, &bytes, 64)
        .unwrap();
    assert_eq!(sent, MAX_MESSAGES);
}

#[test]
fn without_segments_each_datagram_is_a_message() {
    let one = receiver();
    let batch = [to(&one, None, 5), to(&one, None, 5)];
    let mut messages = [Message::NONE; MAX_MESSAGES];
    assert_eq!(group(&batch, 1, &mut messages), 2);
    let long = [to(&one, None, 1472); 50];
    assert_eq!(
        group(&long, 64, &mut messages),
        2,
        "a message is at most 65507 bytes"
    );
    assert_eq!((messages[0].count, messages[1].count), (44, 6));
    assert_eq!(messages[1].begin, 44 * 1472);
}

/// What the kernel says of the first datagram is told, and the next call begins behind it.
#[test]
fn an_error_is_of_the_first() {
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let nowhere = Outgoing {
        to: "127.0.0.1:0".parse().unwrap(),
        from: None,
        bytes: 1,
    };
    let one = receiver();
    let mut headers = Headers::default();
    let batch = [to(&one, None, 1), nowhere];
    assert_eq!(headers.send(sender.as_fd(), &batch, b"ab", 64).unwrap(), 1);
    let error = headers.send(sender.as_fd(), &batch[1..], b"b", 64).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
}
