//! What is inside of DATA: packets as they are read and written, sealed and opened.

use super::*;
use crate::MessageKind;
use crate::secure::TrafficKey;
use crate::udp::packet::{
    Close, Packet, Piece, Ranges, push_ack, push_challenge, push_close, push_credit, push_padding,
    push_piece, push_ping, push_reset_token, push_response,
};
use crate::udp::protect::{Expanded, OpenError, Opener, Sealer, recover};

fn maybe(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or(0)
}

fn key(value: &Value, field: &str) -> TrafficKey {
    TrafficKey::from_bytes(&bytes(value, field)).unwrap()
}

fn pieces(fields: &Value) -> Vec<(Value, Vec<u8>)> {
    let pieces = fields["pieces"].as_array().cloned().unwrap_or_default();
    let data = |piece: &Value| unhex(piece["data"].as_str().unwrap_or_default());
    pieces
        .into_iter()
        .map(|piece| (piece.clone(), data(&piece)))
        .collect()
}

fn piece<'a>(fields: &Value, data: &'a [u8]) -> Piece<'a> {
    let whole = fields.get("length").is_none();
    Piece {
        message: maybe(fields, "message"),
        kind: [MessageKind::Text, MessageKind::Binary][maybe(fields, "kind") as usize],
        length: if whole {
            data.len() as u32
        } else {
            maybe(fields, "length") as u32
        },
        offset: maybe(fields, "offset") as u32,
        data,
    }
}

fn close(fields: &Value) -> Option<Close<'_>> {
    fields.get("close").map(|close| Close {
        code: maybe(close, "code") as u16,
        reason: close["reason"].as_str().unwrap_or_default(),
        messages: maybe(close, "messages"),
    })
}

fn credit(fields: &Value) -> Option<PeerCredit> {
    fields.get("credit").map(|credit| PeerCredit {
        messages: maybe(credit, "messages"),
        bytes: maybe(credit, "bytes"),
    })
}

fn token(fields: &Value) -> Option<ResetToken> {
    let token = fields["reset_token"].as_str()?;
    Some(ResetToken(unhex(token).try_into().unwrap()))
}

#[test]
fn packets_are_read() {
    for vector in list(&load(), "packets") {
        let (fields, plain) = (&vector["fields"], bytes(vector, "packet"));
        let read = Packet::decode(&plain).unwrap();
        assert_eq!(read.credit, credit(fields), "{vector}");
        assert_eq!(read.path_challenge, fields["path_challenge"].as_u64());
        assert_eq!(read.path_response, fields["path_response"].as_u64());
        assert_eq!(read.ping, fields["ping"] == true);
        assert_eq!(read.close, close(fields));
        assert_eq!(read.reset_token, token(fields));
        let expected = pieces(fields);
        let expected = expected.iter().map(|(fields, data)| piece(fields, data));
        assert!(read.pieces().eq(expected), "{vector}");
        let ack = read.ack.map(|ack| (ack.largest, u64::from(ack.delay_us)));
        let said = fields
            .get("ack")
            .map(|ack| (maybe(ack, "largest"), maybe(ack, "delay_us")));
        assert_eq!(ack, said);
    }
    for vector in list(&load(), "rejected_packets") {
        let plain = bytes(vector, "packet");
        assert!(Packet::decode(&plain).is_err(), "{vector}");
    }
}

/// Those that this code would write so: in the order of the fields, with the ranges of an acknowledgement always said.
#[test]
fn packets_are_written() {
    let vectors = load();
    let mut written = 0;
    for vector in list(&vectors, "packets") {
        let fields = &vector["fields"];
        let says_ranges = fields.get("ack").is_none_or(|ack| ack.get("ranges").is_some());
        if !says_ranges || ["unknown fields", "another order of fields"].contains(&text(vector, "about")) {
            continue;
        }
        assert_eq!(hex(&write(fields)), text(vector, "packet"));
        written += 1;
    }
    assert!(written >= 8, "{written}");
}

fn write(fields: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some(ack) = fields.get("ack") {
        let mut numbers = ack["ranges"].as_array().unwrap().iter();
        let mut next = || numbers.next().map(|n| n.as_u64().unwrap() as u32 + 1);
        let mut ranges = Ranges::default();
        assert!(ranges.push(0, next().unwrap()));
        while let (Some(gap), Some(run)) = (next(), next()) {
            assert!(ranges.push(gap, run));
        }
        push_ack(
            &mut out,
            maybe(ack, "largest"),
            maybe(ack, "delay_us") as u32,
            &ranges,
        );
    }
    for (fields, data) in pieces(fields) {
        push_piece(&mut out, &piece(&fields, &data));
    }
    credit(fields).inspect(|credit| push_credit(&mut out, *credit));
    fields["path_challenge"]
        .as_u64()
        .inspect(|token| push_challenge(&mut out, *token));
    fields["path_response"]
        .as_u64()
        .inspect(|token| push_response(&mut out, *token));
    if fields["ping"] == true {
        push_ping(&mut out);
    }
    close(fields).inspect(|close| push_close(&mut out, close));
    token(fields).inspect(|token| push_reset_token(&mut out, token));
    fields["padding"]
        .as_u64()
        .inspect(|zeros| push_padding(&mut out, *zeros as usize + 2));
    out
}

