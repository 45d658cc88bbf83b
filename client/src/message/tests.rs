use super::*;

fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap()
}

fn text(message: &'static str) -> Result<Incoming, String> {
    decode_text(Bytes::from_static(message.as_bytes()))
}

#[test]
fn a_json_payload_passes_through_byte_for_byte() {
    let request = Request::json("Demo", "Ec\"ho", raw(r#"{ "n" : 1.0e2 }"#)).with_retry_key("k");
    let expected = r#"{"header":{"namespace":"Demo","name":"Ec\"ho","id":"c1","retry_key":"k"},"payload":{ "n" : 1.0e2 }}"#;
    assert_eq!(encode(&request, "c1"), Encoded::Text(expected.to_owned()));
}

#[test]
fn a_payload_of_null_is_not_a_missing_one() {
    for (payload, wanted) in [(r#","payload":null"#, "null"), ("", "")] {
        let event = format!(r#"{{"header":{{"namespace":"W","name":"Q.Reply","seq":1}}{payload}}}"#);
        let Ok(Incoming::Reply(reply)) = decode_text(event.into()) else {
            panic!("not a reply")
        };
        assert_eq!(&reply.payload[..], wanted.as_bytes());
    }
}

#[test]
fn replies_errors_and_pushes_are_told_apart() {
    let Ok(Incoming::Reply(reply)) = text(
        r#"{"header":{"namespace":"W","name":"Q.Reply","id":"r-1","reply_to":"c1","seq":1},"payload":{"t": 4}}"#,
    ) else {
        panic!("not a reply")
    };
    assert_eq!(
        (reply.seq, reply.reply_to.as_deref(), &reply.payload[..]),
        (1, Some("c1"), &br#"{"t": 4}"#[..])
    );
    let failure = text(
        r#"{"header":{"namespace":"System","name":"Error","seq":2},"payload":{"code":"no_route","message":"m","retryable":false}}"#,
    );
    let error = Error::Service {
        code: "no_route".into(),
        message: "m".into(),
        retryable: false,
    };
    assert_eq!(
        failure,
        Ok(Incoming::Failure {
            seq: 2,
            reply_to: None,
            error
        })
    );
    let push = text(
        r#"{"header":{"namespace":"A","name":"F","id":"m-7","push":{"topic":"a","seq":12,"prev":11,"epoch":"k"}},"payload":7}"#,
    );
    assert!(
        matches!(push, Ok(Incoming::Push(push)) if &push.payload[..] == b"7"),
        "the push's own seq is not a reply's"
    );
}

#[test]
fn control_messages_are_read() {
    let welcome =
        text(r#"@welcome {"session":"s","heartbeat_ms":30000,"max_message":1048576,"window":32,"later":1}"#);
    assert!(
        matches!(welcome, Ok(Incoming::Welcome(w)) if w.heartbeat == Duration::from_secs(30) && w.window == 32)
    );
    let goodbye = text(r#"@goodbye {"code":"going_away","retry_after_ms":1500,"reconnect":false}"#);
    let expected = Goodbye {
        code: "going_away".into(),
        retry_after: Some(Duration::from_millis(1500)),
        reconnect: false,
    };
    assert_eq!(goodbye, Ok(Incoming::Goodbye(expected)));
    assert!(matches!(text("@goodbye"), Ok(Incoming::Goodbye(g)) if g.reconnect));
    assert_eq!(text("@pong"), Ok(Incoming::Pong));
    assert_eq!(text("@missed {}"), Ok(Incoming::OtherControl));
}

#[test]
fn what_cannot_be_read_is_an_error() {
    for bad in [
        "",
        "{}",
        "[1]",
        "@welcome {",
        r#"{"header":{"namespace":1,"name":"x"}}"#,
    ] {
        assert!(text(bad).is_err(), "{bad}");
    }
    for bad in [
        &b""[..],
        b"\x05\x0a",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        assert!(decode_binary(Bytes::from_static(bad)).is_err(), "{bad:?}");
    }
}

#[test]
fn binary_messages_keep_their_bytes() {
    let request = Request::binary("Demo", "Echo", Bytes::from_static(b"\x00\xff")).with_retry_key("k");
    let Encoded::Binary(message) = encode(&request, "c2") else {
        panic!("not binary")
    };
    let expected = b"\x12\x0a\x04Demo\x12\x04Echo\x1a\x02c2\x22\x01k\x00\xff";
    assert_eq!(message[1..], expected[1..]);
    assert_eq!(usize::from(message[0]), message.len() - 1 - 2);
    let reply = WireHeader {
        namespace: "Demo".into(),
        name: "Echo.Reply".into(),
        id: "r-1".into(),
        reply_to: "c2".into(),
        seq: 1,
        ..WireHeader::default()
    };
    let mut bytes = reply.encode_length_delimited_to_vec();
    bytes.extend_from_slice(b"\x00\xff");
    let Ok(Incoming::Reply(reply)) = decode_binary(bytes.into()) else {
        panic!("not a reply")
    };
    assert!(reply.binary && reply.seq == 1 && reply.payload[..] == b"\x00\xff"[..]);
}

#[test]
fn hello_names_the_instance_only_if_there_is_one() {
    assert_eq!(hello(""), "@hello {}");
    assert_eq!(hello("tv\"1"), r#"@hello {"instance":"tv\"1"}"#);
}
