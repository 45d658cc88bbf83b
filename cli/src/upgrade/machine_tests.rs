use proptest::prelude::*;

use super::super::figures::tests::{figures, status};
use super::super::losses::Which;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn plan(canary: Share) -> Plan {
    Plan {
        canary,
        watch: 10 * SECOND,
        ready_timeout: 30 * SECOND,
    }
}

fn canary() -> Plan {
    plan(Share::clamped(500))
}

/// What both say after `answered` requests each, of which the new one's `errors` failed.
fn sample(answered: u64, errors: u64) -> Input {
    let quick = [answered, 0, 0, 0, 0];
    Input::Sampled(Box::new(Sample {
        old: Some(status(1, figures(answered, 0, &quick))),
        new: Some(status(2, figures(answered, errors, &quick))),
        new_ready: true,
        losses: None,
    }))
}

/// The same, and the frontend remembers to have lost these.
fn sample_with(losses: &[(Which, &str)]) -> Input {
    let Input::Sampled(mut sample) = sample(1, 0) else {
        unreachable!("it is one");
    };
    let loss = |(which, epoch): &(Which, &str)| Loss {
        which: *which,
        epoch: (*epoch).into(),
    };
    sample.losses = Some(losses.iter().map(loss).collect());
    Input::Sampled(sample)
}

fn silent() -> Input {
    Input::Sampled(Box::new(Sample {
        old: Some(status(1, figures(0, 0, &[0; 5]))),
        ..Sample::default()
    }))
}

fn watching() -> Upgrade {
    let mut upgrade = Upgrade::new(canary());
    assert_eq!(
        upgrade.handle(SECOND, Input::Ready),
        Some(Action::SetShare(Share::clamped(500)))
    );
    assert_eq!(upgrade.handle(SECOND, Input::ShareSet), Some(Action::Sample));
    upgrade
}

fn outcome(upgrade: &Upgrade) -> &Outcome {
    let State::Ended(outcome) = upgrade.state() else {
        panic!("{:?}", upgrade.state());
    };
    outcome
}

#[test]
fn without_a_canary_it_goes_straight_to_all() {
    let mut upgrade = Upgrade::new(plan(Share::NONE));
    let full = Some(Action::SetShare(Share::FULL));
    assert_eq!(upgrade.handle(SECOND, Input::Ready), full);
    assert_eq!(upgrade.handle(SECOND, Input::ShareSet), Some(Action::HandOver));
    assert_eq!(upgrade.handle(SECOND, Input::OldLeft), Some(Action::End));
    assert_eq!(outcome(&upgrade), &Outcome::Promoted);
}

#[test]
fn a_good_canary_is_promoted_when_the_watch_is_over_and_not_before() {
    let mut upgrade = watching();
    for second in 1..=10 {
        let now = second * SECOND;
        assert_eq!(
            upgrade.handle(now, sample(now.as_secs() * 50, 0)),
            Some(Action::Sample)
        );
    }
    assert_eq!(upgrade.watched(), 9 * SECOND);
    let full = Some(Action::SetShare(Share::FULL));
    assert_eq!(upgrade.handle(11 * SECOND, sample(550, 0)), full);
    let verdict = upgrade.verdict().unwrap();
    assert!(verdict.errors_compared && verdict.times_compared);
}

#[test]
fn too_few_requests_do_not_hold_it_up() {
    let mut upgrade = watching();
    upgrade.handle(SECOND, sample(0, 0));
    let full = Some(Action::SetShare(Share::FULL));
    assert_eq!(upgrade.handle(11 * SECOND, sample(5, 5)), full);
    assert!(!upgrade.verdict().unwrap().errors_compared);
}

#[test]
fn errors_end_the_watch_at_once() {
    let mut upgrade = watching();
    upgrade.handle(SECOND, sample(0, 0));
    let stop = Some(Action::StopNew(Patience::Grace));
    assert_eq!(upgrade.handle(3 * SECOND, sample(100, 100)), stop);
    assert_eq!(
        upgrade.handle(4 * SECOND, Input::NewEnded("exit 0".into())),
        Some(Action::End)
    );
    let Outcome::RolledBack(reason @ Reason::Errors(_)) = outcome(&upgrade) else {
        panic!("{:?}", upgrade.state());
    };
    assert!(reason.to_string().contains("100.00 %"), "{reason}");
}

