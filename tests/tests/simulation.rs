//! The seeded simulation over many seeds, over those that once found something, and over worlds that are broken on purpose.
//!
//! `HOLDFAST_SIM_SEED` sets the first seed, `HOLDFAST_SIM_SEEDS` how many there are. A failure prints the command that
//! shows it again.

#![allow(
    clippy::vec_box,
    reason = "a failure comes boxed, because it is large and rare"
)]

use holdfast_tests::seeds::{self, assert_none, number};
use holdfast_tests::sim::{Crash, Failure, Mutant, Options, Promise, Summary, run};

/// Seeds that break a promise with a defect that there once was, and which. A seed shows the same world only as long as the
/// simulation draws the same in the same order: `mutants/cores.toml` keeps such defects for longer.
const REGRESSIONS: [(u64, &str); 1] = [(
    5005,
    "updates of one session side by side: one was given up although nobody else wrote the state",
)];
/// The same seeds each time; fresh ones are `holdfast-simulate`'s.
const FIRST_SEED: u64 = 1;
const SEEDS: u64 = 400;
const THREADS: usize = 2;
/// What happens in the usual seeds: a world in which it does not shows nothing about it.
const COVERED: [&str; 12] = [
    "admitted on ws",
    "admitted on wss",
    "challenge answered with something else",
    "challenge not answered in time",
    "close challenge_failed",
    "close clear_text",
    "close record_rejected",
    "online on ws",
    "online on wss",
    "refusal too_many_attempts",
    "turned away a device",
    "turned away a source",
];
/// Worlds that each mutant gets.
const MUTANT_SEEDS: u64 = 60;

/// Runs the seeds on a few threads; gives what they came to, in any order, and the failures.
fn run_all(seeds: &[u64], options: Options) -> (Vec<Summary>, Vec<Box<Failure>>) {
    seeds::run_cases(THREADS, seeds, |seed| run(*seed, options))
}

#[test]
fn promises_hold_over_many_seeds() {
    let from = number("HOLDFAST_SIM_SEED").unwrap_or(FIRST_SEED);
    let count = number("HOLDFAST_SIM_SEEDS").unwrap_or(SEEDS);
    println!("{count} seeds from {from}");
    let seeds: Vec<u64> = (0..count).map(|n| from.wrapping_add(n)).collect();
    let (summaries, failures) = run_all(&seeds, Options::default());
    assert_none(&failures);
    let total = |what: fn(&Summary) -> u64| summaries.iter().map(what).sum::<u64>();
    let draws = total(|s| s.canary_draws) as f64;
    let (got, wanted) = (
        total(|s| s.canary_sessions) as f64,
        total(|s| s.canary_hundredths) as f64 / 10_000.0,
    );
    println!("canaries were to get {wanted:.0} of {draws} devices and got {got}");
    // Four standard deviations of so many draws, each with a probability of a half: more than shares can vary.
    assert!((got - wanted).abs() <= 4.0 * (draws / 4.0).sqrt() && draws > 0.0);
    println!(
        "{} connections, {} requests, {} calls of which {} replays, {} pushes, {} faults",
        total(|s| s.connections),
        total(|s| s.requests),
        total(|s| s.calls),
        total(|s| s.replays),
        total(|s| s.pushes),
        total(|s| s.faults),
    );
    for what in COVERED {
        let times: u64 = summaries.iter().filter_map(|s| s.seen.get(what)).sum();
        assert!(times > 0 || count < SEEDS, "never seen in {count} seeds: {what}");
    }
}

#[test]
fn promises_hold_over_seeds_that_once_broke_them() {
    for (seed, why) in REGRESSIONS {
        if let Err(failure) = run(seed, Options::default()) {
            panic!("again: {why}\n{failure}");
        }
    }
}

/// Worlds in which a process dies after each step, and how many steps that are.
const CRASH_SEEDS: [u64; 3] = [2, 11, 30];
const CRASH_STEPS: u64 = 400;

