//! Makes the vectors of what a device takes as the server's challenge, and of what it does not.

use base64::Engine;
use serde_json::{Value, json};

use super::super::handshake::{fixed, prologue};
use super::super::*;
use super::URL_SAFE_NO_PAD;
use super::generate::*;

/// Of PROTOCOL.md section 12.
const MAX_CHALLENGE_BYTES: usize = 1024;
const OTHER_EPHEMERAL: fixed::Ephemeral = &counting(0xa0);

/// Other texts for one message 2.
pub(super) fn accepted() -> Vec<Value> {
    let message2 = Attempt::usual().message2();
    let noise = URL_SAFE_NO_PAD.encode(&message2);
    let cases = [
        (
            "other members",
            format!(r#"@challenge {{"a":[1,{{"noise":0}}],"noise":"{noise}","b":null}}"#),
        ),
        (
            "white space in the object",
            format!("@challenge {{ \"noise\"\t:\r\n\"{noise}\" }} \n"),
        ),
        (
            "more white space after the word",
            format!("@challenge \t {{\"noise\":\"{noise}\"}}"),
        ),
        (
            "other white space after the word",
            format!("@challenge\r\n{{\"noise\":\"{noise}\"}}"),
        ),
        (
            "an escape in a string",
            format!(r#"@challenge {{"noi\u0073e":"{noise}"}}"#),
        ),
        ("as long as it may be", of_length(&noise, MAX_CHALLENGE_BYTES)),
    ];
    let entry =
        |(why, text): (&str, String)| json!({ "why": why, "challenge": text, "message_2": hex(&message2) });
    cases.into_iter().map(entry).collect()
}

/// In bytes of UTF-8: of characters there are fewer.
fn of_length(noise: &str, bytes: usize) -> String {
    let (head, tail) = (r#"@challenge {"more":"é"#, format!(r#"","noise":"{noise}"}}"#));
    let padding = "x".repeat(bytes - head.len() - tail.len());
    format!("{head}{padding}{tail}")
}

/// What is no challenge.
pub(super) fn rejected() -> Vec<Value> {
    let message = URL_SAFE_NO_PAD.encode([7; MESSAGE_2_BYTES]);
    let texts = [
        "@challenge".to_owned(),
        "@challenge {}".to_owned(),
        format!(r#"@challenge{{"noise":"{message}"}}"#),
        format!("@challenge\u{a0}{{\"noise\":\"{message}\"}}"),
        format!(r#" @challenge {{"noise":"{message}"}}"#),
        r#"@challenge {"noise":null}"#.to_owned(),
        r#"@challenge {"noise":""}"#.to_owned(),
        format!(r#"@challenge {{"noise":"{}"}}"#, &message[4..]),
        format!(r#"@challenge {{"noise":"{message}AAAA"}}"#),
        format!(r#"@challenge {{"noise":"{}+"}}"#, &message[1..]),
        format!(r#"@challenges {{"noise":"{message}"}}"#),
        of_length(&message, MAX_CHALLENGE_BYTES + 1),
        format!(r#"@challenge {{"noise":"{message}"}} more"#),
        r#"@goodbye {"code":"try_again_later"}"#.to_owned(),
    ];
    texts
        .into_iter()
        .map(|text| json!({ "challenge": text }))
        .collect()
}

/// Challenges in good form that are not the answer to the device's message 1.
pub(super) fn unverified() -> Vec<Value> {
    let good = Attempt::usual().message2();
    let flipped = |at: usize, bit: u8| {
        let mut message2 = good.clone();
        message2[at] ^= bit;
        message2
    };
    let other_ephemeral = Attempt {
        server_ephemeral: OTHER_EPHEMERAL,
        ..Attempt::usual()
    };
    let answer = |attempt: Attempt| attempt.message2();
    let cases = [
        ("a bit of the tag", flipped(47, 1)),
        (
            "the bit of the ephemeral key that the curve ignores",
            flipped(31, 0x80),
        ),
        (
            "another ephemeral key",
            [&other_ephemeral.message2()[..32], &good[32..]].concat(),
        ),
        (
            "another device key",
            answer(Attempt {
                key: MasterKey::from_bytes(&counting(1))
                    .unwrap()
                    .device_key(&identities()[0]),
                ..Attempt::usual()
            }),
        ),
        (
            "another prologue: the channel link; its traffic keys would be the same",
            answer(Attempt {
                channel: SecureChannel::Link,
                ..Attempt::usual()
            }),
        ),
        (
            "the answer to a message 1 with another ephemeral key",
            answer(Attempt {
                device_ephemeral: OTHER_EPHEMERAL,
                ..Attempt::usual()
            }),
        ),
        (
            "the answer to a message 1 with another time",
            answer(Attempt {
                now_ms: Some(NOW_MS + 1),
                ..Attempt::usual()
            }),
        ),
    ];
    cases
        .into_iter()
        .map(|(why, message2)| entry(why, &message2))
        .collect()
}

fn entry(why: &str, message2: &[u8]) -> Value {
    let usual = &identities()[0];
    let more = json!({
        "why": why,
        "channel": SecureChannel::Ws.label(),
        "prologue": hex(&prologue(SecureChannel::Ws, &usual.encode(), &[])),
        "device_ephemeral_private": hex(DEVICE_EPHEMERAL),
        "now_ms": NOW_MS,
        "challenge": render_challenge(message2),
    });
    with(fields(usual), more)
}

/// One handshake of the usual device.
struct Attempt {
    channel: SecureChannel,
    key: DeviceKey,
    device_ephemeral: fixed::Ephemeral,
    server_ephemeral: fixed::Ephemeral,
    now_ms: Option<u64>,
}

impl Attempt {
    fn usual() -> Self {
        Self {
            channel: SecureChannel::Ws,
            key: master().device_key(&identities()[0]),
            device_ephemeral: DEVICE_EPHEMERAL,
            server_ephemeral: SERVER_EPHEMERAL,
            now_ms: Some(NOW_MS),
        }
    }

    fn message2(self) -> Vec<u8> {
        let identity = identities()[0].encode();
        let device = (self.device_ephemeral, self.now_ms);
        let (_, text) = fixed::initiator(self.channel, &identity, &self.key, device);
        let credential = Credential::parse(text.as_bytes()).unwrap();
        let verified = fixed::verified(self.channel, &credential, &self.key, self.server_ephemeral);
        verified.answer().unwrap().0
    }
}
