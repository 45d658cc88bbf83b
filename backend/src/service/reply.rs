//! Reading what a service answered, within the route's limit.

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use serde_json::value::RawValue;

use super::{CallOutcome, FailureDetail};

/// Judges the status, then reads the body. A body that is not wanted is left unread, which costs the connection.
pub(super) async fn read(
    response: http::Response<Incoming>,
    limit: usize,
    binary: bool,
) -> Result<CallOutcome, FailureDetail> {
    let status = response.status();
    if !status.is_success() {
        return Err(FailureDetail::Status(status.as_u16()));
    }
    let body = collect(response.into_body(), limit).await?;
    if body.is_empty() || status == StatusCode::NO_CONTENT {
        return Ok(CallOutcome::Empty);
    }
    if binary {
        Ok(CallOutcome::Reply(body))
    } else {
        json(&body).map(CallOutcome::Reply)
    }
}

async fn collect(mut body: Incoming, limit: usize) -> Result<Bytes, FailureDetail> {
    let announced = body.size_hint().lower();
    if announced > limit as u64 {
        return Err(FailureDetail::ReplyTooLarge);
    }
    let Some(first) = next_chunk(&mut body).await? else {
        return Ok(Bytes::new());
    };
    if first.len() > limit {
        return Err(FailureDetail::ReplyTooLarge);
    }
    let Some(second) = next_chunk(&mut body).await? else {
        return Ok(first);
    };
    let mut whole = BytesMut::with_capacity((announced as usize).max(first.len() + second.len()).min(limit));
    whole.extend_from_slice(&first);
    let mut chunk = Some(second);
    while let Some(bytes) = chunk {
        if bytes.len() > limit - whole.len() {
            return Err(FailureDetail::ReplyTooLarge);
        }
        whole.extend_from_slice(&bytes);
        chunk = next_chunk(&mut body).await?;
    }
    Ok(whole.freeze())
}

/// The next piece of data; trailers are skipped.
async fn next_chunk(body: &mut Incoming) -> Result<Option<Bytes>, FailureDetail> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| FailureDetail::Broken)?;
        if let Ok(data) = frame.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// The one JSON value in `body`, checked without building it. `RawValue` also checks that it is UTF-8.
fn json(body: &Bytes) -> Result<Bytes, FailureDetail> {
    let value: &RawValue = serde_json::from_slice(body).map_err(|_| FailureDetail::NotJson)?;
    Ok(body.slice_ref(value.get().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_checked_and_trimmed() {
        let check = |text: &'static [u8]| json(&Bytes::from_static(text));
        assert_eq!(check(b" {\"a\": [1, 2]}\n").unwrap(), "{\"a\": [1, 2]}");
        for bad in [&b"{} {}"[..], b"{", b"hello", b"\"\xff\"", b" ", b"<html>"] {
            assert_eq!(check(bad), Err(FailureDetail::NotJson));
        }
    }
}
