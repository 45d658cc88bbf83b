use super::*;
use proptest::prelude::*;

const LONGEST: usize = MAX_DATAGRAM_BYTES as usize;

const ATTEMPT: u64 = 0x0102_0304_0506_0708;
const CID: ConnectionId = ConnectionId(0x1112_1314_1516_1718);

fn parameters() -> Parameters {
    Parameters {
        attempt: ATTEMPT,
        max_datagram: 1200,
        receive_bytes: 65_536,
        receive_messages: 32,
    }
}

fn hello<'a>(cookie: &'a [u8], credential: &'a [u8]) -> Hello<'a> {
    Hello {
        parameters: parameters(),
        cookie,
        credential,
    }
}

fn refused(code: &str) -> Refused<'_> {
    Refused {
        attempt: ATTEMPT,
        status: 429,
        retry_after_ms: 1_200,
        retryable: true,
        code,
    }
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = b"before".to_vec();
    encode(&mut out);
    assert_eq!(&out[..6], b"before");
    out.split_off(6)
}

/// One of each type, shortest and longest.
fn all() -> Vec<Vec<u8>> {
    let (message2, token) = (&[7; MESSAGE_2_BYTES], &[8; RESET_TOKEN_BYTES]);
    let longest_code = "c".repeat(MAX_CODE_BYTES);
    let data = data_header(CID, 9);
    vec![
        encoded(|out| encode_hello(&hello(b"", b"x"), out)),
        encoded(|out| {
            encode_hello(&hello(&[1; MAX_COOKIE_BYTES], &[2; MAX_CREDENTIAL_BYTES]), out);
        }),
        encoded(|out| encode_retry(ATTEMPT, b"c", out)),
        encoded(|out| encode_retry(ATTEMPT, &[1; MAX_COOKIE_BYTES], out)),
        encoded(|out| encode_challenge(ATTEMPT, CID, message2, out)),
        encoded(|out| encode_refused(&refused("a"), out)),
        encoded(|out| encode_refused(&refused(&longest_code), out)),
        encoded(|out| encode_reset(CID, token, out)),
        [&data[..], &[0; 16]].concat(),
        [&data[..], &[0; LONGEST - HEADER_BYTES]].concat(),
    ]
}

#[test]
fn datagrams_have_the_documented_form() {
    let bytes = encoded(|out| encode_hello(&hello(b"\xaa\xbb", b"credential"), out));
    let front =
        b"\x01\x01\x01\x02\x03\x04\x05\x06\x07\x08\x04\xb0\0\x01\0\0\0\x20\x02\xaa\xbb\0\x0acredential";
    assert_eq!((bytes.len(), &bytes[..front.len()]), (256, &front[..]));
    assert!(bytes[front.len()..].iter().all(|byte| *byte == 0));
    assert_eq!(
        parse(&bytes),
        Ok(Datagram::Hello(hello(b"\xaa\xbb", b"credential")))
    );

    let bytes = encoded(|out| encode_retry(ATTEMPT, b"cookie", out));
    assert_eq!(bytes, b"\x02\x01\x01\x02\x03\x04\x05\x06\x07\x08\x06cookie");
    let cookie = &b"cookie"[..];
    assert_eq!(
        parse(&bytes),
        Ok(Datagram::Retry {
            attempt: ATTEMPT,
            cookie
        })
    );

    let message2 = &[7; MESSAGE_2_BYTES];
    let bytes = encoded(|out| encode_challenge(ATTEMPT, CID, message2, out));
    let front = b"\x03\x01\x01\x02\x03\x04\x05\x06\x07\x08\x11\x12\x13\x14\x15\x16\x17\x18";
    assert_eq!(bytes, [&front[..], message2].concat());
    assert_eq!(
        parse(&bytes),
        Ok(Datagram::Challenge {
            attempt: ATTEMPT,
            cid: CID,
            message2
        })
    );

    let bytes = encoded(|out| encode_refused(&refused("too_many"), out));
    assert_eq!(
        bytes,
        b"\x04\x01\x01\x02\x03\x04\x05\x06\x07\x08\x01\xad\0\0\x04\xb0\x01\x08too_many"
    );
    assert_eq!(parse(&bytes), Ok(Datagram::Refused(refused("too_many"))));

    let token = &[8; RESET_TOKEN_BYTES];
    let bytes = encoded(|out| encode_reset(CID, token, out));
    assert_eq!(
        bytes,
        [&b"\x05\x11\x12\x13\x14\x15\x16\x17\x18"[..], token].concat()
    );
    assert_eq!(parse(&bytes), Ok(Datagram::Reset { cid: CID, token }));

    let header = data_header(CID, 0x2122_2324);
    assert_eq!(&header, b"\x40\x11\x12\x13\x14\x15\x16\x17\x18\x21\x22\x23\x24");
    let number_low = 0x2122_2324;
    assert_eq!(
        parse(&[&header[..], &[0; 16]].concat()),
        Ok(Datagram::Data { cid: CID, number_low })
    );
}

