//! Control messages that are not answered by the frontend: a word after `@`, then optionally JSON.

use bytes::Bytes;
use holdfast_proto::link::frames::{Control, ControlReply};
use holdfast_proto::link::session_id;

use super::Malformed;

/// Words that the protocol knows and this version does not do.
const NOT_BUILT: [&str; 4] = ["ack", "join", "leave", "sync"];
/// Bytes of an unknown word that are repeated to the device.
const MAX_WORD_BYTES: usize = 32;

/// Every control message is answered, here always with an error.
pub fn handle_control(control: Control) -> Result<ControlReply, Malformed> {
    let id = session_id(control.session.and_then(|s| s.id))?;
    let (word, _) = split_control(&control.text).unwrap_or_default();
    let code = if NOT_BUILT.contains(&word) {
        "unsupported"
    } else {
        "unknown_control"
    };
    let reply = control_error(word, code);
    Ok(ControlReply {
        id: Some(id.into()),
        number: control.number,
        reply,
    })
}

/// `@error {"control":…,"code":…}`
pub fn control_error(word: &str, code: &str) -> Bytes {
    let word = &word[..word.floor_char_boundary(MAX_WORD_BYTES)];
    let control = serde_json::Value::from(word);
    format!("@error {{\"control\":{control},\"code\":\"{code}\"}}").into()
}

/// The word without its `@`, and what follows it without white space around. `None` unless it is text beginning with `@`.
pub(super) fn split_control(text: &[u8]) -> Option<(&str, &str)> {
    let text = std::str::from_utf8(text).ok()?.strip_prefix('@')?;
    let end = text
        .find(|c: char| c.is_ascii_whitespace() || c == '{')
        .unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    Some((word, rest.trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::lifecycle::tests::session;

    fn reply(text: &str) -> String {
        let control = Control {
            session: Some(session(1)),
            number: 7,
            text: Bytes::copy_from_slice(text.as_bytes()),
            attempt: 0,
        };
        let reply = handle_control(control).unwrap();
        assert_eq!(reply.number, 7);
        String::from_utf8(reply.reply.to_vec()).unwrap()
    }

    #[test]
    fn known_and_unknown_words_are_told_apart() {
        assert_eq!(
            reply("@join {\"group\":\"g\"}"),
            r#"@error {"control":"join","code":"unsupported"}"#
        );
        assert_eq!(
            reply("@ack{}"),
            r#"@error {"control":"ack","code":"unsupported"}"#
        );
        assert_eq!(
            reply("@dance"),
            r#"@error {"control":"dance","code":"unknown_control"}"#
        );
        assert_eq!(reply("@"), r#"@error {"control":"","code":"unknown_control"}"#);
        assert!(
            reply(&format!("@{}", "é\"".repeat(100))).len() < 100,
            "a long word is cut"
        );
    }

    #[test]
    fn a_frame_without_a_session_is_malformed() {
        assert_eq!(handle_control(Control::default()), Err(Malformed));
    }
}
