//! A device with a good key that does not keep to the transport's rules: it is closed, with the code that says why, or held to its
//! credit; others notice nothing.

use std::time::Duration;

use holdfast_tests::Over;
use holdfast_tests::datagram::{Acknowledgement, Close, Credit, Liar, Packet, Piece, data_header};
use holdfast_tests::device::event_text;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::service::Service;
use serde_json::json;

use crate::stranger::{Stranger, address};

const SESSIONS: &str = "holdfast_frontend_sessions";
const HELD: &str = "holdfast_udp_held_bytes";
const ECHO: (&str, &str) = ("Demo", "Echo");
const MIB: usize = 1 << 20;

async fn liar(gateway: &Gateway, n: usize) -> Liar {
    let identity = gateway.keys.identity(&format!("liar-{n}"));
    let key = gateway.keys.device_key(&identity);
    let mut liar = Liar::connect(gateway.udp(), address(40, n).into(), &identity, &key).await;
    liar.hello().await;
    liar
}

fn ack(largest: u64, ranges: &[u32]) -> Packet {
    let ack = Acknowledgement {
        largest,
        ranges: ranges.to_vec(),
        delay_us: 0,
    };
    Packet {
        ack: Some(ack),
        ping: true,
        ..Packet::default()
    }
}

fn pieces(pieces: Vec<Piece>) -> Packet {
    Packet::of_pieces(pieces)
}

fn binary(mut piece: Piece) -> Piece {
    piece.kind = 1;
    piece
}

/// What each says after `@hello`, which was message 0, and the code of the close that answers it.
fn lies() -> Vec<(&'static str, Packet, u32)> {
    let part = Piece::part;
    let many = (0..65).map(|_| part(1, 100, 0, b"x")).collect();
    vec![
        ("what was never sent", ack(1_000_000, &[0]), 1002),
        ("all numbers there are", ack(u64::MAX, &[0]), 1002),
        ("below the first", ack(1, &[7]), 1002),
        (
            "another length",
            pieces(vec![part(1, 100, 0, b"a"), part(1, 101, 5, b"b")]),
            1002,
        ),
        (
            "another kind",
            pieces(vec![part(1, 100, 0, b"a"), binary(part(1, 100, 5, b"b"))]),
            1002,
        ),
        (
            "an unknown kind",
            pieces(vec![Piece {
                kind: 7,
                ..part(1, 100, 0, b"a")
            }]),
            1002,
        ),
        (
            "beyond its length",
            pieces(vec![part(1, 100, 95, b"123456")]),
            1002,
        ),
        (
            "an offset beyond all",
            pieces(vec![part(1, 100, u32::MAX as usize, b"1")]),
            1002,
        ),
        ("longer than any", pieces(vec![part(1, MIB + 1, 0, b"x")]), 1009),
        (
            "as long as can be said",
            pieces(vec![part(1, u32::MAX as usize, 0, b"x")]),
            1009,
        ),
        (
            "message far ahead",
            pieces(vec![part(1_000_000, 100, 0, b"x")]),
            1002,
        ),
        (
            "the last message there is",
            pieces(vec![part(u64::MAX, 100, 0, b"x")]),
            1002,
        ),
        ("too many pieces", pieces(many), 1002),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn who_breaks_the_protocol_is_closed_with_its_code() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let mut bystander = gateway.device("bystander").await;
    for (n, (what, packet, code)) in lies().into_iter().enumerate() {
        let mut liar = liar(&gateway, n).await;
        liar.send(packet).await;
        let told = tokio::time::timeout(Duration::from_secs(20), liar.close_code()).await;
        assert_eq!(told.ok(), Some(code), "{what}");
        bystander.request(ECHO, what, &json!({})).await;
        assert_eq!(bystander.next_reply().await.reply_to, what);
    }
    let garbage: [&[u8]; 4] = [
        &[0xff; 40],
        // A wrong wire type of a known field, a length beyond the end, a field cut off.
        &[2 << 3, 5],
        &[2 << 3 | 2, 200, 1],
        &[4 << 3 | 1, 0, 0],
    ];
    for (n, plaintext) in garbage.into_iter().enumerate() {
        let mut liar = liar(&gateway, 100 + n).await;
        let mut plaintext = plaintext.to_vec();
        // Long enough that nothing is added, after which it would be something else.
        if plaintext.len() < 32 {
            plaintext.splice(0..0, [&[9 << 3 | 2, 30][..], &[0; 30]].concat());
        }
        liar.send_bytes(plaintext).await;
        let told = tokio::time::timeout(Duration::from_secs(20), liar.close_code()).await;
        assert_eq!(told.ok(), Some(1002), "garbage {n}");
    }
    gateway.frontends[0].wait_for_metric(SESSIONS, |n| n == 1.0).await;
    assert_eq!(service.problems(), Vec::<String>::new());
}

/// Legal and odd: repeated and overlapping pieces in any order, an unknown field, packets far ahead in number, and credit taken back.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_odd_and_legal_is_taken() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let mut liar = liar(&gateway, 0).await;
    let text = event_text(ECHO, "odd", &json!({"pad": "0123456789".repeat(20)}));
    let (bytes, length) = (text.as_bytes(), text.len());
    let part = |from: usize, to: usize| Piece::part(1, length, from, &bytes[from..to]);
    let half = length / 2;
    for packet in [
        pieces(vec![part(half, length), part(half, length)]),
        pieces(vec![part(half - 10, half + 10)]),
        pieces(vec![part(0, 1)]),
        // Less than before is no news.
        Packet {
            credit: Some(Credit {
                messages: 0,
                bytes: 0,
            }),
            ..pieces(vec![part(0, 20)])
        },
    ] {
        liar.send(packet).await;
    }
    liar.next_number += 1_000;
    let mut last = prost::Message::encode_to_vec(&pieces(vec![part(10, half)]));
    // Field 1000, of 3 bytes.
    last.extend_from_slice(&[0xc2, 0x3e, 3, 1, 2, 3]);
    liar.send_bytes(last).await;
    let reply = |packet: &Packet| {
        let has = |piece: &Piece| piece.data.windows(5).any(|part| part == b"\"odd\"");
        packet.pieces.iter().any(has)
    };
    liar.until("the reply", reply).await;
    assert_eq!(service.calls().len(), 1);
}

