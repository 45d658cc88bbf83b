//! The rules of the upgrade request, each broken once; and what tungstenite's client sends.

use super::*;
use crate::channel::answer::write_acceptance;
use proptest::prelude::*;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::generate_request;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A good request, changed by `edit`.
fn request(edit: impl FnOnce(&mut Vec<(&str, String)>)) -> Vec<u8> {
    let mut fields = vec![
        ("Host", "localhost".to_owned()),
        ("Upgrade", "websocket".to_owned()),
        ("Connection", "keep-alive, Upgrade".to_owned()),
        ("Sec-WebSocket-Version", "13".to_owned()),
        ("Sec-WebSocket-Key", KEY.to_owned()),
        ("Authorization", "Bearer abc.def-_~+/==".to_owned()),
    ];
    edit(&mut fields);
    render("GET / HTTP/1.1", &fields)
}

fn render(line: &str, fields: &[(&str, String)]) -> Vec<u8> {
    let fields: String = fields
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    format!("{line}\r\n{fields}\r\n").into_bytes()
}

fn with(name: &'static str, value: &str) -> Vec<u8> {
    request(|fields| {
        fields.retain(|(known, _)| *known != name);
        fields.push((name, value.to_owned()));
    })
}

fn without(name: &str) -> Vec<u8> {
    request(|fields| fields.retain(|(known, _)| *known != name))
}

fn good(bytes: &[u8]) -> Upgrade {
    parse(bytes, ChannelKind::Wss, &mut 0)
        .unwrap()
        .expect("a complete head")
}

fn refused(bytes: &[u8]) -> (u16, String) {
    let refusal = parse(bytes, ChannelKind::Wss, &mut 0).unwrap_err();
    (refusal.status, refusal.code.into_owned())
}

fn bad(status: u16) -> (u16, String) {
    (status, "bad_upgrade".to_owned())
}

#[test]
fn the_example_of_the_rfc_is_accepted() {
    let upgrade = good(&request(|_| ()));
    assert_eq!(upgrade.request.credential, "abc.def-_~+/==");
    assert_eq!(
        upgrade.acceptance,
        Acceptance {
            key: "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned(),
            subprotocol: false
        }
    );
    assert_eq!(
        format!("{:?}", upgrade.request),
        "UpgradeRequest { credential: 14 bytes }"
    );
}

#[test]
fn a_browser_brings_its_token_as_a_subprotocol() {
    let upgrade = good(&request(|fields| {
        fields.retain(|(name, _)| *name != "Authorization");
        fields.push(("Sec-WebSocket-Protocol", "holdfast.v1, bearer.abc.def".to_owned()));
        fields.push(("Origin", "https://elsewhere.example".to_owned()));
    }));
    assert_eq!(upgrade.request.credential, "abc.def");
    let mut answer = Vec::new();
    write_acceptance(&mut answer, &upgrade.acceptance);
    assert!(
        String::from_utf8(answer)
            .unwrap()
            .contains("\r\nSec-WebSocket-Protocol: holdfast.v1\r\n\r\n")
    );
}

#[test]
fn both_places_may_hold_the_same_token_only() {
    assert_eq!(
        good(&with("Sec-WebSocket-Protocol", "bearer.abc.def-_~+/=="))
            .request
            .credential,
        "abc.def-_~+/=="
    );
    assert_eq!(refused(&with("Sec-WebSocket-Protocol", "bearer.other")), bad(400));
}