#[test]
fn promises_hold_whenever_a_process_dies() {
    let crashes = (1..=CRASH_STEPS).flat_map(|step| [Crash::Backend { step }, Crash::Frontend { step }]);
    let cases: Vec<(u64, Options)> = crashes
        .flat_map(|crash| CRASH_SEEDS.map(|seed| (seed, crash)))
        .map(|(seed, crash)| {
            (
                seed,
                Options {
                    crash: Some(crash),
                    ..Options::default()
                },
            )
        })
        .collect();
    let (summaries, failures) = seeds::run_cases(THREADS, &cases, |(seed, options)| run(*seed, *options));
    if let Some(failure) = failures.first() {
        panic!(
            "{} crashes broke a promise; one of them, which no command replays:\n{failure}",
            failures.len()
        );
    }
    assert!(
        summaries.iter().filter(|s| s.faults == 1).count() > cases.len() / 2,
        "few processes died"
    );
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

/// What a mutant came to over all its worlds: those in which it found an occasion.
fn mutate(mutant: Mutant) -> (Vec<Summary>, Vec<Box<Failure>>) {
    let seeds: Vec<u64> = (0..MUTANT_SEEDS).collect();
    let options = Options {
        mutant: Some(mutant),
        ..Options::default()
    };
    let (mut summaries, failures) = run_all(&seeds, options);
    summaries.retain(|summary| summary.bent > 0);
    assert!(
        !summaries.is_empty() || !failures.is_empty(),
        "{mutant:?} found no occasion"
    );
    (summaries, failures)
}

/// The cores defend themselves: whatever was done to them, no promise is broken.
fn assert_defended(mutant: Mutant) -> Vec<Summary> {
    let (summaries, failures) = mutate(mutant);
    assert_none(&failures);
    summaries
}

/// The checks find it wherever it has an effect that lasts, and name what is broken.
fn assert_caught(mutant: Mutant, promises: &[Promise]) {
    let (summaries, failures) = mutate(mutant);
    println!(
        "{mutant:?}: {} worlds with occasions, {} caught",
        summaries.len() + failures.len(),
        failures.len()
    );
    assert!(
        failures.len() >= summaries.len(),
        "{mutant:?} went unnoticed: {:?}",
        summaries[0]
    );
    for failure in &failures {
        assert!(
            promises.contains(&failure.promise),
            "{mutant:?} broke something else:\n{failure}"
        );
    }
}

#[test]
fn a_batch_delivered_twice_or_not_at_all_ends_its_epoch() {
    // The world itself looks whether the link went on.
    assert_defended(Mutant::DoubleBatch);
    assert_defended(Mutant::LoseBatch);
}

#[test]
fn a_batch_under_another_identity_is_dropped() {
    for summary in assert_defended(Mutant::Misdeliver) {
        assert!(summary.defences.stale_epoch > 0, "it went unnoticed: {summary:?}");
    }
}

#[test]
fn a_reply_repeated_in_another_ones_place_is_noticed() {
    let (_, failures) = mutate(Mutant::RepeatReply);
    assert!(
        failures
            .iter()
            .any(|failure| failure.promise == Promise::Progress),
        "the other one is missing"
    );
}

#[test]
fn swapped_replies_are_caught() {
    assert_caught(
        Mutant::SwapReplies,
        &[Promise::ExactlyOneAnswer, Promise::InOrder],
    );
}

/// Order has two guards: the backend's sequencer, on a link that keeps the order of what it carries, and the predecessor that
/// each reply names. One is enough.
#[test]
fn replies_that_change_places_on_the_link_wait_for_their_predecessors() {
    assert_defended(Mutant::Reorder);
    assert_caught(Mutant::ReorderBlindly, &[Promise::InOrder]);
}

#[test]
fn a_doubled_or_lost_reply_is_caught() {
    assert_caught(Mutant::DoubleMessage, &[Promise::ExactlyOneAnswer]);
    assert_caught(Mutant::LoseMessage, &[Promise::InOrder, Promise::Progress]);
}

#[test]
fn a_doubled_call_is_caught() {
    assert_caught(Mutant::DoubleCall, &[Promise::Once]);
}

#[test]
fn a_lost_logout_is_asked_again() {
    assert_defended(Mutant::LoseLogout);
}

#[test]
fn a_lost_credit_is_caught() {
    assert_caught(
        Mutant::LoseCredit,
        &[Promise::Progress, Promise::Arriving, Promise::Bounded],
    );
}
