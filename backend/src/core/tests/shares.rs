//! Shares of the sessions, on several links.

use super::*;

/// The shares that READY named to each frontend since the last time, in hundredths of a percent.
fn said(world: &mut World) -> Vec<Vec<u16>> {
    world.run(ms(2));
    let share = |command| match command {
        Command::Ready(ready) => Some(Share::from(ready).hundredths()),
        _ => None,
    };
    let of = |frontend: &mut ScriptedFrontend| {
        let received = std::mem::take(&mut frontend.received);
        received.into_iter().filter_map(share).collect()
    };
    world.frontends.iter_mut().map(of).collect()
}

fn states(world: &World) -> Vec<&'static str> {
    world.core.frontends().iter().map(|f| f.state).collect()
}

#[test]
fn every_frontend_is_told() {
    let mut world = World::attached(3);
    world.core.handle_share(Share::clamped(500)).unwrap();
    assert_eq!(said(&mut world), [[500], [500], [500]]);
    world.core.handle_share(Share::NONE).unwrap();
    assert_eq!(said(&mut world), [[0], [0], [0]]);
    assert_eq!(states(&world), ["standby"; 3]);
    assert!(world.core.is_attached());
    world.core.handle_share(Share::FULL).unwrap();
    assert_eq!(
        (said(&mut world), states(&world)),
        (vec![vec![10_000]; 3], vec!["active"; 3])
    );
    assert_eq!(world.core.share(), Share::FULL);
}

#[test]
fn a_frontend_that_comes_later_or_again_hears_the_last_word() {
    let mut world = World::new(2);
    world.frontends[1].reachable = false;
    world.core.handle_share(Share::clamped(700)).unwrap();
    world.run(ms(50));
    assert_eq!(said(&mut world), [vec![700], vec![]]);
    assert!(!world.core.is_attached());
    world.frontends[1].reachable = true;
    world.run(ms(2000));
    assert_eq!(said(&mut world), [vec![], vec![700]]);
    assert!(world.core.is_attached());
    world.core.handle_disconnected(LinkIndex::new(0), world.now);
    world.run(ms(500));
    assert_eq!(said(&mut world), [vec![700], vec![]]);
}

#[test]
fn a_share_that_one_frontend_would_not_respect_changes_nothing_anywhere() {
    let mut world = World::new(2);
    world.frontends[1].shares = false;
    world.run(ms(50));
    said(&mut world);
    assert_eq!(
        world.core.handle_share(Share::clamped(500)),
        Err(ShareRefused::Unsupported)
    );
    assert_eq!(
        (said(&mut world), world.core.share()),
        (vec![vec![]; 2], Share::FULL)
    );
}

#[test]
fn a_canary_is_a_standby_to_a_frontend_that_knows_no_shares() {
    let mut world = World::new(2);
    world.frontends[1].shares = false;
    world.core.handle_share(Share::clamped(500)).unwrap();
    world.run(ms(50));
    assert_eq!(said(&mut world), [vec![500], vec![]]);
    assert_eq!(states(&world), ["active", "standby"]);
    assert!(world.core.is_attached());
    world.core.handle_share(Share::FULL).unwrap();
    assert_eq!(said(&mut world), [[10_000], [10_000]]);
}

#[test]
fn one_that_leaves_takes_no_share() {
    let mut world = World::attached(1);
    world.core.handle_shutdown(world.now.instant);
    assert_eq!(world.core.handle_share(Share::NONE), Err(ShareRefused::Draining));
    assert!(said(&mut world)[0].is_empty() && !world.core.is_attached());
}
