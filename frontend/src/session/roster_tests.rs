//! Who serves whom.

use super::*;

const KEYS: usize = 20_000;

fn keys() -> impl Iterator<Item = Vec<u8>> {
    (0..KEYS).map(|n| format!("device-{n}").into_bytes())
}

fn choices(roster: &Roster) -> Vec<Option<PeerId>> {
    keys().map(|key| roster.choose(&key)).collect()
}

/// How many of the keys a peer serves, of all.
fn part(choices: &[Option<PeerId>], id: u32) -> f64 {
    choices.iter().filter(|c| **c == Some(PeerId(id))).count() as f64 / KEYS as f64
}

/// Four standard deviations of so many draws with this probability.
fn assert_part(choices: &[Option<PeerId>], id: u32, wanted: f64) {
    let spread = 4.0 * (wanted * (1.0 - wanted) / KEYS as f64).sqrt();
    let got = part(choices, id);
    assert!(
        (got - wanted).abs() <= spread,
        "peer {id} got {got}, not {wanted} ± {spread}"
    );
}

/// Peers with these shares, in hundredths of a percent; ids from 1.
fn roster(shares: &[u32]) -> Roster {
    let mut roster = Roster::default();
    for (index, share) in shares.iter().enumerate() {
        let id = PeerId(index as u32 + 1);
        roster.on_active(id, seed(id), Share::clamped(*share));
    }
    roster
}

fn seed(id: PeerId) -> u64 {
    u64::from(id.0) * 0x1111_2222_3333
}

/// Keys that changed from one peer to another.
fn moves(before: &[Option<PeerId>], after: &[Option<PeerId>]) -> Vec<(u32, u32)> {
    let pairs = before.iter().zip(after).filter(|(b, a)| b != a);
    let mut moves: Vec<(u32, u32)> = pairs.map(|(b, a)| (b.unwrap().0, a.unwrap().0)).collect();
    moves.sort_unstable();
    moves.dedup();
    moves
}

#[test]
fn full_members_share_evenly_and_only_the_leavers_part_moves() {
    assert_eq!(Roster::default().choose(b"x"), None);
    let mut roster = roster(&[10_000; 3]);
    let before = choices(&roster);
    for id in 1..=3 {
        assert_part(&before, id, 1.0 / 3.0);
    }
    roster.on_draining(PeerId(2));
    assert_eq!(roster.standing(PeerId(2)), Standing::Idle);
    assert_eq!(moves(&before, &choices(&roster)), [(2, 1), (2, 3)]);
    roster.on_gone(PeerId(2));
    assert_eq!(roster.standing(PeerId(2)), Standing::Gone);
}

#[test]
fn a_canary_gets_its_share_of_all_members_alike() {
    for share in [5, 50, 500, 2_000, 9_999] {
        let chosen = choices(&roster(&[10_000, 10_000, share]));
        let taken = f64::from(share) / 10_000.0;
        assert_part(&chosen, 3, taken);
        assert_part(&chosen, 1, (1.0 - taken) / 2.0);
        assert_part(&chosen, 2, (1.0 - taken) / 2.0);
    }
}

#[test]
fn raising_a_share_only_adds_keys_and_lowering_it_only_takes_some_away() {
    let mut roster = roster(&[10_000, 10_000, 100]);
    let mut last = choices(&roster);
    for share in [101, 500, 2_500, 9_999] {
        roster.on_share(PeerId(3), Share::clamped(share));
        let now = choices(&roster);
        assert!(moves(&last, &now).iter().all(|(_, to)| *to == 3), "{share}");
        assert!(part(&now, 3) > part(&last, 3) || share == 101);
        last = now;
    }
    roster.on_share(PeerId(3), Share::clamped(500));
    let now = choices(&roster);
    assert_eq!(moves(&last, &now), [(3, 1), (3, 2)]);
}

#[test]
fn a_promoted_canary_is_a_member_like_the_others() {
    let mut roster = roster(&[10_000, 500]);
    let canary = choices(&roster);
    roster.on_share(PeerId(2), Share::FULL);
    let promoted = choices(&roster);
    assert_part(&promoted, 1, 0.5);
    assert_part(&promoted, 2, 0.5);
    roster.on_share(PeerId(2), Share::clamped(500));
    assert_eq!(choices(&roster), canary, "a canary's keys are always the same");
}

#[test]
fn two_canaries_have_ranges_side_by_side_in_the_order_in_which_they_attached() {
    let chosen = choices(&roster(&[10_000, 1_000, 500]));
    assert_part(&chosen, 2, 0.1);
    assert_part(&chosen, 3, 0.05);
    // READY came in another order; another shard may have seen it so.
    let mut other = Roster::default();
    for (id, share) in [(3, 500), (1, 10_000), (2, 1_000)] {
        other.on_active(PeerId(id), seed(PeerId(id)), Share::clamped(share));
    }
    assert_eq!(choices(&other), chosen);
}

#[test]
fn of_canaries_above_the_whole_the_last_gets_what_is_left() {
    let chosen = choices(&roster(&[10_000, 7_000, 6_000, 2_000]));
    assert_part(&chosen, 2, 0.7);
    assert_part(&chosen, 3, 0.3);
    assert_eq!((part(&chosen, 1), part(&chosen, 4)), (0.0, 0.0));
}

#[test]
fn without_a_full_member_canaries_take_all() {
    let mut roster = roster(&[10_000, 100, 300]);
    let before = choices(&roster);
    roster.on_draining(PeerId(1));
    let after = choices(&roster);
    assert_eq!(
        moves(&before, &after),
        [(1, 2), (1, 3)],
        "canaries keep what they had"
    );
    assert_part(&after, 2, 0.01 + 0.96 / 2.0);
    roster.on_gone(PeerId(3));
    assert!(choices(&roster).iter().all(|c| *c == Some(PeerId(2))));
}

#[test]
fn a_standby_gets_nothing_even_when_it_is_alone() {
    let mut roster = roster(&[10_000, 0]);
    assert!(choices(&roster).iter().all(|c| *c == Some(PeerId(1))));
    assert_eq!(roster.standing(PeerId(2)), Standing::Idle);
    roster.on_gone(PeerId(1));
    assert_eq!(roster.choose(b"x"), None);
    roster.on_share(PeerId(2), Share::clamped(1));
    assert_eq!(roster.choose(b"x"), Some(PeerId(2)));
}

#[test]
fn what_drains_takes_nothing_whatever_its_share_becomes() {
    let mut roster = roster(&[10_000, 500]);
    roster.on_draining(PeerId(2));
    roster.on_share(PeerId(2), Share::FULL);
    assert!(choices(&roster).iter().all(|c| *c == Some(PeerId(1))));
    roster.on_share(PeerId(9), Share::FULL);
    assert_eq!(roster.standing(PeerId(9)), Standing::Gone);
}

#[test]
fn tickets_grow_per_peer_and_track_and_a_share_does_not_reset_them() {
    let mut roster = roster(&[500]);
    assert_eq!(roster.ticket(PeerId(1), Track::Requests), Ticket(1));
    assert_eq!(roster.ticket(PeerId(1), Track::Requests), Ticket(2));
    assert_eq!(roster.ticket(PeerId(1), Track::Lifecycle), Ticket(1));
    roster.on_share(PeerId(1), Share::FULL);
    assert_eq!(roster.ticket(PeerId(1), Track::Requests), Ticket(3));
}
