//! A session's small state, kept by the frontend and read only here: the attributes that a device sets with `@update`.
//!
//! The first byte is the format. Format 0, like no blob at all, holds nothing; format 1 is followed by JSON:
//! `{"attributes":{…}}`. A format from the future is left as it is.

use bytes::Bytes;
use holdfast_proto::link::frames::{BlobWrite, Update, Updated};
use holdfast_proto::link::session_id;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Malformed;
use super::control::{control_error, split_control};

/// Most bytes of a blob: frontends keep it with every session.
pub const MAX_BLOB_BYTES: usize = 1024;
/// Most attributes of a session.
pub const MAX_ATTRIBUTES: usize = 16;

const FORMAT_EMPTY: u8 = 0;
const FORMAT_JSON: u8 = 1;

/// Why an `@update` was not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    #[error("not an object of attributes that are text, numbers or booleans")]
    Invalid,
    #[error("more than {MAX_ATTRIBUTES} attributes")]
    TooMany,
    #[error("the session's state would be over {MAX_BLOB_BYTES} bytes")]
    TooLarge,
    /// Written by a later version: changing it would lose what that version knows.
    #[error("the session's state cannot be read")]
    Unreadable,
}

impl UpdateError {
    pub fn code(self) -> &'static str {
        match self {
            Self::Invalid => "invalid_update",
            Self::TooMany => "too_many_attributes",
            Self::TooLarge => "state_too_large",
            Self::Unreadable => "state_unreadable",
        }
    }
}

/// Answers an UPDATE, with the new blob or an error for the device.
pub fn handle_update(update: Update) -> Result<Updated, Malformed> {
    let session = update.session.ok_or(Malformed)?;
    let id = session_id(session.id)?;
    let (reply, blob) = match apply_update(&session.blob, &update.text) {
        Ok(blob) => {
            let version = session.blob_version.wrapping_add(1);
            let reply = format!("@updated {{\"version\":{version}}}").into();
            (
                reply,
                Some(BlobWrite {
                    blob,
                    base_version: session.blob_version,
                }),
            )
        }
        Err(error) => (control_error("update", error.code()), None),
    };
    Ok(Updated {
        id: Some(id.into()),
        number: update.number,
        reply,
        blob,
    })
}

#[derive(Default, Serialize, Deserialize)]
struct State {
    #[serde(default)]
    attributes: Map<String, Value>,
}

#[derive(Deserialize)]
struct Change {
    attributes: Map<String, Value>,
}

/// The blob with the attributes of an `@update` message merged into it.
pub fn apply_update(blob: &[u8], text: &[u8]) -> Result<Bytes, UpdateError> {
    let mut state = read_blob(blob)?;
    let (_, json) = split_control(text).ok_or(UpdateError::Invalid)?;
    let change: Change = serde_json::from_str(json).map_err(|_| UpdateError::Invalid)?;
    if change.attributes.len() > MAX_ATTRIBUTES {
        return Err(UpdateError::TooMany);
    }
    if !change
        .attributes
        .values()
        .all(|v| v.is_string() || v.is_number() || v.is_boolean())
    {
        return Err(UpdateError::Invalid);
    }
    state.attributes.extend(change.attributes);
    if state.attributes.len() > MAX_ATTRIBUTES {
        return Err(UpdateError::TooMany);
    }
    let mut written = vec![FORMAT_JSON];
    serde_json::to_writer(&mut written, &state).map_err(|_| UpdateError::Invalid)?;
    if written.len() > MAX_BLOB_BYTES {
        Err(UpdateError::TooLarge)
    } else {
        Ok(written.into())
    }
}

fn read_blob(blob: &[u8]) -> Result<State, UpdateError> {
    match blob.split_first() {
        None | Some((&FORMAT_EMPTY, _)) => Ok(State::default()),
        Some((&FORMAT_JSON, json)) => serde_json::from_slice(json).map_err(|_| UpdateError::Unreadable),
        Some(_) => Err(UpdateError::Unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::lifecycle::tests::session;
    use proptest::prelude::*;

    fn apply(blob: &[u8], json: &str) -> Result<Bytes, UpdateError> {
        apply_update(blob, format!("@update {json}").as_bytes())
    }

    #[test]
    fn attributes_are_merged() {
        let one = apply(b"", r#"{"attributes":{"room":"kitchen","volume":3}}"#).unwrap();
        assert_eq!(one[0], FORMAT_JSON);
        let two = apply(&one, r#"{"attributes":{"volume":4,"muted":true}}"#).unwrap();
        assert_eq!(
            &two[1..],
            br#"{"attributes":{"muted":true,"room":"kitchen","volume":4}}"#
        );
        assert_eq!(
            apply(&[FORMAT_EMPTY, 9, 9], r#"{"attributes":{}}"#).unwrap()[0],
            FORMAT_JSON
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (json, expected) in [
            ("", UpdateError::Invalid),
            ("[]", UpdateError::Invalid),
            (r#"{"attributes":{"a":null}}"#, UpdateError::Invalid),
            (r#"{"attributes":{"a":{}}}"#, UpdateError::Invalid),
            (
                &format!(r#"{{"attributes":{{"a":"{}"}}}}"#, "x".repeat(1024)),
                UpdateError::TooLarge,
            ),
        ] {
            assert_eq!(apply(b"", json), Err(expected), "{json}");
        }
        let many: Vec<String> = (0..17).map(|n| format!("\"a{n}\":1")).collect();
        let (all, most) = (many.join(","), many[..16].join(","));
        assert_eq!(
            apply(b"", &format!("{{\"attributes\":{{{all}}}}}")),
            Err(UpdateError::TooMany)
        );
        let full = apply(b"", &format!("{{\"attributes\":{{{most}}}}}")).unwrap();
        assert_eq!(
            apply(&full, r#"{"attributes":{"b":1}}"#),
            Err(UpdateError::TooMany)
        );
        assert_eq!(
            apply(&[7], r#"{"attributes":{"b":1}}"#),
            Err(UpdateError::Unreadable)
        );
    }

    #[test]
    fn an_update_is_answered_with_the_next_version_or_an_error() {
        let mut update = Update {
            session: Some(session(1)),
            number: 3,
            ..Default::default()
        };
        update.session.as_mut().unwrap().blob_version = 4;
        let bad = handle_update(update.clone()).unwrap();
        assert_eq!(
            (&bad.reply[..], bad.blob),
            (
                &br#"@error {"control":"update","code":"invalid_update"}"#[..],
                None
            )
        );
        update.text = Bytes::from_static(b"@update {\"attributes\":{\"a\":1}}");
        let good = handle_update(update).unwrap();
        assert_eq!(
            (&good.reply[..], good.blob.unwrap().base_version),
            (&br#"@updated {"version":5}"#[..], 4)
        );
        assert_eq!(handle_update(Update::default()), Err(Malformed));
    }

    proptest! {
        #[test]
        fn any_blob_and_text_are_survived(blob in prop::collection::vec(any::<u8>(), 0..64), text in "\\PC{0,64}") {
            let _ = apply_update(&blob, text.as_bytes());
        }
    }
}
