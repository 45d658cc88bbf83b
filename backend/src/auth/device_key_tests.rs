use super::*;
use crate::auth::KeyUnavailable;
use holdfast_proto::secure::{HandshakeError, Initiator, MasterKey, TrafficKeys, parse_challenge};
use std::path::Path;
use std::time::Duration;

const NOW_MS: u64 = 1_800_000_000_000;
const HERE: Source = [1; 8];

fn master(n: u8) -> MasterKey {
    MasterKey::from_bytes(&[n; 32]).unwrap()
}

fn identity() -> Identity {
    Identity {
        key_id: "k1".into(),
        product: "tv".into(),
        class: "home".into(),
        device: "lamp".parse().unwrap(),
        key_version: 3,
    }
}

/// A backend with the master keys `k1` and `k2`, and a clock of its own.
struct World {
    authenticator: DeviceAuthenticator,
    start: Instant,
    keys: Arc<ArcSwap<MasterKeys>>,
    denied: Arc<ArcSwap<DenyList>>,
}

fn master_keys(keys: &[(&str, u8)]) -> MasterKeys {
    let lines = keys
        .iter()
        .map(|(id, n)| format!("{id} = \"{}\"\n", master(*n).to_text()));
    let text = format!("[keys]\n{}", lines.collect::<String>());
    MasterKeys::parse(Path::new("m"), &text).unwrap()
}

impl World {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut DeviceKeySettings)) -> Self {
        let start = Instant::now();
        let keys = Arc::new(ArcSwap::from_pointee(master_keys(&[("k1", 1), ("k2", 2)])));
        let denied = Arc::<ArcSwap<DenyList>>::default();
        let mut settings = DeviceKeySettings {
            keys: keys.clone(),
            denied: denied.clone(),
            has_endpoint: false,
            max_clock_skew_ms: 120_000,
            require_timestamp: false,
            attempt_interval_ms: 6_000,
            attempt_burst: 5,
            seed: [7; 32],
            started: start,
        };
        change(&mut settings);
        Self {
            authenticator: DeviceAuthenticator::new(settings),
            start,
            keys,
            denied,
        }
    }

    fn at(&self, ms: u64) -> Now {
        Now {
            instant: self.start + Duration::from_millis(ms),
            unix_ms: NOW_MS + ms,
        }
    }

    fn show(&self, credential: &str, at_ms: u64) -> Result<Grant, Denied> {
        self.show_from(HERE, credential, at_ms)
    }

    fn show_from(&self, source: Source, credential: &str, at_ms: u64) -> Result<Grant, Denied> {
        match self.authenticator.authenticate(
            (SecureChannel::Ws, source),
            credential.as_bytes(),
            self.at(at_ms),
        ) {
            Verdict::Judged(result) => result,
            Verdict::Ask(inquiry) => panic!("{inquiry:?}"),
        }
    }

    fn ask(&self, credential: &str) -> Inquiry {
        match self
            .authenticator
            .authenticate((SecureChannel::Ws, HERE), credential.as_bytes(), self.at(0))
        {
            Verdict::Ask(inquiry) => *inquiry,
            Verdict::Judged(result) => panic!("{result:?}"),
        }
    }

    /// A new attempt of a device with the right key and time.
    fn attempt(&self, identity: &Identity, at_ms: u64) -> Result<Grant, Denied> {
        let (_, credential) = claim(identity, &master(1), Some(NOW_MS + at_ms));
        self.show(&credential, at_ms)
    }
}

fn claim(identity: &Identity, master: &MasterKey, time: Option<u64>) -> (Initiator, String) {
    Initiator::new(SecureChannel::Ws, identity, &master.device_key(identity), time).unwrap()
}

fn finish(device: Initiator, grant: &Grant) -> Result<TrafficKeys, HandshakeError> {
    let challenge = grant.challenge.as_ref().unwrap();
    device.finish(&parse_challenge(std::str::from_utf8(&challenge.message).unwrap()).unwrap())
}

fn expect(result: Result<Grant, Denied>, status: u16, code: &str) -> Denied {
    let denied = result.unwrap_err();
    assert_eq!((denied.status, denied.code), (status, code));
    denied
}

#[test]
fn a_device_with_its_key_is_admitted_and_both_have_the_same_keys() {
    let world = World::new();
    for (key_id, n, time) in [("k1", 1, Some(NOW_MS)), ("k2", 2, None)] {
        let identity = Identity {
            key_id: key_id.into(),
            ..identity()
        };
        let (device, credential) = claim(&identity, &master(n), time);
        let grant = world.show(&credential, 0).unwrap();
        assert_eq!(
            finish(device, &grant).unwrap(),
            grant.challenge.as_ref().unwrap().keys
        );
        assert_eq!(grant.device, identity.device);
        let principal = Principal::DeviceKey {
            key_id: key_id.into(),
            key_version: 3,
            product: "tv".into(),
            class: "home".into(),
        };
        assert_eq!(Principal::decode(&grant.principal), Ok(principal));
    }
}

