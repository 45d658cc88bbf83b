//! The gateway's behaviour with everything well: real binaries, real sockets, a real service.

#![allow(clippy::unwrap_used, reason = "a test's helpers are tests")]

mod admission;
mod bounds;
mod errors;
mod heartbeat;
mod keys;
mod limits;
mod presence;
mod push;
mod rekeying;
mod requests;
mod services;
