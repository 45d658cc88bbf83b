//! What of a request's event is needed: enough to route it, to call the service and to write its reply.

use bytes::Bytes;
use holdfast_proto::event::{
    ErrorReply, HeaderError, ReplyHeader, parse_binary, parse_text, render_error, render_reply_binary,
    render_reply_text,
};
use holdfast_proto::{ErrorCode, Sequence};

/// An event's header, read from either form, and its payload.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) id: Option<String>,
    pub(super) retry_key: Option<String>,
    pub(super) payload: Bytes,
}

impl Event {
    /// The payload shares `message`'s buffer.
    pub(super) fn read(binary: bool, message: &Bytes) -> Result<Self, HeaderError> {
        let text = |text: String| (!text.is_empty()).then_some(text);
        if binary {
            let event = parse_binary(message)?;
            return Ok(Self {
                namespace: event.header.namespace,
                name: event.header.name,
                id: text(event.header.id),
                retry_key: text(event.header.retry_key),
                payload: event.payload,
            });
        }
        let event = parse_text(message)?;
        Ok(Self {
            payload: event.payload_in(message),
            namespace: event.namespace.into_owned(),
            name: event.name.into_owned(),
            id: event.id.map(Into::into),
            retry_key: event.retry_key.map(Into::into),
        })
    }
}

/// What a reply repeats of its request; empty when the request could not be read.
#[derive(Debug, Clone, Default)]
pub(super) struct ReplyTo {
    pub(super) binary: bool,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) id: Option<String>,
    pub(super) sequence: Sequence,
}

impl ReplyTo {
    pub(super) fn reply(&self, payload: &[u8]) -> Bytes {
        let header = ReplyHeader {
            namespace: &self.namespace,
            name: &self.name,
            reply_to: self.id.as_deref(),
            seq: self.sequence,
        };
        let render = if self.binary {
            render_reply_binary
        } else {
            render_reply_text
        };
        render(&header, payload).into()
    }

    pub(super) fn error(&self, code: ErrorCode) -> Bytes {
        let reply_to = self.id.as_deref();
        let error = ErrorReply {
            reply_to,
            seq: self.sequence,
            code,
            message: code.message(),
        };
        render_error(self.binary, &error).into()
    }
}
