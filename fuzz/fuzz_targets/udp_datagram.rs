//! What anybody may send to the udp port, and what answers a device: no panic, one form for all that is taken, no answer that is
//! longer than what asked for it, and no attempt of a device that anything but its own server's answer opens.
#![no_main]

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use holdfast_proto::secure::{
    Credential, HandshakeError, Identity, MasterKey, PARAMETER_BYTES, SecureChannel, Verified,
};
use holdfast_proto::udp::datagram::{
    Hello, MIN_HELLO_BYTES, encode_challenge, encode_hello, encode_refused, encode_reset, encode_retry,
};
use holdfast_proto::udp::dial::{DIAL_TIMEOUT, MAX_RETRIES};
use holdfast_proto::udp::{Cookies, Datagram, Dial, Dialed, Dialing, HEADER_BYTES, Parameters, parse};
use libfuzzer_sys::fuzz_target;

static MASTER: LazyLock<MasterKey> = LazyLock::new(|| MasterKey::from_bytes(&[7; 32]).expect("32 bytes"));
static HERE: LazyLock<SocketAddr> = LazyLock::new(|| SocketAddr::from(([192, 0, 2, 1], 5000)));
static COOKIES: LazyLock<Cookies> = LazyLock::new(|| Cookies::new([9; 32]));
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

fuzz_target!(|data: &[u8]| {
    alone(data);
    answers(data);
});

/// One datagram.
fn alone(data: &[u8]) {
    let mut out = Vec::new();
    match parse(data) {
        Ok(Datagram::Hello(hello)) => {
            encode_hello(&hello, &mut out);
            assert!(data.starts_with(&out) && data[out.len()..].iter().all(|byte| *byte == 0));
            judge(&hello);
            return;
        }
        Ok(Datagram::Retry { attempt, cookie }) => encode_retry(attempt, cookie, &mut out),
        Ok(Datagram::Challenge {
            attempt,
            cid,
            message2,
        }) => encode_challenge(attempt, cid, message2, &mut out),
        Ok(Datagram::Refused(refused)) => encode_refused(&refused, &mut out),
        Ok(Datagram::Reset { cid, token }) => {
            encode_reset(cid, token, &mut out);
            assert!(out.len() < HEADER_BYTES + 16);
        }
        Ok(Datagram::Data { .. }) | Err(_) => return,
    }
    assert_eq!(out, data);
    assert!(out.len() < MIN_HELLO_BYTES);
}

/// What a server makes of a HELLO that anybody made up.
fn judge(hello: &Hello<'_>) {
    assert!(!COOKIES.check(1_000, *HERE, hello));
    let cookie = COOKIES.mint(1_000, *HERE, hello);
    let again = Hello {
        cookie: &cookie,
        ..*hello
    };
    assert!(COOKIES.check(1_000, *HERE, &again));
    let parameters: [u8; PARAMETER_BYTES] = hello.parameters.encode();
    if let Ok(credential) = Credential::parse_datagram(&parameters, hello.credential) {
        assert_eq!(credential.identity.encode(), credential.identity_bytes());
        let key = MASTER.device_key(&credential.identity);
        let refused = Verified::verify(SecureChannel::Udp, &credential, &key).err();
        assert_eq!(refused, Some(HandshakeError::NotAuthentic));
    }
}

/// A device that dials, and gets pieces of the data as datagrams: a byte says how long one is and when it comes.
fn answers(mut data: &[u8]) {
    let identity = Identity {
        key_id: "k".into(),
        product: String::new(),
        class: String::new(),
        device: "d".parse().expect("a device id"),
        key_version: 1,
    };
    let dialing = Dialing {
        identity: &identity,
        key: &MASTER.device_key(&identity),
        // So that the fuzzer finds it.
        parameters: Parameters {
            attempt: 0,
            max_datagram: 1200,
            receive_bytes: 65_536,
            receive_messages: 32,
        },
        now_ms: None,
        timeout: DIAL_TIMEOUT,
    };
    let mut now = *START;
    let mut dial = Dial::new(now, &dialing).expect("an identity that is taken");
    let mut out = Vec::new();
    loop {
        if dial.poll_transmit(now, &mut out) {
            assert!(matches!(parse(&out), Ok(Datagram::Hello(_))));
            out.clear();
        }
        let [length, pause, rest @ ..] = data else { break };
        let (datagram, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        data = rest;
        now += Duration::from_millis(u64::from(*pause));
        assert!(matches!(
            dial.handle_datagram(now, *HERE, datagram),
            Dialed::Pending
        ));
        if now >= dial.poll_timeout() && !matches!(dial.handle_timeout(now), Dialed::Pending) {
            break;
        }
    }
    assert!(dial.stats().hellos <= 4 * (1 + MAX_RETRIES));
}
