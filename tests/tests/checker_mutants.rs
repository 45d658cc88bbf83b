//! The history checker judges the gateway; here it is judged itself: every valid history passes, every broken one is
//! caught.

use holdfast_tests::history::{Event, Expectations, Mutation, Step, check, generate, mutate};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (any::<u8>(), any::<u8>(), any::<u8>());
    vec(
        step.prop_map(|(conn, act, which)| Step { conn, act, which }),
        0..300,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_valid_history_passes(steps in steps()) {
        let (history, expectations) = generate(&steps);
        prop_assert_eq!(check(&history, expectations), vec![]);
    }

    #[test]
    fn a_single_fault_is_caught(steps in steps(), mutation in select(&Mutation::ALL[..]), pick in any::<usize>()) {
        let (history, expectations) = generate(&steps);
        if let Some(broken) = mutate(&history, mutation, pick) {
            prop_assert!(!check(&broken, expectations).is_empty(), "{:?} went unnoticed", mutation);
        }
    }
}

/// The property above skips histories without a place for the mutation: this one has a place for each.
#[test]
fn each_mutation_applies_and_is_caught() {
    let (history, expectations) = busy_history();
    for mutation in Mutation::ALL {
        for pick in 0..200 {
            let Some(broken) = mutate(&history, mutation, pick) else {
                continue;
            };
            assert_ne!(broken, history, "{mutation:?} changed nothing");
            assert!(
                !check(&broken, expectations.clone()).is_empty(),
                "{mutation:?} at {pick} went unnoticed"
            );
        }
        assert!(
            (0..200).any(|pick| mutate(&history, mutation, pick).is_some()),
            "{mutation:?} never applied"
        );
    }
}

fn busy_history() -> (Vec<Event>, Expectations) {
    let steps: Vec<Step> = (0..2_000u32)
        .map(|n| {
            let x = n.wrapping_mul(2_654_435_761) >> 8;
            Step {
                conn: x as u8,
                act: (x >> 8) as u8,
                which: (x >> 16) as u8,
            }
        })
        .collect();
    generate(&steps)
}
