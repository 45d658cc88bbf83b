//! Reading what a service answered, within the route's limit and the memory that there is.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use serde_json::value::RawValue;

use super::memory::{ReplyMemory, ReplyRoom, UNRESERVED_BYTES};
use super::{CallOutcome, FailureDetail};
use crate::route::Route;

/// What a body may take, and until when it may wait for that.
#[derive(Clone, Copy)]
pub(super) struct Limits<'a> {
    pub(super) route: &'a Route,
    pub(super) memory: &'a ReplyMemory,
    pub(super) room_by: Instant,
}

/// Judges the status, then reads the body. A body that is not wanted is left unread, which costs the connection.
pub(super) async fn read(
    response: http::Response<Incoming>,
    limits: Limits<'_>,
    binary: bool,
) -> Result<(CallOutcome, ReplyRoom), FailureDetail> {
    let status = response.status();
    if !status.is_success() {
        return Err(FailureDetail::Status(status.as_u16()));
    }
    let (body, room) = collect(response.into_body(), limits).await?;
    if body.is_empty() || status == StatusCode::NO_CONTENT {
        return Ok((CallOutcome::Empty, ReplyRoom::default()));
    }
    let reply = if binary { body } else { json(&body)? };
    Ok((CallOutcome::Reply(reply), room))
}

async fn collect(mut body: Incoming, limits: Limits<'_>) -> Result<(Bytes, ReplyRoom), FailureDetail> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let mut reading = Reading::begin(limits, announced).await?;
    let Some(first) = next_chunk(&mut body).await? else {
        return Ok((Bytes::new(), reading.end(0)));
    };
    reading.grow_to(first.len()).await?;
    let Some(second) = next_chunk(&mut body).await? else {
        let room = reading.end(first.len());
        return Ok((first, room));
    };
    let mut whole = BytesMut::with_capacity(announced.max(first.len()));
    whole.extend_from_slice(&first);
    let mut chunk = Some(second);
    while let Some(bytes) = chunk {
        reading.grow_to(whole.len() + bytes.len()).await?;
        whole.extend_from_slice(&bytes);
        chunk = next_chunk(&mut body).await?;
    }
    let room = reading.end(whole.len());
    Ok((whole.freeze(), room))
}

/// A body being read, and the room that it has.
struct Reading<'a> {
    limits: Limits<'a>,
    room: ReplyRoom,
    /// Whether `room` is all that the body may need.
    reserved: bool,
}

impl<'a> Reading<'a> {
    /// `announced` is the least that will come; 0 when nothing is known.
    async fn begin(limits: Limits<'a>, announced: usize) -> Result<Self, FailureDetail> {
        let mut reading = Self {
            limits,
            room: ReplyRoom::default(),
            reserved: false,
        };
        if announced > 0 {
            reading.check(announced)?;
            reading.reserve(announced).await?;
        }
        Ok(reading)
    }

    async fn grow_to(&mut self, length: usize) -> Result<(), FailureDetail> {
        self.check(length)?;
        if !self.reserved && length > UNRESERVED_BYTES {
            self.reserve(self.limits.route.max_reply_bytes).await?;
        }
        Ok(())
    }

    fn end(mut self, length: usize) -> ReplyRoom {
        self.room.shrink(length);
        self.room
    }

    fn check(&self, length: usize) -> Result<(), FailureDetail> {
        if length > self.limits.route.max_reply_bytes {
            return Err(FailureDetail::ReplyTooLarge);
        }
        Ok(())
    }

    async fn reserve(&mut self, bytes: usize) -> Result<(), FailureDetail> {
        let Limits {
            route,
            memory,
            room_by,
        } = self.limits;
        self.room = memory.reserve(&route.key, bytes, room_by).await?;
        self.reserved = true;
        Ok(())
    }
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
