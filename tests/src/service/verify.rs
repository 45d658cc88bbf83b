//! What every call to a service must carry (design: to services): CloudEvents 1.0 in binary mode, the idempotency key,
//! a W3C trace context, and the signature.

use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::HeaderMap;
use sha2::Sha256;

/// How far the signature's timestamp may be from now, in seconds.
const CLOCK_LEEWAY_S: u64 = 60;

/// The numbers of a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) sequence: u64,
    pub(super) attempt: u32,
}

/// Checks headers and signature; the error says what is broken.
pub(super) fn verify(headers: &HeaderMap, body: &[u8], signing_key: &[u8]) -> Result<Facts, String> {
    let event = Headers(headers);
    event.equals("ce-specversion", "1.0")?;
    let source = event.get("ce-source")?;
    let named = source
        .strip_prefix("/holdfast/")
        .and_then(|path| path.split_once('/'));
    let (frontend, device) =
        named.ok_or_else(|| format!("ce-source {source:?} names no frontend and device"))?;
    check(frontend.parse::<u16>().is_ok(), || {
        format!("ce-source {source:?} names no frontend")
    })?;
    event.equals("ce-subject", device)?;
    let kind = format!("{}.{}", event.get("ce-hfnamespace")?, event.get("ce-hfname")?);
    event.equals("ce-type", &kind)?;
    let time = event.get("ce-time")?;
    check(is_rfc3339(time), || format!("ce-time {time:?} is not RFC 3339"))?;
    let attempt = event.number("ce-hfattempt")? as u32;
    check(attempt >= 1, || "ce-hfattempt counts from 1".to_owned())?;
    let sequence = event.number("ce-hfsequence")?;
    check_key(&event, sequence)?;
    check_trace(event.get("traceparent")?)?;
    let content = event.get("content-type")?;
    let known = ["application/json", "application/octet-stream"].contains(&content);
    check(known, || format!("content-type {content:?}"))?;
    check_signature(&event, body, signing_key)?;
    Ok(Facts { sequence, attempt })
}

struct Headers<'a>(&'a HeaderMap);

impl<'a> Headers<'a> {
    /// The header, which must be there once, not empty, and printable ASCII.
    fn get(&self, name: &str) -> Result<&'a str, String> {
        let mut values = self.0.get_all(name).iter();
        let value = values.next().ok_or_else(|| format!("{name} is missing"))?;
        check(values.next().is_none(), || format!("{name} is there twice"))?;
        let value = value.to_str().map_err(|_| format!("{name} is not ASCII"))?;
        check(!value.is_empty(), || format!("{name} is empty"))?;
        Ok(value)
    }

    fn equals(&self, name: &str, expected: &str) -> Result<(), String> {
        let value = self.get(name)?;
        check(value == expected, || {
            format!("{name} is {value:?}, not {expected:?}")
        })
    }

    fn number(&self, name: &str) -> Result<u64, String> {
        let value = self.get(name)?;
        value
            .parse()
            .map_err(|_| format!("{name} {value:?} is not a number"))
    }
}

fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// A structured-field string (RFC 8941 section 3.3.3): `"<session>-<sequence>"`, or `"<device>/<retry key>"`.
fn check_key(event: &Headers<'_>, sequence: u64) -> Result<(), String> {
    let quoted = event.get("idempotency-key")?;
    let key = quoted.strip_prefix('"').and_then(|k| k.strip_suffix('"'));
    let key = key.ok_or_else(|| format!("idempotency-key {quoted} is not quoted"))?;
    let own = format!("{}-{sequence}", event.get("ce-hfsession")?);
    let repeatable = format!("{}/", event.get("ce-subject")?);
    check(key == own || key.starts_with(&repeatable), || {
        format!("idempotency-key {key}, not {own}")
    })
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, ids not all zero (W3C Trace Context section 3.2.2).
fn check_trace(value: &str) -> Result<(), String> {
    let parts: Vec<&str> = value.split('-').collect();
    let lengths: Vec<usize> = parts.iter().map(|p| p.len()).collect();
    let hex = |p: &&str| p.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let nonzero = |p: &&&str| p.bytes().any(|b| b != b'0');
    let good = lengths == [2, 32, 16, 2]
        && parts.iter().all(hex)
        && parts[0] == "00"
        && parts[1..3].iter().filter(nonzero).count() == 2;
    check(good, || format!("traceparent {value:?}"))
}

fn check_signature(event: &Headers<'_>, body: &[u8], key: &[u8]) -> Result<(), String> {
    let timestamp = event.number("holdfast-timestamp")?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    check(now.abs_diff(timestamp) <= CLOCK_LEEWAY_S, || {
        format!("holdfast-timestamp {timestamp} at {now}")
    })?;
    let signature = event.get("holdfast-signature")?;
    let hex = signature
        .strip_prefix("v1=")
        .ok_or_else(|| format!("holdfast-signature {signature}"))?;
    let expected = sign(key, timestamp, event.get("ce-id")?, body);
    check(hex == expected, || {
        format!("holdfast-signature {hex}, not {expected}")
    })
}

/// Hex of HMAC-SHA256 over `<timestamp>.<ce-id>.<body>`, the id as it stands in the header.
pub(super) fn sign(key: &[u8], timestamp: u64, id: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(format!("{timestamp}.{id}.").as_bytes());
    mac.update(body);
    mac.finalize()
        .into_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The shape of `2026-01-02T03:04:05[.6]Z` or with an offset.
fn is_rfc3339(text: &str) -> bool {
    let shape = b"dddd-dd-ddTdd:dd:dd";
    let bytes = text.as_bytes();
    let fits = |(byte, want): (&u8, &u8)| {
        if *want == b'd' {
            byte.is_ascii_digit()
        } else {
            byte == want
        }
    };
    let zone = |rest: &str| rest == "Z" || (rest.len() == 6 && rest.starts_with(['+', '-']));
    if bytes.len() <= shape.len() || !bytes.iter().zip(shape).all(fits) {
        return false;
    }
    let rest = &text[shape.len()..];
    zone(
        rest.strip_prefix('.')
            .map_or(rest, |r| r.trim_start_matches(|c: char| c.is_ascii_digit())),
    )
}
