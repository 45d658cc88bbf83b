//! The seeded simulation of the transport over UDP, over many seeds and over those that once found something.
//!
//! `HOLDFAST_UDP_SEED` sets the first seed, `HOLDFAST_UDP_SEEDS` how many there are. A failure prints the command that shows it
//! again.

#![allow(
    clippy::vec_box,
    reason = "a failure comes boxed, because it is large and rare"
)]

use holdfast_tests::seeds::{Total as _, assert_none, number, run_cases};
use holdfast_tests::transport::{Options, Summary, run};

/// The same seeds each time; fresh ones are `holdfast-simulate-udp`'s.
const FIRST_SEED: u64 = 1;
const SEEDS: u64 = 400;
const THREADS: usize = 2;

/// What a few hundred worlds must have seen, or they would show little.
const SEEN: [&str; 15] = [
    "dial open",
    "dial refused",
    "hello asked for a cookie",
    "hello half open",
    "event peer moved",
    "event closed by the peer",
    "end ClosedByUs",
    "end ClosedByPeer",
    "end GaveUp",
    "end Reset",
    "reset that fits",
    "reset in vain",
    "fault server restarts",
    "fault device restarts",
    "fault long stall",
];

#[test]
fn promises_hold_over_many_seeds() {
    let from = number("HOLDFAST_UDP_SEED").unwrap_or(FIRST_SEED);
    let count = number("HOLDFAST_UDP_SEEDS").unwrap_or(SEEDS);
    println!("{count} seeds from {from}");
    let seeds: Vec<u64> = (0..count).map(|n| from.wrapping_add(n)).collect();
    let (summaries, failures) = run_cases(THREADS, &seeds, |seed| run(*seed, Options::default()));
    assert_none(&failures);
    let total = |what: fn(&Summary) -> u64| summaries.iter().map(what).sum::<u64>();
    println!(
        "{} connections, {} messages of {} bytes in {} datagrams, {} faults",
        total(|s| s.connections),
        total(|s| s.messages),
        total(|s| s.bytes),
        total(|s| s.datagrams),
        total(|s| s.faults),
    );
    let mut all = Summary::default();
    summaries.iter().for_each(|summary| all.add(summary));
    let seen = all.seen();
    println!("{seen:#?}");
    if count >= SEEDS {
        for what in SEEN {
            assert!(seen.contains_key(what), "no world has seen: {what}");
        }
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 7, 12345, 987_654_321] {
        let first = run(seed, Options::default()).unwrap();
        let second = run(seed, Options::default()).unwrap();
        assert_eq!(first, second);
    }
    let digests: Vec<u64> = (1..5)
        .filter_map(|seed| run(seed, Options::default()).ok())
        .map(|s| s.digest)
        .collect();
    assert!(
        digests.windows(2).all(|pair| pair[0] != pair[1]),
        "different seeds are different runs"
    );
}
