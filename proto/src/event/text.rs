//! Reading a text message: `{"header":{"namespace":…,"name":…,"id":…,"retry_key":…},"payload":…}`.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{Field, HeaderError, bounded, required};

/// A text message's header, and where its payload is. Strings without escapes borrow from the message.
#[derive(Debug, Clone)]
pub struct TextEvent<'a> {
    pub namespace: Cow<'a, str>,
    pub name: Cow<'a, str>,
    /// `None` when absent, null or empty.
    pub id: Option<Cow<'a, str>>,
    /// `None` when absent, null or empty.
    pub retry_key: Option<Cow<'a, str>>,
    /// The payload's bytes as they were sent; `None` when there is none, which means null.
    pub payload: Option<&'a RawValue>,
}

impl TextEvent<'_> {
    /// The payload as a part of `message`, the buffer that this event was read from, without a copy.
    pub fn payload_in(&self, message: &Bytes) -> Bytes {
        match self.payload {
            Some(raw) => message.slice_ref(raw.get().as_bytes()),
            None => Bytes::from_static(b"null"),
        }
    }
}

/// Reads the header of a text message. Unknown fields are skipped; of a repeated field the last counts, as in most JSON
/// parsers. The payload is checked to be JSON and UTF-8, and otherwise left alone.
pub fn parse_text(message: &[u8]) -> Result<TextEvent<'_>, HeaderError> {
    let mut parser = serde_json::Deserializer::from_slice(message);
    let envelope = parser
        .deserialize_map(EnvelopeVisitor)
        .map_err(|_| HeaderError::NotJson)?;
    parser.end().map_err(|_| HeaderError::NotJson)?;
    let header = envelope.header.ok_or(HeaderError::NoHeader)?;
    let namespace = header
        .namespace
        .text(Field::Namespace)?
        .ok_or(HeaderError::Missing(Field::Namespace))?;
    required(Field::Namespace, &namespace)?;
    let name = header
        .name
        .text(Field::Name)?
        .ok_or(HeaderError::Missing(Field::Name))?;
    required(Field::Name, &name)?;
    Ok(TextEvent {
        namespace,
        name,
        id: header.id.optional(Field::Id)?,
        retry_key: header.retry_key.optional(Field::RetryKey)?,
        payload: envelope.payload,
    })
}

#[derive(Default)]
struct Envelope<'a> {
    header: Option<Header<'a>>,
    payload: Option<&'a RawValue>,
}

#[derive(Default)]
struct Header<'a> {
    namespace: Value<'a>,
    name: Value<'a>,
    id: Value<'a>,
    retry_key: Value<'a>,
}

/// A header field's value, told apart far enough to say what is wrong with it.
#[derive(Default)]
enum Value<'a> {
    #[default]
    Absent,
    Text(Cow<'a, str>),
    Other,
}

impl<'a> Value<'a> {
    fn text(self, field: Field) -> Result<Option<Cow<'a, str>>, HeaderError> {
        match self {
            Self::Absent => Ok(None),
            Self::Text(text) => Ok(Some(text)),
            Self::Other => Err(HeaderError::NotText(field)),
        }
    }

    fn optional(self, field: Field) -> Result<Option<Cow<'a, str>>, HeaderError> {
        let Some(text) = self.text(field)?.filter(|t| !t.is_empty()) else {
            return Ok(None);
        };
        bounded(field, &text)?;
        Ok(Some(text))
    }
}

struct EnvelopeVisitor;

impl<'de> Visitor<'de> for EnvelopeVisitor {
    type Value = Envelope<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut envelope = Envelope::default();
        while let Some(key) = map.next_key::<Key<'de>>()? {
            match &*key.0 {
                "header" => envelope.header = Some(map.next_value()?),
                "payload" => envelope.payload = Some(map.next_value()?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(envelope)
    }
}

impl<'de> Deserialize<'de> for Header<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a header")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut header = Header::default();
        while let Some(key) = map.next_key::<Key<'de>>()? {
            match &*key.0 {
                "namespace" => header.namespace = map.next_value()?,
                "name" => header.name = map.next_value()?,
                "id" => header.id = map.next_value()?,
                "retry_key" => header.retry_key = map.next_value()?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(header)
    }
}

/// A key of an object, borrowed where it has no escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_str(ValueVisitor)? {
            Value::Text(text) => Ok(Self(text)),
            Value::Absent | Value::Other => Err(D::Error::custom("a key is a string")),
        }
    }
}