/// An answer that is longer than its question would let somebody with a forged address send more through us than he has.
#[test]
fn no_answer_is_longer_than_what_asked_for_it() {
    for datagram in all() {
        match parse(&datagram).unwrap() {
            Datagram::Hello(_) => assert!(datagram.len() >= MIN_HELLO_BYTES),
            Datagram::Reset { .. } => {
                assert!(datagram.len() == RESET_BYTES && RESET_BYTES < MIN_DATA_BYTES);
            }
            Datagram::Data { .. } => assert!(datagram.len() >= MIN_DATA_BYTES),
            _ => assert!(datagram.len() < MIN_HELLO_BYTES),
        }
    }
}

#[test]
fn lengths_are_exact() {
    for whole in all() {
        let data = whole[0] == DATA;
        for cut in 0..whole.len() {
            let taken = parse(&whole[..cut]).is_ok();
            // DATA is as long as it is, and what a HELLO is filled up with may be longer or shorter.
            let allowed = data && cut >= MIN_DATA_BYTES;
            assert_eq!(taken, allowed, "{cut} of {whole:?}");
        }
        let longer = [&whole[..], &[0]].concat();
        let allowed = whole[0] == HELLO || data && whole.len() < LONGEST;
        assert_eq!(parse(&longer).is_ok(), allowed, "{whole:?}");
    }
    let mut longest = all().swap_remove(0);
    longest.resize(LONGEST, 0);
    assert!(parse(&longest).is_ok());
    longest.push(0);
    assert_eq!(parse(&longest), Err(Malformed::Length));
}

#[test]
fn other_types_and_versions_are_not_known() {
    assert_eq!(parse(b""), Err(Malformed::Length));
    for first in 0..=255 {
        let mut datagram = all().swap_remove(0);
        datagram[0] = first;
        let known = [HELLO, RETRY, CHALLENGE, REFUSED, RESET, DATA].contains(&first);
        assert_eq!(parse(&datagram) == Err(Malformed::Type), !known, "{first}");
    }
    for mut datagram in all() {
        if ![RESET, DATA].contains(&datagram[0]) {
            datagram[1] = 2;
            assert_eq!(parse(&datagram), Err(Malformed::Version));
        }
    }
}

