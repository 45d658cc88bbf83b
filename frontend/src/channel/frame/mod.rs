//! WebSocket frames (RFC 6455), the server's side: a strict reader and a writer over byte slices.
//!
//! There is no extension, no socket and no buffer of its own here: whole messages are read out of the caller's bytes
//! with one copy, and only a message that is still arriving has memory.

mod header;
mod partial;
mod reader;

pub use header::OpCode;
pub(crate) use header::{write_close, write_frame, write_header};
pub(crate) use reader::is_close_code;
pub use reader::{Control, Frame, FrameReader, ReadLimits};
