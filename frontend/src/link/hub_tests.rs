//! The hub against scripted backends, each with a real [`Lane`](holdfast_proto::link::Lane), on virtual time.

#[path = "hub/tests/addressed.rs"]
mod addressed;
#[path = "hub/tests/drain.rs"]
mod drain;
#[path = "hub/tests/harness.rs"]
mod harness;
#[path = "hub/tests/judge.rs"]
mod judge;
#[path = "hub/tests/record.rs"]
mod record;
#[path = "hub/tests/shares.rs"]
mod shares;