#[test]
fn a_grant_does_not_show_its_keys() {
    let grant = World::new().attempt(&identity(), 0).unwrap();
    let keys = &grant.challenge.as_ref().unwrap().keys;
    let shown = format!("{grant:?}");
    for key in [&keys.to_server, &keys.to_device] {
        let bytes = format!("{:?}", key.as_bytes());
        assert!(!shown.contains(bytes.trim_matches(['[', ']'])), "{shown}");
    }
}

#[test]
fn what_is_no_credential_is_refused() {
    let world = World::new();
    expect(world.show("", 0), 401, "credential_missing");
    let (_, good) = claim(&identity(), &master(1), None);
    for bad in ["x", "not base64!", &good[..good.len() - 4], &"A".repeat(1025)] {
        expect(world.show(bad, 0), 400, "bad_credential");
    }
}

#[test]
fn who_lacks_the_key_learns_nothing_but_that() {
    let world = World::new();
    world.denied.store(Arc::new(DenyList::parse("denied").unwrap()));
    let of = |device: &str| Identity {
        device: device.parse().unwrap(),
        ..identity()
    };
    // A device that is known, one that never was, one that is denied, and a clock that is off: all the same.
    let mut answers = Vec::new();
    for (device, time) in [
        ("lamp", NOW_MS),
        ("nobody", NOW_MS),
        ("denied", NOW_MS),
        ("lamp", 0),
    ] {
        let (_, credential) = claim(&of(device), &master(9), Some(time));
        answers.push(expect(world.show(&credential, 0), 401, "handshake_failed"));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]));

    let elsewhere = Identity {
        key_id: "k9".into(),
        ..identity()
    };
    let (_, credential) = claim(&elsewhere, &master(1), None);
    expect(world.show(&credential, 0), 401, "key_unknown");
}

#[test]
fn a_claim_made_for_another_channel_or_changed_on_its_way_is_refused() {
    let world = World::new();
    let key = master(1).device_key(&identity());
    for channel in [SecureChannel::Udp, SecureChannel::Link] {
        let (_, credential) = Initiator::new(channel, &identity(), &key, None).unwrap();
        expect(world.show(&credential, 0), 401, "handshake_failed");
    }
    let (_, credential) = claim(&identity(), &master(1), None);
    let mut other = credential.into_bytes();
    let last = other.len() - 2;
    other[last] = if other[last] == b'A' { b'B' } else { b'A' };
    expect(
        world.show(std::str::from_utf8(&other).unwrap(), 0),
        401,
        "handshake_failed",
    );
}

#[test]
fn denied_versions_are_refused_and_newer_ones_admitted() {
    let world = World::new();
    world
        .denied
        .store(Arc::new(DenyList::parse("lamp <= 2").unwrap()));
    for (key_version, denied) in [(1, true), (2, true), (3, false)] {
        let identity = Identity {
            key_version,
            ..identity()
        };
        let result = world.attempt(&identity, 0);
        if denied {
            assert!(!expect(result, 403, "denied").retryable());
        } else {
            result.unwrap();
        }
    }
}

#[test]
fn clocks_may_be_off_by_as_much_as_allowed() {
    let world = World::new();
    for (time, good) in [
        (NOW_MS - 120_000, true),
        (NOW_MS + 120_000, true),
        (NOW_MS - 120_001, false),
        (NOW_MS + 120_001, false),
        (0, false),
        (u64::MAX, false),
    ] {
        // Another device each time: attempts are not what is judged here.
        let identity = Identity {
            device: format!("d{time}").parse().unwrap(),
            ..identity()
        };
        let (_, credential) = claim(&identity, &master(1), Some(time));
        let result = world.show(&credential, 0);
        if good {
            result.unwrap();
        } else {
            expect(result, 401, "clock_skew");
        }
    }
}

#[test]
fn a_time_may_be_required() {
    let world = World::with(|settings| settings.require_timestamp = true);
    let (_, credential) = claim(&identity(), &master(1), None);
    expect(world.show(&credential, 0), 401, "clock_skew");
    world.attempt(&identity(), 0).unwrap();
}

