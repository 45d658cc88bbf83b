//! Reading the body of `POST /v1/messages`, field by field, so that an error names the field.

use std::borrow::Cow;

use axum::http::StatusCode;
use holdfast_proto::event::MAX_FIELD_BYTES;
use holdfast_proto::{DeviceId, SessionId};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{Problem, PushTarget};

/// The body, with each value still as it was written. Null counts as absent, but for the payload.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body<'a> {
    #[serde(borrow)]
    to: Option<&'a RawValue>,
    #[serde(borrow)]
    namespace: Option<&'a RawValue>,
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "even_null")]
    pub(super) payload: Option<&'a RawValue>,
    #[serde(borrow)]
    binary: Option<&'a RawValue>,
    #[serde(borrow)]
    keep: Option<&'a RawValue>,
    #[serde(borrow)]
    wait: Option<&'a RawValue>,
    #[serde(borrow)]
    topic: Option<&'a RawValue>,
    #[serde(borrow)]
    ttl_s: Option<&'a RawValue>,
    #[serde(borrow)]
    priority: Option<&'a RawValue>,
    #[serde(borrow)]
    collapse_key: Option<&'a RawValue>,
    #[serde(borrow)]
    overflow: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct To<'a> {
    #[serde(borrow)]
    device: Option<&'a RawValue>,
    #[serde(borrow)]
    devices: Option<&'a RawValue>,
    #[serde(borrow)]
    session: Option<&'a RawValue>,
    #[serde(borrow)]
    group: Option<&'a RawValue>,
    #[serde(borrow)]
    all: Option<&'a RawValue>,
}

impl<'a> Body<'a> {
    /// Reads the object and checks the options that have nothing to do with the message itself.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Problem> {
        let text = std::str::from_utf8(bytes).map_err(|_| bad_json("the body is not UTF-8"))?;
        if !text.trim_ascii_start().starts_with('{') {
            return Err(bad_json("the body is not a JSON object"));
        }
        let body: Self = serde_json::from_str(text).map_err(|error| structural("body", &error))?;
        body.check_options()?;
        Ok(body)
    }

    fn check_options(&self) -> Result<(), Problem> {
        if boolean("keep", self.keep)? == Some(true) {
            return Err(Problem::unsupported("keep"));
        }
        match string("wait", self.wait)?.as_deref() {
            None | Some("written") => {}
            Some("acked") => return Err(Problem::unsupported("wait")),
            Some(_) => {
                return Err(Problem::field(
                    "wait",
                    "allowed is \"written\", \"acked\" or null",
                ));
            }
        }
        let unbuilt = [
            ("topic", self.topic),
            ("ttl_s", self.ttl_s),
            ("priority", self.priority),
            ("collapse_key", self.collapse_key),
            ("overflow", self.overflow),
        ];
        match unbuilt.iter().find(|(_, value)| value.is_some()) {
            Some((field, _)) => Err(Problem::unsupported(field)),
            None => Ok(()),
        }
    }

    pub(super) fn target(&self) -> Result<PushTarget, Problem> {
        const ALLOWED: &str = "exactly one of device, devices, session, group or all is required";
        let raw = self.to.ok_or_else(|| Problem::field("to", "is required"))?;
        if !raw.get().starts_with('{') {
            return Err(Problem::field("to", ALLOWED));
        }
        let to: To<'_> = serde_json::from_str(raw.get()).map_err(|error| structural("to", &error))?;
        let given = [to.device, to.devices, to.session, to.group, to.all];
        if given.iter().flatten().count() != 1 {
            return Err(Problem::field("to", ALLOWED));
        }
        if to.devices.is_some() {
            return Err(Problem::unsupported("to.devices"));
        }
        if to.group.is_some() {
            return Err(Problem::unsupported("to.group"));
        }
        if let Some(device) = string("to.device", to.device)? {
            let device: DeviceId = device
                .parse()
                .map_err(|error| Problem::field("to.device", error))?;
            return Ok(PushTarget::Device(device));
        }
        if let Some(session) = string("to.session", to.session)? {
            let session: SessionId = session
                .parse()
                .map_err(|error| Problem::field("to.session", error))?;
            return Ok(PushTarget::Session(session));
        }
        if boolean("to.all", to.all)? == Some(true) {
            Ok(PushTarget::All)
        } else {
            Err(Problem::field("to.all", "allowed is true"))
        }
    }

    pub(super) fn namespace(&self) -> Result<Cow<'a, str>, Problem> {
        header_field("namespace", self.namespace)
    }

    pub(super) fn name(&self) -> Result<Cow<'a, str>, Problem> {
        header_field("name", self.name)
    }

    /// The base64 text, if there is one.
    pub(super) fn binary(&self) -> Result<Option<Cow<'a, str>>, Problem> {
        string("binary", self.binary)
    }
}

fn header_field<'a>(field: &str, value: Option<&'a RawValue>) -> Result<Cow<'a, str>, Problem> {
    let text = string(field, value)?.ok_or_else(|| Problem::field(field, "is required"))?;
    if text.is_empty() || text.len() > MAX_FIELD_BYTES {
        return Err(Problem::field(
            field,
            format_args!("allowed are 1 to {MAX_FIELD_BYTES} bytes"),
        ));
    }
    Ok(text)
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

fn string<'a>(field: &str, value: Option<&'a RawValue>) -> Result<Option<Cow<'a, str>>, Problem> {
    let Some(value) = value else { return Ok(None) };
    let text: Text<'a> =
        serde_json::from_str(value.get()).map_err(|_| Problem::field(field, "wanted is a string"))?;
    Ok(Some(text.0))
}

fn boolean(field: &str, value: Option<&RawValue>) -> Result<Option<bool>, Problem> {
    let Some(value) = value else { return Ok(None) };
    serde_json::from_str(value.get())
        .map(Some)
        .map_err(|_| Problem::field(field, "wanted is true or false"))
}

fn even_null<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Tells what is not JSON from JSON with unknown or repeated fields, which serde names.
fn structural(field: &str, error: &serde_json::Error) -> Problem {
    if error.is_data() {
        Problem::field(field, error)
    } else {
        bad_json(&error.to_string())
    }
}

fn bad_json(detail: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad_json", detail)
}
