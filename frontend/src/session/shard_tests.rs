//! The shard against scripted channels and backends, on virtual time. After each step all totals are recounted.

#[path = "shard/tests/backends.rs"]
mod backends;
#[path = "shard/tests/bounds.rs"]
mod bounds;
#[path = "shard/tests/challenge.rs"]
mod challenge;
#[path = "shard/tests/check.rs"]
mod check;
#[path = "shard/tests/clocks.rs"]
mod clocks;
#[path = "shard/tests/harness.rs"]
mod harness;
#[path = "shard/tests/life.rs"]
mod life;
#[path = "shard/tests/push.rs"]
mod push;
#[path = "shard/tests/repeat.rs"]
mod repeat;
#[path = "shard/tests/requests.rs"]
mod requests;
#[path = "shard/tests/source.rs"]
mod source;
