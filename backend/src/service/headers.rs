//! The headers of a call: CloudEvents 1.0 binary mode, idempotency, trace and signature.
//!
//! All values of one call are written into a single text, of which each header holds a part: one allocation for all.

use std::fmt::Write;
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::ServiceRequest;
use super::client::Question;
use super::idempotency::write_idempotency_key;
use super::sign::{SIGNATURE_HEADER, Signer, TIMESTAMP_HEADER};
use crate::rfc3339::Rfc3339;

/// What a header value must not hold as it is: space, `"`, `%`, and all but U+0021 to U+007E (CloudEvents HTTP binding
/// section 3.1.3.2).
const CLOUDEVENTS: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// The same inside a quoted string, where a backslash would escape what follows.
const QUOTED: &AsciiSet = &CLOUDEVENTS.add(b'\\');

const CE_SPECVERSION: HeaderName = HeaderName::from_static("ce-specversion");
const CE_ID: HeaderName = HeaderName::from_static("ce-id");
const CE_SOURCE: HeaderName = HeaderName::from_static("ce-source");
const CE_TYPE: HeaderName = HeaderName::from_static("ce-type");
const CE_SUBJECT: HeaderName = HeaderName::from_static("ce-subject");
const CE_TIME: HeaderName = HeaderName::from_static("ce-time");
const CE_NAMESPACE: HeaderName = HeaderName::from_static("ce-hfnamespace");
const CE_NAME: HeaderName = HeaderName::from_static("ce-hfname");
const CE_SESSION: HeaderName = HeaderName::from_static("ce-hfsession");
const CE_SEQUENCE: HeaderName = HeaderName::from_static("ce-hfsequence");
const CE_ATTEMPT: HeaderName = HeaderName::from_static("ce-hfattempt");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TIMESTAMP: HeaderName = HeaderName::from_static(TIMESTAMP_HEADER);
const SIGNATURE: HeaderName = HeaderName::from_static(SIGNATURE_HEADER);

/// Headers of a call, and as many more as the map then has room for without growing.
const HEADER_COUNT: usize = 20;
/// Room for the usual values; longer ones let the text grow once or twice.
const USUAL_BYTES: usize = 640;

/// A value that cannot stand in a header; the encoding above rules it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unsendable;

/// When a call is made, and the random ids of its trace: not ours to choose here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) now: SystemTime,
    pub(super) trace_id: u128,
    pub(super) span_id: u64,
}

