//! Shards on real sockets of the loopback, with devices and a hub of the tests' own.

mod connections;
mod harness;
mod hello;

use super::*;
use crate::session;
use holdfast_proto::secure::KEY_BYTES;

/// What an idle device costs is a promise: it may not grow unnoticed. Design §11: 1 KiB, better 512 bytes.
#[test]
fn an_idle_device_stays_small() {
    // With its two keys, which are elsewhere on the heap.
    let record = udp_record_bytes() + 2 * KEY_BYTES;
    let session = size_of::<Option<session::Session>>();
    println!("a connection's record and timer weigh {record} bytes, its session's record {session}");
    assert!(record <= 360, "{record}");
    // Its place among the slots, and its session's timer.
    assert!(record + session + 24 <= 608, "{record} and {session}");
}