#[test]
fn each_rule_of_the_request_is_enforced() {
    for name in [
        "Host",
        "Upgrade",
        "Connection",
        "Sec-WebSocket-Version",
        "Sec-WebSocket-Key",
    ] {
        assert_eq!(refused(&without(name)), bad(400), "without {name}");
    }
    assert_eq!(refused(&with("Sec-WebSocket-Version", "8")), bad(426));
    assert_eq!(refused(&with("Upgrade", "h2c")), bad(400));
    for key in [
        "",
        "dGhl",
        "dGhlIHNhbXBsZSBub25jZR==",
        "dGhlIHNhbXBsZSBub25jZ===",
        "dGhlIHNhbXBsZSBub25j!Q==",
    ] {
        assert_eq!(refused(&with("Sec-WebSocket-Key", key)), bad(400), "{key}");
    }
    assert_eq!(
        refused(&request(
            |fields| fields.push(("sec-websocket-key", KEY.to_owned()))
        )),
        bad(400)
    );
    assert_eq!(refused(&with("Content-Length", "5")), bad(400));
    assert_eq!(refused(&with("Transfer-Encoding", "chunked")), bad(400));
    assert!(parse(&with("Content-Length", "0"), ChannelKind::Wss, &mut 0).is_ok());
    assert_eq!(refused(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n"), bad(405));
    assert_eq!(refused(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n"), bad(400));
    assert_eq!(refused(b"\x16\x03\x01\r\n\r\n"), bad(400));
}

#[test]
fn tokens_have_rules_too() {
    let missing = (401, "token_missing".to_owned());
    let invalid = (401, "token_invalid".to_owned());
    assert_eq!(refused(&without("Authorization")), missing);
    assert_eq!(refused(&with("Authorization", "Basic abc")), missing);
    assert_eq!(refused(&with("Authorization", "Bearer ")), missing);
    assert_eq!(refused(&with("Authorization", "Bearer a b")), invalid);
    assert_eq!(refused(&with("Authorization", "Bearer ==")), invalid);
    assert_eq!(
        good(&with("Authorization", "bEaReR  abc")).request.credential,
        "abc"
    );
    let longest = "a".repeat(MAX_CREDENTIAL_BYTES);
    assert_eq!(
        good(&with("Authorization", &format!("Bearer {longest}")))
            .request
            .credential,
        longest
    );
    assert_eq!(
        refused(&with("Authorization", &format!("Bearer {longest}a"))),
        bad(431)
    );
}

#[test]
fn the_head_has_a_longest_length() {
    let padded = |pad: usize| with("X-Pad", &"p".repeat(pad));
    let pad = MAX_HEAD_BYTES - padded(0).len();
    assert_eq!(good(&padded(pad)).head_bytes, MAX_HEAD_BYTES);
    assert_eq!(refused(&padded(pad + 1)), bad(431));
    assert_eq!(refused(&[b'x'; MAX_HEAD_BYTES]), bad(431));
    assert_eq!(
        parse(&[b'x'; MAX_HEAD_BYTES - 1], ChannelKind::Wss, &mut 0),
        Ok(None)
    );
    let many = request(|fields| (0..MAX_FIELDS).for_each(|_| fields.push(("X-Many", String::new()))));
    assert_eq!(refused(&many), bad(431));
}

#[test]
fn bytes_after_the_head_are_left_alone() {
    let mut bytes = request(|_| ());
    let head = bytes.len();
    bytes.extend_from_slice(b"\x81\x80\0\0\0\0");
    assert_eq!(good(&bytes).head_bytes, head);
}

#[test]
fn tungstenites_client_is_let_in() {
    let mut request = "wss://localhost:7400/any/path?x=1".into_client_request().unwrap();
    request
        .headers_mut()
        .insert("Authorization", "Bearer abc".parse().unwrap());
    let (bytes, key) = generate_request(request).unwrap();
    let upgrade = good(&bytes);
    assert_eq!(upgrade.head_bytes, bytes.len());
    assert_eq!(upgrade.acceptance.key, derive_accept_key(key.as_bytes()));
}

proptest! {
    #[test]
    fn the_pieces_make_no_difference(pieces in prop::collection::vec(1usize..30, 1..10)) {
        let bytes = request(|_| ());
        let (mut scanned, mut end) = (0, 0);
        for piece in pieces.into_iter().cycle() {
            end = (end + piece).min(bytes.len());
            let parsed = parse(&bytes[..end], ChannelKind::Wss, &mut scanned);
            if end == bytes.len() {
                prop_assert_eq!(parsed, Ok(Some(good(&bytes))));
                break;
            }
            prop_assert_eq!(parsed, Ok(None));
        }
    }
}