/// Messages that are begun and never finished are bounded by the credit that was given, whatever is sent.
#[tokio::test(flavor = "multi_thread")]
async fn fragments_that_never_end_cost_no_more_than_credit() {
    const LIARS: usize = 20;
    const MAX_GROWTH_BYTES: u64 = 24 << 20;
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let mut bystander = gateway.device("bystander").await;
    let mut liars = Vec::new();
    for n in 0..LIARS {
        liars.push(liar(&gateway, n).await);
    }
    let before = gateway.frontends[0].resident_bytes();
    for round in 0..200usize {
        for liar in &mut liars {
            // A byte here and a byte there of messages that do not come to their end, and all of one but its first byte.
            let far = 1 + round * 997 % (MIB - 2);
            let scattered = (0..8u64).map(|m| Piece::part(1 + m, MIB, far, b"x")).collect();
            liar.send(pieces(scattered)).await;
            let from = 1 + round * 1_000;
            liar.send(pieces(vec![Piece::part(1, MIB, from, &[7; 1_000])]))
                .await;
        }
        if round % 50 == 0 {
            bystander.request(ECHO, "x", &json!({})).await;
            bystander.next_reply().await;
        }
    }
    bystander.request(ECHO, "y", &json!({})).await;
    bystander.next_reply().await;
    let growth = gateway.frontends[0].resident_bytes().saturating_sub(before);
    assert!(growth < MAX_GROWTH_BYTES, "{growth} bytes for {LIARS} liars");
    let held = gateway.frontends[0].metric(HELD, &[]).await;
    assert!(held < (LIARS * MIB) as f64, "{held} bytes are held");
    assert_eq!(service.calls().len(), 5);
}

/// A message number that is used again, a close that lies about how many there were, and what comes after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_close_that_promises_more_than_came_ends_in_its_time() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let mut liar = liar(&gateway, 0).await;
    liar.send(Packet {
        close: Some(Close {
            code: 1000,
            reason: "bye".to_owned(),
            messages: u64::MAX,
        }),
        ..Packet::default()
    })
    .await;
    let begun = std::time::Instant::now();
    gateway.frontends[0].wait_for_metric(SESSIONS, |n| n == 0.0).await;
    println!("it ended after {:?}", begun.elapsed());
    gateway.frontends[0]
        .wait_for_metric("holdfast_udp_connections", |n| n == 0.0)
        .await;
}