#[test]
fn a_device_has_its_burst_then_its_rate() {
    let world = World::new();
    for _ in 0..5 {
        world.attempt(&identity(), 0).unwrap();
    }
    let denied = expect(world.attempt(&identity(), 0), 429, "too_many_attempts");
    assert_eq!((denied.retry_after_ms, denied.retryable()), (Some(6_000), true));
    let other = Identity {
        device: "tv".parse().unwrap(),
        ..identity()
    };
    world.attempt(&other, 0).unwrap();
    world.attempt(&identity(), 6_000).unwrap();
    expect(world.attempt(&identity(), 6_001), 429, "too_many_attempts");
}

#[test]
fn strangers_and_stale_or_denied_claims_take_none_of_a_device_s_attempts() {
    let world = World::new();
    let (_, stale) = claim(&identity(), &master(1), Some(1));
    for _ in 0..100 {
        let (_, forged) = claim(&identity(), &master(9), Some(NOW_MS));
        expect(world.show(&forged, 0), 401, "handshake_failed");
        expect(world.show(&stale, 0), 401, "clock_skew");
    }
    for _ in 0..5 {
        world.attempt(&identity(), 0).unwrap();
    }
}

#[test]
fn a_recorded_claim_that_is_said_again_elsewhere_takes_nothing_from_the_device() {
    let world = World::new();
    let (_, recorded) = claim(&identity(), &master(1), None);
    let elsewhere = [9; 8];
    for _ in 0..5 {
        world.show_from(elsewhere, &recorded, 0).unwrap();
    }
    for _ in 0..100 {
        expect(world.show_from(elsewhere, &recorded, 0), 429, "too_many_attempts");
    }
    for _ in 0..5 {
        world.attempt(&identity(), 0).unwrap();
    }
}

/// A whole fleet comes back at once: nobody is taken for another.
#[test]
fn a_hundred_thousand_devices_connect_in_the_same_moment() {
    let world = World::new();
    let mut device = identity();
    for number in 0..100_000 {
        device.device = format!("lamp-{number}").parse().unwrap();
        world
            .authenticator
            .count_attempt(&device.device, HERE, world.at(0))
            .unwrap();
    }
}

#[test]
fn each_answer_is_new_and_only_its_own_device_finishes_it() {
    let world = World::new();
    let (device, credential) = claim(&identity(), &master(1), None);
    let (other, _) = claim(&identity(), &master(1), None);
    let (first, second) = (
        world.show(&credential, 0).unwrap(),
        world.show(&credential, 0).unwrap(),
    );
    assert_ne!(first, second);
    assert!(finish(other, &first).is_err());
    assert_eq!(finish(device, &second).unwrap(), second.challenge.unwrap().keys);
}

#[test]
fn master_keys_change_while_it_runs() {
    let world = World::new();
    world.keys.store(Arc::new(master_keys(&[("k2", 2), ("k3", 3)])));
    expect(world.attempt(&identity(), 0), 401, "key_unknown");
    let newer = Identity {
        key_id: "k3".into(),
        ..identity()
    };
    let (_, credential) = claim(&newer, &master(3), None);
    world.show(&credential, 0).unwrap();
}

#[test]
fn the_endpoint_is_asked_for_key_ids_that_are_not_in_the_file() {
    let world = World::with(|settings| settings.has_endpoint = true);
    world.attempt(&identity(), 0).unwrap();
    let elsewhere = Identity {
        key_id: "cloud".into(),
        ..identity()
    };
    let (device, credential) = claim(&elsewhere, &master(5), None);
    let inquiry = world.ask(&credential);
    assert_eq!(inquiry.identity(), &elsewhere);
    let key = master(5).device_key(&elsewhere);
    let grant = world
        .authenticator
        .authenticate_with(&inquiry, Ok(Some(key)), world.at(0))
        .unwrap();
    assert_eq!(finish(device, &grant).unwrap(), grant.challenge.unwrap().keys);

    let lost = world
        .authenticator
        .authenticate_with(&inquiry, Err(KeyUnavailable), world.at(0));
    assert!(expect(lost, 503, "unavailable").retryable());
}

#[test]
fn a_device_that_the_endpoint_does_not_know_looks_like_one_with_a_wrong_key() {
    let world = World::with(|settings| settings.has_endpoint = true);
    let elsewhere = Identity {
        key_id: "cloud".into(),
        ..identity()
    };
    let (_, credential) = claim(&elsewhere, &master(5), None);
    let inquiry = world.ask(&credential);
    let go_on = |key| {
        world
            .authenticator
            .authenticate_with(&inquiry, Ok(key), world.at(0))
    };
    let unknown = expect(go_on(None), 401, "key_unknown");
    let wrong = expect(go_on(Some(master(6).device_key(&elsewhere))), 401, "key_unknown");
    assert_eq!(unknown, wrong);
}