impl<'de> Deserialize<'de> for Value<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Value::Absent)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Value::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Value::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Value::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Value::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fails(message: &str) -> HeaderError {
        parse_text(message.as_bytes()).expect_err(message)
    }

    #[test]
    fn a_header_is_read_and_the_payload_passed_through() {
        let message = Bytes::from_static(
            br#" {"payload" : { "b":1.10,  "a":[ ] } , "x":[1,{"y":2}],
                 "header":{"namespace":"Wea\u0074her","name":"Query","id":"req-1","retry_key":null,"new":{"z":[]}}} "#,
        );
        let event = parse_text(&message).unwrap();
        assert_eq!((&*event.namespace, &*event.name), ("Weather", "Query"));
        assert_eq!(
            (event.id.as_deref(), event.retry_key.as_deref()),
            (Some("req-1"), None)
        );
        assert!(matches!(event.name, Cow::Borrowed(_)));
        assert_eq!(event.payload_in(&message), &br#"{ "b":1.10,  "a":[ ] }"#[..]);
    }

    #[test]
    fn a_missing_or_null_payload_is_null() {
        for text in [
            r#"{"header":{"namespace":"N","name":"n"}}"#,
            r#"{"header":{"namespace":"N","name":"n"},"payload":null}"#,
        ] {
            let message = Bytes::copy_from_slice(text.as_bytes());
            assert_eq!(parse_text(&message).unwrap().payload_in(&message), "null");
        }
    }

    #[test]
    fn of_repeated_fields_the_last_counts() {
        let text = r#"{"payload":1,"header":{"namespace":"A","namespace":"B","name":"n"},"payload":2}"#;
        let event = parse_text(text.as_bytes()).unwrap();
        assert_eq!(&*event.namespace, "B");
        assert_eq!(event.payload.unwrap().get(), "2");
    }

    #[test]
    fn empty_optional_fields_are_absent() {
        let text = r#"{"header":{"namespace":"A","name":"n","id":"","retry_key":""}}"#;
        let event = parse_text(text.as_bytes()).unwrap();
        assert!(event.id.is_none() && event.retry_key.is_none());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for text in [
            "",
            "null",
            "[]",
            "{",
            "{}x",
            r#"{"header":7}"#,
            r#"{"header":{"namespace":"N"}"#,
        ] {
            assert_eq!(fails(text), HeaderError::NotJson, "{text}");
        }
        assert_eq!(
            parse_text(b"{\"header\":{},\"payload\":\"\xff\"}").unwrap_err(),
            HeaderError::NotJson
        );
        assert_eq!(fails("{}"), HeaderError::NoHeader);
        assert_eq!(
            fails(r#"{"header":{"name":"n"}}"#),
            HeaderError::Missing(Field::Namespace)
        );
        assert_eq!(
            fails(r#"{"header":{"namespace":"N","name":""}}"#),
            HeaderError::Missing(Field::Name)
        );
        assert_eq!(
            fails(r#"{"header":{"namespace":"N","name":"n","id":7}}"#),
            HeaderError::NotText(Field::Id)
        );
        let long = "x".repeat(129);
        let text = format!(r#"{{"header":{{"namespace":"N","name":"n","retry_key":"{long}"}}}}"#);
        assert_eq!(fails(&text), HeaderError::TooLong(Field::RetryKey));
        let text = format!(r#"{{"header":{{"namespace":"N","name":"{long}"}}}}"#);
        assert_eq!(fails(&text), HeaderError::TooLong(Field::Name));
    }

    #[test]
    fn deep_nesting_neither_overflows_nor_passes_as_a_header() {
        let deep = "[".repeat(200_000);
        assert_eq!(
            fails(&format!(r#"{{"header":{{"id":{deep}"#)),
            HeaderError::NotJson
        );
        let payload = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
        let text = format!(r#"{{"payload":{payload},"header":{{"namespace":"N","name":"n"}}}}"#);
        assert_eq!(
            parse_text(text.as_bytes()).unwrap().payload.unwrap().get(),
            payload
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_text(&bytes);
        }

        #[test]
        fn what_serde_json_writes_is_read_back(ns in "\\PC{1,32}", name in "\\PC{1,32}", id in "\\PC{0,32}", payload in "\\PC{0,64}") {
            let json = serde_json::json!({"header": {"namespace": ns, "name": name, "id": id}, "payload": payload});
            let text = json.to_string();
            let event = parse_text(text.as_bytes()).unwrap();
            prop_assert_eq!(&*event.namespace, &*ns);
            prop_assert_eq!(&*event.name, &*name);
            prop_assert_eq!(event.id.as_deref().unwrap_or(""), &*id);
            let raw = event.payload.unwrap().get();
            prop_assert_eq!(serde_json::from_str::<String>(raw).unwrap(), payload);
        }
    }
}
