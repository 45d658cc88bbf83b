//! Shards, hub and backends under random operations, with every message between them held back at will: what crosses on
//! the way is the point. After each step totals are recounted; in the end everything owed must have been paid.
//!
//! A failure prints the operations that lead to it, shrunk, and keeps its seed.

mod backend;
mod device;
mod world;

use proptest::prelude::*;

use world::World;

/// One step. Numbers choose among what there is, modulo how many there are.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Connect(u8),
    Request(u8, u8),
    Control(u8, bool),
    DevicePing(u8),
    Write(u8, u8),
    Disconnect(u8),
    /// A shard's next vector reaches the hub.
    ShardToHub(u8),
    /// The hub's next message reaches a shard.
    HubToShard(u8),
    /// The hub gives out batches.
    HubOut,
    BackendIn(u8),
    BackendOut(u8),
    Answer(u8, u8),
    Start,
    Crash(u8),
    Hang(u8),
    Drain(u8),
    /// A backend wants this many hundredths of a percent of the sessions.
    Share(u8, u16),
    Push(u8, u8),
    PushToAll(u8),
    Close(u8, u8),
    Turn(u8),
    Pass(u16),
    /// Everything between the parts is carried once.
    Carry,
}

fn op() -> impl Strategy<Value = Op> {
    use Op::*;
    let n = any::<u8>;
    prop_oneof![
        6 => n().prop_map(Connect),
        40 => (n(), 1u8..90).prop_map(|(d, len)| Request(d, len)),
        4 => (n(), any::<bool>()).prop_map(|(d, update)| Control(d, update)),
        2 => n().prop_map(DevicePing),
        24 => (n(), 1u8..5).prop_map(|(d, count)| Write(d, count)),
        3 => n().prop_map(Disconnect),
        16 => n().prop_map(ShardToHub),
        16 => n().prop_map(HubToShard),
        12 => Just(HubOut),
        12 => n().prop_map(BackendIn),
        12 => n().prop_map(BackendOut),
        30 => (n(), n()).prop_map(|(b, which)| Answer(b, which)),
        2 => Just(Start),
        2 => n().prop_map(Crash),
        1 => n().prop_map(Hang),
        2 => n().prop_map(Drain),
        4 => (n(), share()).prop_map(|(b, share)| Share(b, share)),
        3 => (n(), n()).prop_map(|(b, d)| Push(b, d)),
        2 => n().prop_map(PushToAll),
        1 => (n(), n()).prop_map(|(b, d)| Close(b, d)),
        2 => n().prop_map(Turn),
        2 => (1u16..3000).prop_map(Pass),
        20 => Just(Carry),
    ]
}

/// Often one of the ends.
fn share() -> impl Strategy<Value = u16> {
    prop_oneof![Just(0), Just(10_000), 1u16..10_000]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, ..ProptestConfig::default() })]

    /// P2, P3, P7: each request of a live connection gets one reply, in order; nothing is said to who was closed; no total
    /// drifts, no slot, credit or push is lost.
    #[test]
    fn everything_owed_is_paid(ops in prop::collection::vec(op(), 1..600)) {
        let mut world = World::new();
        for op in ops {
            world.step(op);
        }
        world.settle();
    }
}
