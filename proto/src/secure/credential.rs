//! What a device says of itself, and the message that answers it: around the handshake's two messages text on `ws`, and on `udp` the
//! bytes as they are.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::handshake::{MESSAGE_1_BYTES, MESSAGE_1_TIMED_BYTES};
use super::{Identity, IdentityError, MAX_IDENTITY_BYTES, MESSAGE_2_BYTES};

/// Longest credential, in characters. The longest that is one has 471.
pub const MAX_CREDENTIAL_TEXT: usize = 1024;

/// Longest credential as bytes: the longest identity, and message 1 with a time.
pub const MAX_CREDENTIAL_BYTES: usize = MAX_IDENTITY_BYTES + MESSAGE_1_TIMED_BYTES;
/// What a HELLO datagram says of the connection beside the credential.
pub const PARAMETER_BYTES: usize = 16;

/// A device's claim to be somebody, taken apart but not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    pub identity: Identity,
    /// What else the handshake is bound to, the identity as it came, then message 1.
    bytes: Vec<u8>,
    identity_at: usize,
    message_at: usize,
}

/// Why text or bytes are no credential: always the sender's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    #[error("the credential is longer than {MAX_CREDENTIAL_TEXT} characters")]
    TooLong,
    #[error("the credential is not base64url without padding")]
    NotBase64,
    #[error("{0}")]
    Identity(#[from] IdentityError),
    #[error("the handshake message has {0} bytes, not {MESSAGE_1_BYTES} or {MESSAGE_1_TIMED_BYTES}")]
    MessageLength(usize),
}

impl Credential {
    /// Takes the text of a credential, as it stands in the header or the sub-protocol.
    pub fn parse(text: &[u8]) -> Result<Self, CredentialError> {
        if text.len() > MAX_CREDENTIAL_TEXT {
            return Err(CredentialError::TooLong);
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| CredentialError::NotBase64)?;
        let (identity, message_at) = take_apart(&bytes)?;
        Ok(Self {
            identity,
            bytes,
            identity_at: 0,
            message_at,
        })
    }

    /// Takes what a HELLO datagram carries. `parameters` are those beside the credential in it: the handshake is bound to them, so
    /// that nobody on the way changes one.
    pub fn parse_datagram(
        parameters: &[u8; PARAMETER_BYTES],
        credential: &[u8],
    ) -> Result<Self, CredentialError> {
        let (identity, identity_len) = take_apart(credential)?;
        Ok(Self {
            identity,
            bytes: [parameters, credential].concat(),
            identity_at: PARAMETER_BYTES,
            message_at: PARAMETER_BYTES + identity_len,
        })
    }

    /// What the handshake is bound to beside channel and identity: on `udp` the connection's parameters, else nothing.
    pub fn binding(&self) -> &[u8] {
        &self.bytes[..self.identity_at]
    }

    /// The identity's bytes as they came.
    pub fn identity_bytes(&self) -> &[u8] {
        &self.bytes[self.identity_at..self.message_at]
    }

    /// The handshake's message 1.
    pub fn message1(&self) -> &[u8] {
        &self.bytes[self.message_at..]
    }

    pub(super) fn render(identity_bytes: &[u8], message1: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode([identity_bytes, message1].concat())
    }
}

/// The identity at the front of a credential, and how many bytes it has.
fn take_apart(credential: &[u8]) -> Result<(Identity, usize), CredentialError> {
    let (identity, length) = Identity::decode(credential)?;
    match credential.len() - length {
        MESSAGE_1_BYTES | MESSAGE_1_TIMED_BYTES => Ok((identity, length)),
        other => Err(CredentialError::MessageLength(other)),
    }
}

/// Longest `@challenge` that a device takes, in bytes.
pub const MAX_CHALLENGE_BYTES: usize = 1024;

const CHALLENGE_HEAD: &str = r#"@challenge {"noise":""#;
const CHALLENGE_TAIL: &str = r#""}"#;

