use super::super::figures::tests::figures;
use super::*;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn errors(old: (u64, u64), new: (u64, u64), look: Look) -> Verdict {
    judge(
        &figures(old.0, old.1, &[0; 5]),
        &figures(new.0, new.1, &[0; 5]),
        look,
    )
}

fn times(old: &[u64; 5], new: &[u64; 5]) -> Verdict {
    judge(&figures(0, 0, old), &figures(0, 0, new), Look::Last)
}

#[test]
fn many_more_errors_are_a_fault_with_figures() {
    let verdict = errors((10_000, 10), (500, 50), Look::Early);
    let fault = verdict.fault.unwrap();
    assert_eq!(fault, Fault::Errors { old: 0.001, new: 0.1 });
    assert_eq!(
        fault.to_string(),
        "it answered 10.00 % of its requests with errors, the old one 0.10 %"
    );
}

#[test]
fn too_few_requests_are_no_ground() {
    let verdict = errors((10_000, 0), (MIN_REQUESTS - 1, MIN_REQUESTS - 1), Look::Last);
    assert_eq!((verdict.fault, verdict.errors_compared), (None, false));
    let verdict = errors((MIN_REQUESTS - 1, 0), (10_000, 10_000), Look::Last);
    assert_eq!((verdict.fault, verdict.errors_compared), (None, false));
    let verdict = errors((MIN_REQUESTS, 0), (MIN_REQUESTS, MIN_REQUESTS), Look::Last);
    assert!(verdict.fault.is_some() && verdict.errors_compared);
}

/// 0.5 points more: at that it counts, below it does not, however many requests there are.
#[test]
fn a_difference_counts_from_half_a_point_on() {
    let many = 10_000_000;
    assert!(
        errors((many, 100_000), (many, 150_000), Look::Last)
            .fault
            .is_some()
    );
    assert!(
        errors((many, 100_000), (many, 149_999), Look::Last)
            .fault
            .is_none()
    );
}

#[test]
fn two_errors_are_bad_luck() {
    assert!(errors((1_000_000, 0), (40, 2), Look::Early).fault.is_none());
    assert!(errors((1_000_000, 0), (40, 3), Look::Early).fault.is_some());
}

/// The same figures convince at the end of the watch and not before.
#[test]
fn an_early_look_wants_more_certainty() {
    let (old, new) = ((1_000, 20), (200, 14));
    assert!(errors(old, new, Look::Early).fault.is_none());
    assert!(errors(old, new, Look::Last).fault.is_some());
}

#[test]
fn errors_on_both_sides_are_the_service_s_fault() {
    assert!(errors((500, 500), (500, 500), Look::Last).fault.is_none());
}

#[test]
fn twice_as_slow_is_accepted_and_more_is_not() {
    // All within 10 to 100 ms: a p95 of 95.5 ms.
    let old = [0, 0, 1_000, 0, 0];
    let Some(Fault::Slow {
        new, limit, above, ..
    }) = times(&old, &[0, 0, 0, 1_000, 0]).fault
    else {
        panic!("ten times as slow");
    };
    assert!(new > 900_000.0 && (limit - 191_000.0).abs() < 1.0 && above > 0.85);
    let twice = [0, 0, 940, 60, 0];
    assert!(
        times(&old, &twice).fault.is_none(),
        "6 % are not significantly more than 5 %"
    );
}

/// Where the old one takes 0.9 ms, twenty times that is still nothing that a device would notice.
#[test]
fn up_to_50_ms_more_is_accepted() {
    let old = [1_000, 0, 0, 0, 0];
    assert!(times(&old, &[0, 1_000, 0, 0, 0]).fault.is_none());
    assert!(times(&old, &[0, 0, 1_000, 0, 0]).fault.is_some());
}

#[test]
fn too_few_timed_requests_are_no_ground() {
    let verdict = times(&[1_000, 0, 0, 0, 0], &[0, 0, 0, 0, MIN_TIMED - 1]);
    assert_eq!((verdict.fault, verdict.times_compared), (None, false));
    let verdict = times(&[1_000, 0, 0, 0, 0], &[0, 0, 0, 0, MIN_TIMED]);
    assert!(verdict.fault.is_some() && verdict.times_compared);
}

proptest! {
    #[test]
    fn who_does_the_same_is_not_worse(
        answered in 0u64..100_000, share in 0.0..=1.0f64, counts in prop::array::uniform5(0u64..10_000),
    ) {
        let same = figures(answered, (answered as f64 * share) as u64, &counts);
        for look in [Look::Early, Look::Last] {
            prop_assert_eq!(judge(&same, &same, look).fault, None);
        }
    }

    #[test]
    fn who_does_no_worse_is_not_blamed_for_errors(
        answered in 1u64..100_000, old_share in 0.0..=1.0f64, better in 0.0..=1.0f64, times in 1u64..50,
    ) {
        let old_errors = (answered as f64 * old_share) as u64;
        let new_errors = (old_errors as f64 * better) as u64 * times;
        let old = figures(answered, old_errors, &[0; 5]);
        let new = figures(answered * times, new_errors, &[0; 5]);
        prop_assert_eq!(judge(&old, &new, Look::Last).fault, None);
    }

    /// What convinces early convinces at the end; more errors never speak for the new one.
    #[test]
    fn more_evidence_never_acquits(
        old in (0u64..5_000).prop_flat_map(|n| (Just(n), 0..=n)),
        new in (0u64..5_000).prop_flat_map(|n| (Just(n), 0..=n)),
        more in 0u64..1_000,
    ) {
        let early = errors(old, new, Look::Early).fault.is_some();
        prop_assert!(!early || errors(old, new, Look::Last).fault.is_some());
        let worse = (new.0, (new.1 + more).min(new.0));
        if errors(old, new, Look::Last).fault.is_some() {
            prop_assert!(errors(old, worse, Look::Last).fault.is_some());
        }
    }

    #[test]
    fn any_figures_at_all_are_judged(
        old in prop::collection::vec(any::<u32>(), 0..8), new in prop::collection::vec(any::<u32>(), 0..8),
        counts in (any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>()),
    ) {
        let wide = |counts: Vec<u32>| counts.into_iter().map(u64::from).collect::<Vec<_>>();
        let (old, new) = (wide(old), wide(new));
        let _ = judge(
            &figures(counts.0.into(), counts.1.into(), &old),
            &figures(counts.2.into(), counts.3.into(), &new),
            Look::Last,
        );
    }
}

/// A thousand watches of a new backend that is just like the old one, looked at every second: hardly any is blamed.
#[test]
fn looking_often_finds_no_fault_where_there_is_none() {
    let mut rng = StdRng::seed_from_u64(42);
    let mut blamed = 0;
    for _ in 0..1_000 {
        let (mut old, mut new) = ((0, 0, [0; 5]), (0, 0, [0; 5]));
        for second in 1..=60 {
            for (side, requests) in [(&mut old, 95), (&mut new, 5)] {
                for _ in 0..requests {
                    side.0 += 1;
                    side.1 += u64::from(rng.random_bool(0.02));
                    // A long tail: most are quick, some take a second.
                    side.2[[0, 1, 1, 1, 1, 2, 2, 2, 3, 3][rng.random_range(0..10)]] += 1;
                }
            }
            let look = if second == 60 { Look::Last } else { Look::Early };
            let verdict = judge(
                &figures(old.0, old.1, &old.2),
                &figures(new.0, new.1, &new.2),
                look,
            );
            if verdict.fault.is_some() {
                blamed += 1;
                break;
            }
        }
    }
    assert!(blamed <= 15, "{blamed} of 1000");
}