#[test]
fn datagrams_are_sealed_and_opened() {
    for vector in list(&load(), "data") {
        let (at, plain) = (number(vector, "number"), bytes(vector, "packet"));
        let mut sealer = Sealer::at(key(vector, "key"), at);
        let mut datagram = Vec::new();
        sealer.begin(cid(vector), &mut datagram);
        datagram.extend_from_slice(&plain);
        assert_eq!(sealer.seal(&mut Expanded::default(), &mut datagram, 0), at);
        assert_eq!(hex(&datagram), text(vector, "datagram"));
        let Ok(Datagram::Data { cid: of, number_low }) = parse(&datagram) else {
            panic!("{vector}")
        };
        assert_eq!((of, number_low), (cid(vector), at as u32));
        // Before a rekeying the receiver still has the key of the generation before.
        let before = match at % (1 << REKEY_SHIFT) {
            0 if at > 0 => sealed::generation(&key(vector, "first_key"), (at - 1) >> REKEY_SHIFT),
            _ => key(vector, "key"),
        };
        let opener = Opener::at(before, at);
        let opened = opener.open(&mut Expanded::default(), None, &mut datagram);
        assert_eq!(opened, Ok((at, &plain[..])), "{vector}");
    }
    for vector in list(&load(), "rejected_data") {
        let opener = Opener::new(key(vector, "first_key"));
        let mut datagram = bytes(vector, "datagram");
        let opened = opener.open(&mut Expanded::default(), None, &mut datagram);
        assert_eq!(opened, Err(OpenError::Forged), "{vector}");
    }
}

#[test]
fn packet_numbers_are_recovered() {
    for vector in list(&load(), "packet_numbers") {
        let recovered = recover(number(vector, "low") as u32, number(vector, "expected"));
        assert_eq!(recovered, number(vector, "number"), "{vector}");
    }
}

fn sealed(at: u64) -> Vec<u8> {
    let mut datagram = Vec::new();
    let mut sealer = Sealer::at(generate::keys().to_server, at);
    sealer.begin(ConnectionId(1), &mut datagram);
    sealer.seal(&mut Expanded::default(), &mut datagram, 0);
    datagram
}

/// Whether it is accepted, as a receiver does it.
fn receive(opener: &mut Opener, at: u64) -> bool {
    let opened = opener
        .open(&mut Expanded::default(), None, &mut sealed(at))
        .map(|(number, _)| number);
    match opened {
        Ok(number) => {
            assert_eq!(number, at);
            opener.accept(number);
            true
        }
        Err(error) => {
            assert_eq!(error, OpenError::Duplicate);
            false
        }
    }
}

#[test]
fn replays_are_dropped() {
    for vector in list(&load(), "replays") {
        let mut opener = Opener::new(generate::keys().to_server);
        for packet in list(vector, "packets") {
            let accepted = receive(&mut opener, number(packet, "number"));
            assert_eq!(
                Some(accepted),
                packet["accepted"].as_bool(),
                "{packet} of {vector}"
            );
        }
    }
}

#[test]
fn acknowledgements_speak_of_what_was_accepted() {
    for vector in list(&load(), "acknowledgements") {
        let accepted: Vec<u64> = list(vector, "accepted")
            .iter()
            .map(|n| n.as_u64().unwrap())
            .collect();
        let said = |plain: &[u8]| {
            let ack = Packet::decode(plain).unwrap().ack.unwrap();
            assert_eq!(ack.largest, number(vector, "largest"));
            let mut numbers: Vec<u64> = ack.ranges().flat_map(|(low, high)| low..=high).collect();
            numbers.sort_unstable();
            numbers
        };
        assert_eq!(
            said(&packets::encode(&serde_json::json!({ "ack": vector }))),
            accepted
        );

        let mut opener = Opener::new(generate::keys().to_server);
        assert!(accepted.iter().all(|number| receive(&mut opener, *number)));
        let (largest, ranges) = opener.acknowledge().unwrap();
        let mut written = Vec::new();
        push_ack(&mut written, largest, 0, &ranges);
        assert_eq!(said(&written), accepted);
    }
}