/// The server's first message on a channel that we encrypt.
pub fn render_challenge(message2: &[u8]) -> String {
    let mut text = String::from(CHALLENGE_HEAD);
    URL_SAFE_NO_PAD.encode_string(message2, &mut text);
    text.push_str(CHALLENGE_TAIL);
    text
}

/// The handshake's message 2 out of the server's first message: after the word white space, then any JSON object with a `noise`
/// of the right length in it.
pub fn parse_challenge(text: &str) -> Option<Vec<u8>> {
    #[derive(serde::Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        noise: std::borrow::Cow<'a, str>,
    }
    let json = text
        .strip_prefix("@challenge")
        .filter(|rest| text.len() <= MAX_CHALLENGE_BYTES && rest.starts_with([' ', '\t', '\r', '\n']))?;
    let body: Body<'_> = serde_json::from_str(json).ok()?;
    let message = URL_SAFE_NO_PAD.decode(body.noise.as_bytes()).ok()?;
    (message.len() == MESSAGE_2_BYTES).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn identity_bytes() -> Vec<u8> {
        let identity = Identity {
            key_id: "k".into(),
            product: String::new(),
            class: String::new(),
            device: "d".parse().unwrap(),
            key_version: 1,
        };
        identity.encode()
    }

    #[test]
    fn a_credential_is_taken_apart() {
        for length in [MESSAGE_1_BYTES, MESSAGE_1_TIMED_BYTES] {
            let message1 = vec![9; length];
            let text = Credential::render(&identity_bytes(), &message1);
            let credential = Credential::parse(text.as_bytes()).unwrap();
            assert_eq!(credential.identity_bytes(), identity_bytes());
            assert_eq!(credential.message1(), message1);
            assert_eq!(credential.identity.encode(), identity_bytes());
        }
    }

    #[test]
    fn a_datagram_s_credential_is_taken_apart() {
        let parameters = [3; PARAMETER_BYTES];
        for length in [MESSAGE_1_BYTES, MESSAGE_1_TIMED_BYTES] {
            let bytes = [identity_bytes(), vec![9; length]].concat();
            let credential = Credential::parse_datagram(&parameters, &bytes).unwrap();
            assert_eq!(credential.binding(), parameters);
            assert_eq!(credential.identity_bytes(), identity_bytes());
            assert_eq!(credential.message1(), vec![9; length]);
            let text = Credential::render(&identity_bytes(), &vec![9; length]);
            let other = Credential::parse(text.as_bytes()).unwrap();
            assert!(other.binding().is_empty());
            assert_eq!(other.identity, credential.identity);
        }
        for length in [0, 47, 49, 55, 57, 70_000] {
            let bytes = [identity_bytes(), vec![9; length]].concat();
            assert_eq!(
                Credential::parse_datagram(&parameters, &bytes),
                Err(CredentialError::MessageLength(length))
            );
        }
        assert_eq!(
            Credential::parse_datagram(&parameters, b""),
            Err(CredentialError::Identity(IdentityError::CutOff))
        );
    }

    #[test]
    fn the_longest_credential_has_the_documented_length() {
        let longest = Identity {
            key_id: "k".repeat(super::super::MAX_KEY_ID_BYTES),
            product: "p".repeat(super::super::MAX_PRODUCT_BYTES),
            class: "c".repeat(super::super::MAX_CLASS_BYTES),
            device: "d".repeat(crate::ids::MAX_DEVICE_ID_BYTES).parse().unwrap(),
            key_version: u32::MAX,
        };
        let bytes = [longest.encode(), vec![9; MESSAGE_1_TIMED_BYTES]].concat();
        assert_eq!((bytes.len(), MAX_CREDENTIAL_BYTES), (353, 353));
        assert!(Credential::parse_datagram(&[0; PARAMETER_BYTES], &bytes).is_ok());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let bad = |text: &[u8]| Credential::parse(text).unwrap_err();
        assert_eq!(bad(&[b'A'; MAX_CREDENTIAL_TEXT + 1]), CredentialError::TooLong);
        assert_eq!(
            bad(&[b'A'; MAX_CREDENTIAL_TEXT]),
            CredentialError::Identity(IdentityError::Version(0))
        );
        assert_eq!(bad(b""), CredentialError::Identity(IdentityError::CutOff));
        let good = Credential::render(&identity_bytes(), &[9; MESSAGE_1_TIMED_BYTES]);
        for text in [
            format!("{good}="),
            format!("{good} "),
            good.replace('A', "+"),
            good.replacen('A', "/", 1),
        ] {
            assert_eq!(bad(text.as_bytes()), CredentialError::NotBase64, "{text}");
        }
        for length in [0, 47, 49, 55, 57] {
            let text = Credential::render(&identity_bytes(), &vec![9; length]);
            assert_eq!(bad(text.as_bytes()), CredentialError::MessageLength(length));
        }
    }

    /// Bits after the last byte would let one credential have several texts.
    #[test]
    fn a_text_has_no_spare_bits() {
        let text = Credential::render(&identity_bytes(), &[0; MESSAGE_1_BYTES]);
        assert_ne!(text.len() % 4, 0, "{text}");
        let changed = format!("{}B", &text[..text.len() - 1]);
        assert_eq!(
            Credential::parse(changed.as_bytes()),
            Err(CredentialError::NotBase64)
        );
    }

    #[test]
    fn a_challenge_has_the_documented_form() {
        let text = render_challenge(&[0xff; MESSAGE_2_BYTES]);
        assert_eq!(text, format!("@challenge {{\"noise\":\"{}\"}}", "_".repeat(64)));
        assert_eq!(parse_challenge(&text), Some(vec![0xff; MESSAGE_2_BYTES]));
        let later = text.replace('{', "{ \"new\": [1], ");
        assert_eq!(parse_challenge(&later), Some(vec![0xff; MESSAGE_2_BYTES]));
        for space in ["  ", "\t", "\r\n", " \t \n"] {
            let spaced = format!("@challenge{space}{}{space}", &text[11..]);
            assert_eq!(
                parse_challenge(&spaced),
                Some(vec![0xff; MESSAGE_2_BYTES]),
                "{spaced:?}"
            );
        }
        for bad in [
            "",
            "@challenge",
            &text.replacen(' ', "", 1),
            &text.replacen(' ', "\u{a0}", 1),
            &text.replacen(' ', "\u{b}", 1),
            &format!(" {text}"),
            "@challenge {}",
            "@challenge []",
            r#"@challenge {"noise":7}"#,
            r#"@challenge {"noise":"AAAA"}"#,
            &text[1..],
            &text[..text.len() - 1],
            &text.replace("__", "=="),
            &format!("{text}x"),
            &format!("@challenge {}{}", " ".repeat(1000), &text[11..]),
        ] {
            assert_eq!(parse_challenge(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_what_is_taken_has_one_form(bytes in proptest::collection::vec(any::<u8>(), 0..400), message in proptest::collection::vec(any::<u8>(), 40..60), text in ".{0,80}") {
            let _ = Credential::parse(&bytes);
            let _ = parse_challenge(&text);
            let _ = parse_challenge(&format!("@challenge {text}"));
            for front in [bytes, identity_bytes()] {
                let text = Credential::render(&front, &message);
                if let Ok(credential) = Credential::parse(text.as_bytes()) {
                    prop_assert_eq!(Credential::render(&credential.identity.encode(), credential.message1()), text);
                }
            }
        }

        #[test]
        fn challenges_round_trip(message in proptest::collection::vec(any::<u8>(), MESSAGE_2_BYTES)) {
            prop_assert_eq!(parse_challenge(&render_challenge(&message)), Some(message));
        }
    }
}