#[test]
fn what_is_wrong_is_named() {
    let good = encoded(|out| encode_hello(&hello(b"", b"credential"), out));
    let changed = |at: usize, value: u8| {
        let mut datagram = good.clone();
        datagram[at] = value;
        datagram
    };
    assert_eq!(parse(&changed(10, 0)), Err(Malformed::Value), "max_datagram 176");
    assert_eq!(
        parse(&changed(18, MAX_COOKIE_BYTES as u8 + 1)),
        Err(Malformed::Length)
    );
    assert_eq!(parse(&changed(20, 0)), Err(Malformed::Length), "no credential");
    let over = MAX_CREDENTIAL_BYTES as u16 + 1;
    let mut long = changed(19, (over >> 8) as u8);
    long[20] = over as u8;
    long.resize(LONGEST, 0);
    assert_eq!(parse(&long), Err(Malformed::Length));
    assert_eq!(parse(&changed(255, 1)), Err(Malformed::Value), "padding");

    let good = encoded(|out| encode_refused(&refused("too_many"), out));
    let changed = |at: usize, value: u8| {
        let mut datagram = good.clone();
        datagram[at] = value;
        parse(&datagram).map(|_| ())
    };
    assert_eq!(changed(10, 0), Err(Malformed::Value), "status 173");
    assert_eq!(changed(10, 3), Err(Malformed::Value), "status 941");
    assert_eq!(changed(16, 2), Err(Malformed::Value), "retryable");
    for byte in [b' ', b'A', b'-', 0, 0x80, 0xff] {
        assert_eq!(changed(18, byte), Err(Malformed::Value), "{byte}");
    }
    let empty = encoded(|out| {
        encode_refused(&refused("x"), out);
        out.pop();
        let last = out.len() - 1;
        out[last] = 0;
    });
    assert_eq!(parse(&empty), Err(Malformed::Value));
    assert_eq!(
        parse(b"\x02\x01\0\0\0\0\0\0\0\0\0"),
        Err(Malformed::Length),
        "no cookie"
    );
}

/// What another program says goes out in a form that a device takes.
#[test]
fn strange_refusals_are_sent_as_something_that_can_be_read() {
    for (status, code, sent) in [
        (429, "a b", (429, "refused")),
        (200, "ok", (503, "ok")),
        (999, "", (503, "refused")),
        (400, &"c".repeat(65), (400, "refused")),
    ] {
        let bytes = encoded(|out| {
            encode_refused(
                &Refused {
                    status,
                    ..refused(code)
                },
                out,
            )
        });
        let Ok(Datagram::Refused(read)) = parse(&bytes) else {
            panic!("{bytes:?}")
        };
        assert_eq!((read.status, read.code), sent);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived_and_what_is_taken_has_one_form(
        of in prop::sample::Index::arbitrary(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()), any in prop::collection::vec(any::<u8>(), 0..300), whole: bool,
    ) {
        let mut all = all();
        let mut datagram = if whole { any } else { all.swap_remove(of.index(all.len())) };
        for (at, byte) in changes {
            if !datagram.is_empty() {
                let at = at.index(datagram.len());
                datagram[at] = byte;
            }
        }
        if let Some(cut) = cut {
            datagram.truncate(cut.index(datagram.len() + 1));
        }
        let mut out = Vec::new();
        match parse(&datagram) {
            Ok(Datagram::Hello(hello)) => {
                encode_hello(&hello, &mut out);
                prop_assert!(datagram.starts_with(&out) && datagram[out.len()..].iter().all(|b| *b == 0));
                return Ok(());
            }
            Ok(Datagram::Retry { attempt, cookie }) => encode_retry(attempt, cookie, &mut out),
            Ok(Datagram::Challenge { attempt, cid, message2 }) => encode_challenge(attempt, cid, message2, &mut out),
            Ok(Datagram::Refused(refused)) => encode_refused(&refused, &mut out),
            Ok(Datagram::Reset { cid, token }) => encode_reset(cid, token, &mut out),
            Ok(Datagram::Data { cid, number_low }) => {
                out.extend_from_slice(&data_header(cid, number_low));
                out.extend_from_slice(&datagram[HEADER_BYTES..]);
            }
            Err(_) => return Ok(()),
        }
        prop_assert_eq!(out, datagram);
    }

    #[test]
    fn hellos_round_trip(
        attempt: u64, max_datagram in 512u16..=1472, receive_bytes in 4_096u32..=16_777_216, receive_messages in 4u16..=1_024,
        cookie in prop::collection::vec(any::<u8>(), 0..=MAX_COOKIE_BYTES),
        credential in prop::collection::vec(any::<u8>(), 1..=MAX_CREDENTIAL_BYTES),
    ) {
        let parameters = Parameters { attempt, max_datagram, receive_bytes, receive_messages };
        let hello = Hello { parameters, cookie: &cookie, credential: &credential };
        let bytes = encoded(|out| encode_hello(&hello, out));
        prop_assert_eq!(parse(&bytes), Ok(Datagram::Hello(hello)));
    }
}
