//! Things that come late or twice: each has one outcome, and a counter that says that it was.

mod frontends;
mod sessions;
mod silent;
mod twice;
mod versions;
mod wakes;

/// Requests that the service behind the gateway answers.
const ECHO: (&str, &str) = ("Demo", "Echo");
/// What today's builds speak.
const TODAY: std::ops::RangeInclusive<u32> = holdfast_proto::link::PROTOCOL_VERSIONS;