/// A hanging process is not waited for; one that only lost its frontend may finish what it has.
#[test]
fn one_that_does_not_answer_is_given_five_seconds() {
    let mut upgrade = watching();
    assert_eq!(upgrade.handle(2 * SECOND, silent()), Some(Action::Sample));
    assert_eq!(upgrade.handle(6 * SECOND, silent()), Some(Action::Sample));
    assert_eq!(upgrade.handle(6 * SECOND, sample(1, 0)), Some(Action::Sample));
    assert_eq!(upgrade.handle(7 * SECOND, silent()), Some(Action::Sample));
    assert_eq!(
        upgrade.handle(11 * SECOND, silent()),
        Some(Action::Sample),
        "not promoted either"
    );
    let stop = Some(Action::StopNew(Patience::Moment));
    assert_eq!(upgrade.handle(12 * SECOND, silent()), stop);
    assert_eq!(upgrade.state(), &State::RollingBack(Reason::Unwell(MAX_UNWELL)));
}

/// It answers well whenever it is asked, but the frontend had to give its work to the old one.
#[test]
fn one_that_its_frontend_loses_more_often_than_the_old_one_is_taken_away() {
    let before = (Which::New, "before");
    let mut upgrade = watching();
    upgrade.handle(SECOND, sample_with(&[before]));
    for second in 2..=3 {
        let lost = sample_with(&[(Which::New, "a"), before]);
        assert_eq!(upgrade.handle(second * SECOND, lost), Some(Action::Sample));
    }
    let stop = Some(Action::StopNew(Patience::Grace));
    let lost = sample_with(&[(Which::New, "a"), before]);
    assert_eq!(upgrade.handle(4 * SECOND, lost), stop);
    let State::RollingBack(reason) = upgrade.state() else {
        panic!("{:?}", upgrade.state());
    };
    assert_eq!(
        (reason.label(), reason.to_string().contains("lost it once")),
        ("lost", true)
    );
}

#[test]
fn one_that_is_lost_at_the_end_of_the_watch_is_not_promoted() {
    let mut upgrade = watching();
    upgrade.handle(SECOND, sample_with(&[]));
    let lost = || sample_with(&[(Which::New, "a")]);
    assert_eq!(upgrade.handle(11 * SECOND, lost()), Some(Action::Sample));
    let stop = Some(Action::StopNew(Patience::Grace));
    assert_eq!(upgrade.handle(13 * SECOND, lost()), stop);
}

/// The machine stood still: of the one the frontend learns a moment before the other.
#[test]
fn losing_both_says_nothing_against_the_new_one() {
    let mut upgrade = watching();
    upgrade.handle(SECOND, sample_with(&[]));
    let both = [(Which::New, "a"), (Which::Old, "b")];
    assert_eq!(
        upgrade.handle(3 * SECOND, sample_with(&both[..1])),
        Some(Action::Sample)
    );
    for second in 4..=10 {
        let now = second * SECOND;
        assert_eq!(upgrade.handle(now, sample_with(&both)), Some(Action::Sample));
    }
    let full = Some(Action::SetShare(Share::FULL));
    assert_eq!(upgrade.handle(11 * SECOND, sample_with(&both)), full);
}

#[test]
fn one_that_is_never_ready_is_given_up_at_its_deadline() {
    let mut upgrade = Upgrade::new(canary());
    assert_eq!(upgrade.deadline(), Some(30 * SECOND));
    assert_eq!(upgrade.handle(29 * SECOND, Input::Tick), None);
    let stop = Some(Action::StopNew(Patience::Moment));
    assert_eq!(upgrade.handle(30 * SECOND, Input::Tick), stop);
    assert_eq!(upgrade.deadline(), None);
}

