//! Things that come late or twice: each has one outcome, and a counter that says that it was. Devices come over each channel in
//! turn, but over `wss` where a backend of the test's own admits them, which knows no keys.

mod frontends;
mod sessions;
mod silent;
mod twice;
mod versions;
mod wakes;

/// The link's timeout where a hang is to be noticed.
const NOTICED: &str = "1s";
/// Requests that the service behind the gateway answers.
const ECHO: (&str, &str) = ("Demo", "Echo");
/// What today's builds speak.
const TODAY: std::ops::RangeInclusive<u32> = holdfast_proto::link::PROTOCOL_VERSIONS;