/// All headers of the call but `Content-Length`.
pub(super) fn build(
    request: &ServiceRequest,
    signer: &Signer,
    moment: &Moment,
) -> Result<HeaderMap, Unsendable> {
    let mut values = Values {
        text: String::with_capacity(USUAL_BYTES),
        parts: [const { None }; HEADER_COUNT],
        count: 0,
    };
    write_event(&mut values, request)?;
    write_call(&mut values, request, moment)?;
    write_signature(&mut values, &request.payload, signer, moment)?;
    let mut headers = HeaderMap::with_capacity(HEADER_COUNT);
    headers.insert(HOST, request.route.host.clone());
    headers.insert(CE_SPECVERSION, HeaderValue::from_static("1.0"));
    let content_type = if request.binary {
        "application/octet-stream"
    } else {
        "application/json"
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    values.move_into(&mut headers)?;
    Ok(headers)
}

/// What the CloudEvents specification defines.
fn write_event(values: &mut Values, request: &ServiceRequest) -> Result<(), Unsendable> {
    match request.event_id.as_deref().filter(|id| !id.is_empty()) {
        Some(id) => values.add(CE_ID, format_args!("{}", utf8_percent_encode(id, CLOUDEVENTS)))?,
        None => values.add(CE_ID, format_args!("{}-{}", request.session, request.sequence))?,
    }
    let namespace = utf8_percent_encode(&request.namespace, CLOUDEVENTS);
    let name = utf8_percent_encode(&request.name, CLOUDEVENTS);
    // A device numbers its events itself, so only with it in the source is the pair of source and id its own (CloudEvents
    // section "REQUIRED Attributes"). Its characters need no encoding in a path.
    let frontend = request.session.parts().frontend.0;
    values.add(CE_SOURCE, format_args!("/holdfast/{frontend}/{}", request.device))?;
    values.add(CE_TYPE, format_args!("{namespace}.{name}"))?;
    values.add(CE_SUBJECT, format_args!("{}", request.device))?;
    values.add(CE_TIME, format_args!("{}", Rfc3339(request.received_at)))?;
    values.add(CE_NAMESPACE, format_args!("{namespace}"))?;
    values.add(CE_NAME, format_args!("{name}"))
}

/// Our extensions, the idempotency key and the trace.
fn write_call(values: &mut Values, request: &ServiceRequest, moment: &Moment) -> Result<(), Unsendable> {
    values.add(CE_SESSION, format_args!("{}", request.session))?;
    values.add(CE_SEQUENCE, format_args!("{}", request.sequence))?;
    values.add(CE_ATTEMPT, format_args!("{}", request.attempt.saturating_add(1)))?;
    let mut key = String::with_capacity(64);
    let number = (request.session, request.sequence);
    write_idempotency_key(&mut key, &request.device, number, request.retry_key.as_deref());
    values.add(
        IDEMPOTENCY_KEY,
        format_args!("\"{}\"", utf8_percent_encode(&key, QUOTED)),
    )?;
    write_trace(values, moment)
}

/// All headers of a question of our own but `Content-Length`, signed as calls are.
pub(super) fn build_question(
    question: &Question<'_>,
    signer: &Signer,
    moment: &Moment,
) -> Result<HeaderMap, Unsendable> {
    let mut values = Values {
        text: String::with_capacity(USUAL_BYTES),
        parts: [const { None }; HEADER_COUNT],
        count: 0,
    };
    values.add(CE_ID, format_args!("{}", question.id))?;
    values.add(CE_SOURCE, format_args!("/holdfast"))?;
    values.add(CE_TYPE, format_args!("{}", question.kind))?;
    values.add(CE_SUBJECT, format_args!("{}", question.device))?;
    values.add(CE_TIME, format_args!("{}", Rfc3339(moment.now)))?;
    write_trace(&mut values, moment)?;
    write_signature(&mut values, &question.body, signer, moment)?;
    let mut headers = HeaderMap::with_capacity(HEADER_COUNT);
    headers.insert(HOST, question.host.clone());
    headers.insert(CE_SPECVERSION, HeaderValue::from_static("1.0"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    values.move_into(&mut headers)?;
    Ok(headers)
}

fn write_trace(values: &mut Values, moment: &Moment) -> Result<(), Unsendable> {
    // All zeros mean "invalid" (W3C Trace Context section 3.2.2).
    let (trace, span) = (moment.trace_id.max(1), moment.span_id.max(1));
    values.add(TRACEPARENT, format_args!("00-{trace:032x}-{span:016x}-01"))
}

fn write_signature(
    values: &mut Values,
    body: &[u8],
    signer: &Signer,
    moment: &Moment,
) -> Result<(), Unsendable> {
    let seconds = moment
        .now
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    values.add(TIMESTAMP, format_args!("{seconds}"))?;
    let mut signature = String::with_capacity(64);
    let (timestamp, id) = (values.get(&TIMESTAMP), values.get(&CE_ID));
    signer.sign_into(&mut signature, timestamp.as_bytes(), id.as_bytes(), body);
    values.add(SIGNATURE, format_args!("v1={signature}"))
}

/// Header values, one after the other in one text.
struct Values {
    text: String,
    parts: [Option<(HeaderName, Range<usize>)>; HEADER_COUNT],
    count: usize,
}

impl Values {
    fn add(&mut self, name: HeaderName, value: std::fmt::Arguments<'_>) -> Result<(), Unsendable> {
        let start = self.text.len();
        self.text.write_fmt(value).map_err(|_| Unsendable)?;
        let place = self.parts.get_mut(self.count).ok_or(Unsendable)?;
        *place = Some((name, start..self.text.len()));
        self.count += 1;
        Ok(())
    }

    fn get(&self, name: &HeaderName) -> &str {
        let found = self.parts.iter().flatten().find(|(n, _)| n == name);
        found.map_or("", |(_, range)| &self.text[range.clone()])
    }

    fn move_into(self, headers: &mut HeaderMap) -> Result<(), Unsendable> {
        let text = Bytes::from(self.text);
        for (name, range) in self.parts.into_iter().flatten() {
            headers.insert(
                name,
                HeaderValue::from_maybe_shared(text.slice(range)).map_err(|_| Unsendable)?,
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::RouteTable;
    use holdfast_proto::{Sequence, SessionId};
    use proptest::prelude::*;
    use std::time::Duration;

    pub(super) fn request() -> ServiceRequest {
        let table = RouteTable::parse("[[route]]\nnamespace=\"*\"\nname=\"*\"\nurl=\"http://h:1/\"").unwrap();
        ServiceRequest {
            route: table.routes()[0].clone(),
            namespace: "Weather".into(),
            name: "Query".into(),
            event_id: Some("req-1".into()),
            device: "speaker-1".parse().unwrap(),
            session: "00010000-0000-8001-8000-000000000004"
                .parse::<SessionId>()
                .unwrap(),
            sequence: Sequence(7),
            attempt: 0,
            binary: false,
            payload: Bytes::from_static(b"{}"),
            retry_key: None,
            received_at: UNIX_EPOCH + Duration::from_millis(1_769_850_307_042),
        }
    }

    fn headers(request: &ServiceRequest) -> HeaderMap {
        let moment = Moment {
            now: UNIX_EPOCH + Duration::from_secs(42),
            trace_id: 0xab,
            span_id: 0xcd,
        };
        build(request, &Signer::from_hex(&"0b".repeat(32)).unwrap(), &moment).unwrap()
    }

    #[test]
    fn a_call_has_the_documented_headers() {
        let headers = headers(&request());
        for (name, value) in [
            ("host", "h:1"),
            ("content-type", "application/json"),
            ("ce-specversion", "1.0"),
            ("ce-id", "req-1"),
            ("ce-source", "/holdfast/1/speaker-1"),
            ("ce-type", "Weather.Query"),
            ("ce-subject", "speaker-1"),
            ("ce-time", "2026-01-31T09:05:07.042Z"),
            ("ce-hfnamespace", "Weather"),
            ("ce-hfname", "Query"),
            ("ce-hfsession", "00010000-0000-8001-8000-000000000004"),
            ("ce-hfsequence", "7"),
            ("ce-hfattempt", "1"),
            ("idempotency-key", "\"00010000-0000-8001-8000-000000000004-7\""),
            (
                "traceparent",
                "00-000000000000000000000000000000ab-00000000000000cd-01",
            ),
            ("holdfast-timestamp", "42"),
        ] {
            assert_eq!(headers[name], value, "{name}");
        }
        let mut signature = "v1=".to_owned();
        Signer::from_hex(&"0b".repeat(32))
            .unwrap()
            .sign_into(&mut signature, b"42", b"req-1", b"{}");
        assert_eq!(headers["holdfast-signature"], signature);
        assert_eq!(headers.len(), 17);
    }

    #[test]
    fn absent_ids_and_retries() {
        let request = ServiceRequest {
            event_id: None,
            retry_key: Some("a\"b\\c d".into()),
            attempt: 2,
            binary: true,
            ..request()
        };
        let headers = headers(&request);
        assert_eq!(headers["ce-id"], "00010000-0000-8001-8000-000000000004-7");
        assert_eq!(headers["idempotency-key"], "\"speaker-1/a%22b%5Cc%20d\"");
        assert_eq!(headers["ce-hfattempt"], "3");
        assert_eq!(headers["content-type"], "application/octet-stream");
    }

    #[test]
    fn the_specification_s_example_is_encoded_as_it_says() {
        let request = ServiceRequest {
            name: "Euro € 😀".into(),
            ..request()
        };
        assert_eq!(headers(&request)["ce-hfname"], "Euro%20%E2%82%AC%20%F0%9F%98%80");
    }

    proptest! {
        #[test]
        fn what_a_device_sends_cannot_leave_its_value(text in any::<String>(), retry in any::<String>()) {
            prop_assume!(!text.is_empty());
            let request = ServiceRequest {
                namespace: text.clone(),
                name: text.clone(),
                event_id: Some(text.clone()),
                retry_key: Some(retry),
                ..request()
            };
            let headers = headers(&request);
            prop_assert_eq!(headers.len(), 17);
            for value in headers.values() {
                prop_assert!(value.as_bytes().iter().all(|b| (0x20..=0x7e).contains(b)));
            }
            let decoded = percent_encoding::percent_decode(headers["ce-id"].as_bytes()).decode_utf8().unwrap();
            prop_assert_eq!(decoded, text);
            let quoted = headers["idempotency-key"].to_str().unwrap();
            prop_assert!(!quoted[1..quoted.len() - 1].contains(['"', '\\']));
        }
    }
}