/// Each state meets each input once; what is not in the table changes nothing.
#[test]
fn the_transition_table() {
    let states = [
        State::Starting { until: SECOND },
        State::Sharing,
        State::Canary {
            since: Duration::ZERO,
        },
        State::Promoting,
        State::Draining,
        State::RollingBack(Reason::Cancelled),
        State::Ended(Outcome::Promoted),
    ];
    let inputs = [
        Input::Ready,
        Input::NewEnded("x".into()),
        Input::ShareSet,
        Input::ShareFailed("x".into()),
        sample(0, 0),
        Input::OldLeft,
        Input::Cancel(Reason::AskerGone),
        Input::Tick,
    ];
    let mut table = String::new();
    for state in &states {
        for input in &inputs {
            let mut upgrade = Upgrade::new(canary());
            upgrade.state = state.clone();
            let action = upgrade.handle(2 * SECOND, input.clone());
            if let Some(action) = action {
                let row = [word(state), word(input), word(upgrade.state()), word(&action)];
                table.push_str(&format!("{} + {} -> {}: {}\n", row[0], row[1], row[2], row[3]));
            } else {
                assert_eq!(upgrade.state(), state, "{input:?}");
            }
        }
    }
    assert_eq!(table, TABLE);
}

fn word(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    let end = text.find(|c: char| !c.is_alphanumeric()).unwrap_or(text.len());
    text[..end].to_owned()
}

const TABLE: &str = "\
Starting + Ready -> Sharing: SetShare
Starting + NewEnded -> Ended: End
Starting + Cancel -> RollingBack: StopNew
Starting + Tick -> RollingBack: StopNew
Sharing + NewEnded -> Ended: End
Sharing + ShareSet -> Canary: Sample
Sharing + ShareFailed -> RollingBack: StopNew
Sharing + Cancel -> RollingBack: StopNew
Canary + NewEnded -> Ended: End
Canary + Sampled -> Canary: Sample
Canary + Cancel -> RollingBack: StopNew
Promoting + NewEnded -> Ended: End
Promoting + ShareSet -> Draining: HandOver
Promoting + ShareFailed -> RollingBack: StopNew
Draining + OldLeft -> Ended: End
RollingBack + NewEnded -> Ended: End
";

fn any_input() -> impl Strategy<Value = Input> {
    prop_oneof![
        Just(Input::Ready),
        Just(Input::NewEnded("ended".into())),
        Just(Input::ShareSet),
        Just(Input::ShareFailed("no".into())),
        (0u64..500)
            .prop_flat_map(|n| (Just(n), 0..=n))
            .prop_map(|(n, e)| sample(n, e)),
        Just(silent()),
        Just(Input::OldLeft),
        Just(Input::Cancel(Reason::Cancelled)),
        Just(Input::Tick),
    ]
}

proptest! {
    /// Whatever comes in whatever order: the old one is let go only after the new one took all, and an end is an end.
    #[test]
    fn the_old_one_leaves_only_when_the_new_one_has_taken_over(
        inputs in prop::collection::vec((0u64..4_000, any_input()), 0..60), with_canary: bool,
    ) {
        let share = if with_canary { Share::clamped(500) } else { Share::NONE };
        let mut upgrade = Upgrade::new(plan(share));
        let (mut now, mut asked_for_all, mut handed_over, mut ended) = (Duration::ZERO, false, false, false);
        for (ms, input) in inputs {
            now += Duration::from_millis(ms);
            let took_all = asked_for_all && matches!(input, Input::ShareSet);
            let action = upgrade.handle(now, input);
            prop_assert!(!ended || action.is_none());
            match action {
                Some(Action::SetShare(share)) => asked_for_all = share.is_full(),
                Some(Action::HandOver) => {
                    prop_assert!(took_all);
                    handed_over = true;
                }
                Some(Action::StopNew(_)) => prop_assert!(!handed_over),
                Some(Action::End) => ended = true,
                Some(Action::Sample) | None => {}
            }
            prop_assert_eq!(ended, matches!(upgrade.state(), State::Ended(_)));
            if let State::Ended(outcome) = upgrade.state() {
                prop_assert_eq!(handed_over, outcome == &Outcome::Promoted);
            }
        }
    }
}
