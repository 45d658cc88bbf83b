//! Events: what devices send and receive (requests, replies, pushes), as text (JSON) and as binary messages.
//!
//! Reading touches the header only; a payload is found, not read, and passes through byte for byte. Writing puts header
//! and payload into one buffer of exactly the size needed. The frontend uses none of this.

mod binary;
mod render;
mod text;

pub use binary::{BinaryEvent, EventHeader, parse_binary};
pub use render::{
    ErrorReply, PushHeader, ReplyHeader, render_error, render_push_binary, render_push_text,
    render_reply_binary, render_reply_text,
};
pub use text::{TextEvent, parse_text};

/// Longest namespace, name, id and retry key, in bytes: they become HTTP headers, three times as long when every byte is
/// percent-encoded.
pub const MAX_FIELD_BYTES: usize = 128;

/// Longest header of a binary message, in bytes: the four fields at their longest, and room for fields of later versions.
pub const MAX_BINARY_HEADER_BYTES: usize = 1024;

/// A field of an event's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    Namespace,
    Name,
    Id,
    RetryKey,
}

impl Field {
    pub fn label(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Name => "name",
            Self::Id => "id",
            Self::RetryKey => "retry_key",
        }
    }
}

/// Why an event's header could not be read: always the sender's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("the message is not a JSON object with a header")]
    NotJson,
    #[error("the event has no header")]
    NoHeader,
    #[error("the header's {} is missing", .0.label())]
    Missing(Field),
    #[error("the header's {} is not text", .0.label())]
    NotText(Field),
    #[error("the header's {} is longer than {MAX_FIELD_BYTES} bytes", .0.label())]
    TooLong(Field),
    #[error("the binary header is cut off, too long or not protobuf")]
    BadBinaryHeader,
}

/// A required field: present, not empty, within its length.
fn required(field: Field, value: &str) -> Result<(), HeaderError> {
    if value.is_empty() {
        Err(HeaderError::Missing(field))
    } else {
        bounded(field, value)
    }
}

fn bounded(field: Field, value: &str) -> Result<(), HeaderError> {
    if value.len() > MAX_FIELD_BYTES {
        Err(HeaderError::TooLong(field))
    } else {
        Ok(())
    }
}