/// P9: who acknowledges nothing was written nothing, and acknowledging all at once does not make us send at any rate.
#[tokio::test(flavor = "multi_thread")]
async fn who_acknowledges_nothing_is_sent_little_and_then_given_up() {
    let service = Service::start().await;
    let gateway = Gateway::builder(&service)
        .over(Over::Udp)
        .frontend_set("udp.give_up", "5s")
        .start()
        .await;
    let mut liar = liar(&gateway, 0).await;
    let big = event_text(ECHO, "big", &json!({"big": MIB / 2}));
    liar.say(&big).await;
    // A window's worth, and then fewer and fewer probes.
    let (mut came, mut packets) = (0, 0);
    while let Some(packet) = liar.receive_within(Duration::from_secs(3)).await {
        let data: usize = packet.pieces.iter().map(|piece| piece.data.len()).sum();
        came += data;
        packets += usize::from(data > 0);
        if packet.close.is_some() {
            break;
        }
    }
    assert!(
        came < 60_000,
        "{came} bytes in {packets} packets to somebody who takes none"
    );
    gateway.frontends[0].wait_for_metric(SESSIONS, |n| n == 0.0).await;
}

/// A short datagram among long ones, a HELLO in a row of packets, another connection's packet in between: each is itself.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_comes_in_a_row_is_taken_apart() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let (mut first, mut second) = (liar(&gateway, 0).await, liar(&gateway, 1).await);
    let mut stranger = Stranger::at(address(41, 0), gateway.udp()).await;
    for n in 0..50 {
        let id = format!("r{n}");
        first.say(&event_text(ECHO, &id, &json!({}))).await;
        // From the first one's address: the kernel may put them together.
        let mut odd = data_header(first.cid, first.next_number).to_vec();
        first.socket.send(&odd).await.expect("it is sent");
        odd.resize(29, 0);
        first.socket.send(&odd).await.expect("it is sent");
        let number = second.next_number;
        second.next_number += 1;
        let ping = second.seal(number, prost::Message::encode_to_vec(&Packet::ping()));
        first.socket.send(&ping).await.expect("it is sent");
        stranger.says(&odd).await;
        second.say(&event_text(ECHO, &id, &json!({}))).await;
        for liar in [&mut first, &mut second] {
            let wanted = format!("\"{id}\"");
            let reply = |packet: &Packet| {
                let text = |piece: &Piece| String::from_utf8_lossy(&piece.data).contains(&wanted);
                packet.pieces.iter().any(text)
            };
            liar.until("the reply", reply).await;
        }
    }
    assert_eq!(service.calls().len(), 100);
}

/// Authentic packets from everywhere: each place is asked once at most, none is believed, and the session stays where it is.
#[tokio::test(flavor = "multi_thread")]
async fn who_seems_to_be_everywhere_is_where_it_was() {
    const PLACES: usize = 200;
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let mut liar = liar(&gateway, 0).await;
    let (mut sent, mut heard) = (0, 0);
    for n in 0..PLACES {
        let mut place = Stranger::at(address(42, n), gateway.udp()).await;
        let number = liar.next_number;
        liar.next_number += 1;
        let ping = liar.seal(number, prost::Message::encode_to_vec(&Packet::ping()));
        place.says(&ping).await;
        place.listens(Duration::from_millis(5)).await;
        assert!(place.heard_bytes <= place.sent_bytes, "{}", place.heard_bytes);
        (sent, heard) = (sent + place.sent_bytes, heard + place.heard_bytes);
    }
    assert!(heard > 0 && heard <= sent, "{heard} bytes for {sent}");
    liar.say(&event_text(ECHO, "here", &json!({}))).await;
    let reply = |packet: &Packet| {
        let text = |piece: &Piece| String::from_utf8_lossy(&piece.data).contains("\"here\"");
        packet.pieces.iter().any(text)
    };
    liar.until("the reply", reply).await;
    let moves = gateway.frontends[0].metric("holdfast_udp_path_validations_total", &[]);
    assert_eq!(moves.await, 0.0);
}
