use super::*;
use crate::auth::KeyUnavailable;
use holdfast_proto::secure::{
    HandshakeError, Initiator, MESSAGE_2_BYTES, MasterKey, PARAMETER_BYTES, TrafficKeys, parse_challenge,
};
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
    channel: SecureChannel,
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
    fn new(channel: SecureChannel) -> Self {
        Self::with(channel, |_| {})
    }

    /// With an endpoint that has the key ids `cloud` and `cloud2`.
    fn with_endpoint(channel: SecureChannel) -> Self {
        Self::with(channel, |settings| {
            settings.questions = Some(QuestionSettings {
                key_ids: Some(vec!["cloud".to_owned(), "cloud2".to_owned()]),
                failures_per_minute: 6,
            });
        })
    }

    fn with(channel: SecureChannel, change: impl FnOnce(&mut DeviceKeySettings)) -> Self {
        let start = Instant::now();
        let keys = Arc::new(ArcSwap::from_pointee(master_keys(&[("k1", 1), ("k2", 2)])));
        let denied = Arc::<ArcSwap<DenyList>>::default();
        let mut settings = DeviceKeySettings {
            keys: keys.clone(),
            denied: denied.clone(),
            questions: None,
            max_clock_skew_ms: 120_000,
            require_timestamp: false,
            attempt_interval_ms: 6_000,
            attempt_burst: 5,
            seed: [7; 32],
            started: start,
        };
        change(&mut settings);
        Self {
            channel,
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

    fn show(&self, credential: &[u8], at_ms: u64) -> Result<Grant, Denied> {
        self.show_from(HERE, credential, at_ms)
    }

    fn show_from(&self, source: Source, credential: &[u8], at_ms: u64) -> Result<Grant, Denied> {
        match self
            .authenticator
            .authenticate((self.channel, source), credential, self.at(at_ms))
        {
            Verdict::Judged(result) => result,
            Verdict::Ask(inquiry) => panic!("{inquiry:?}"),
        }
    }

    fn ask(&self, credential: &[u8]) -> Inquiry {
        match self
            .authenticator
            .authenticate((self.channel, HERE), credential, self.at(0))
        {
            Verdict::Ask(inquiry) => *inquiry,
            Verdict::Judged(result) => panic!("{result:?}"),
        }
    }

    /// A new attempt of a device with the right key and time.
    fn attempt(&self, identity: &Identity, at_ms: u64) -> Result<Grant, Denied> {
        let (_, credential) = claim(self.channel, identity, &master(1), Some(NOW_MS + at_ms));
        self.show(&credential, at_ms)
    }
}

const PARAMETERS: [u8; PARAMETER_BYTES] = *b"\0\0\0\0\0\0\0\x09\x04\xb0\0\x01\0\0\0\x20";

/// What a device shows in a BIND's `credential`.
fn claim(
    channel: SecureChannel,
    identity: &Identity,
    master: &MasterKey,
    time: Option<u64>,
) -> (Initiator, Vec<u8>) {
    claim_with(channel, identity, &master.device_key(identity), time)
}

fn claim_with(
    channel: SecureChannel,
    identity: &Identity,
    key: &DeviceKey,
    time: Option<u64>,
) -> (Initiator, Vec<u8>) {
    match channel {
        SecureChannel::Udp => {
            let (device, credential) = Initiator::for_datagrams(&PARAMETERS, identity, key, time).unwrap();
            (device, [&PARAMETERS[..], &credential].concat())
        }
        _ => {
            let (device, credential) = Initiator::new(channel, identity, key, time).unwrap();
            (device, credential.into_bytes())
        }
    }
}

fn finish(device: Initiator, grant: &Grant) -> Result<TrafficKeys, HandshakeError> {
    let message = &grant.challenge.as_ref().unwrap().message;
    // A datagram carries message 2 as it is.
    match std::str::from_utf8(message).ok().and_then(parse_challenge) {
        Some(message2) => device.finish(&message2),
        None => device.finish(message),
    }
}

fn expect(result: Result<Grant, Denied>, status: u16, code: &str) -> Denied {
    let denied = result.unwrap_err();
    assert_eq!((denied.status, denied.code), (status, code));
    denied
}

/// Makes of each `fn name(channel: SecureChannel)` a test for each channel: `ws::name` and `udp::name`.
macro_rules! on_each_channel {
    ($($test:ident),* $(,)?) => {
        mod ws {
            $(#[test]
            fn $test() {
                super::$test(super::SecureChannel::Ws);
            })*
        }
        mod udp {
            $(#[test]
            fn $test() {
                super::$test(super::SecureChannel::Udp);
            })*
        }
    };
}

on_each_channel! {
    a_device_with_its_key_is_admitted_and_both_have_the_same_keys,
    a_grant_does_not_show_its_keys,
    what_is_no_credential_is_refused,
    who_lacks_the_key_learns_nothing_but_that,
    a_claim_made_for_another_channel_or_changed_on_its_way_is_refused,
    denied_versions_are_refused_and_newer_ones_admitted,
    clocks_may_be_off_by_as_much_as_allowed,
    a_time_may_be_required,
    a_device_has_its_burst_then_its_rate,
    strangers_and_stale_or_denied_claims_take_none_of_a_device_s_attempts,
    a_recorded_claim_that_is_said_again_elsewhere_takes_nothing_from_the_device,
    a_hundred_thousand_devices_connect_in_the_same_moment,
    each_answer_is_new_and_only_its_own_device_finishes_it,
    master_keys_change_while_it_runs,
    the_endpoint_is_asked_for_key_ids_that_are_not_in_the_file,
    a_device_that_the_endpoint_does_not_know_looks_like_one_with_a_wrong_key,
    key_ids_that_the_endpoint_does_not_have_are_not_asked_for,
    a_source_asks_in_vain_so_often_and_others_go_on,
    who_uses_a_devices_name_keeps_it_from_nothing,
    who_shows_the_key_takes_from_nobodys_questions_unless_it_is_refused,
    a_proof_with_the_decoy_is_none,
}

fn a_device_with_its_key_is_admitted_and_both_have_the_same_keys(channel: SecureChannel) {
    let world = World::new(channel);
    for (key_id, n, time) in [("k1", 1, Some(NOW_MS)), ("k2", 2, None)] {
        let identity = Identity {
            key_id: key_id.into(),
            ..identity()
        };
        let (device, credential) = claim(channel, &identity, &master(n), time);
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

fn a_grant_does_not_show_its_keys(channel: SecureChannel) {
    let grant = World::new(channel).attempt(&identity(), 0).unwrap();
    let keys = &grant.challenge.as_ref().unwrap().keys;
    let shown = format!("{grant:?}");
    for key in [&keys.to_server, &keys.to_device] {
        let bytes = format!("{:?}", key.as_bytes());
        assert!(!shown.contains(bytes.trim_matches(['[', ']'])), "{shown}");
    }
}

fn what_is_no_credential_is_refused(channel: SecureChannel) {
    let world = World::new(channel);
    expect(world.show(b"", 0), 401, "credential_missing");
    let (_, good) = claim(channel, &identity(), &master(1), None);
    let longer = [&good[..], &[b'A'; 1025]].concat();
    for bad in [
        b"x",
        &b"not base64!"[..],
        &good[..20],
        &good[..good.len() - 4],
        &longer,
    ] {
        expect(world.show(bad, 0), 400, "bad_credential");
    }
}

fn who_lacks_the_key_learns_nothing_but_that(channel: SecureChannel) {
    let world = World::new(channel);
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
        let (_, credential) = claim(channel, &of(device), &master(9), Some(time));
        answers.push(expect(world.show(&credential, 0), 401, "handshake_failed"));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]));

    let elsewhere = Identity {
        key_id: "k9".into(),
        ..identity()
    };
    let (_, credential) = claim(channel, &elsewhere, &master(1), None);
    expect(world.show(&credential, 0), 401, "key_unknown");
}

fn a_claim_made_for_another_channel_or_changed_on_its_way_is_refused(channel: SecureChannel) {
    let world = World::new(channel);
    let key = master(1).device_key(&identity());
    for other in [SecureChannel::Ws, SecureChannel::Udp, SecureChannel::Link] {
        if (other, channel) != (SecureChannel::Ws, SecureChannel::Ws) {
            let (_, text) = Initiator::new(other, &identity(), &key, None).unwrap();
            let claim = Credential::parse(text.as_bytes()).unwrap();
            let bytes = [claim.identity_bytes(), claim.message1()].concat();
            let moved = match channel {
                SecureChannel::Udp => [&PARAMETERS[..], &bytes].concat(),
                _ => text.into_bytes(),
            };
            expect(world.show(&moved, 0), 401, "handshake_failed");
        }
    }
    let (_, mut changed) = claim(channel, &identity(), &master(1), None);
    let last = changed.len() - 2;
    changed[last] = if changed[last] == b'A' { b'B' } else { b'A' };
    expect(world.show(&changed, 0), 401, "handshake_failed");
}

#[test]
fn parameters_that_were_changed_on_their_way_are_refused() {
    let world = World::new(SecureChannel::Udp);
    let (_, claim) = claim(SecureChannel::Udp, &identity(), &master(1), None);
    for at in 0..PARAMETER_BYTES {
        let mut changed = claim.clone();
        changed[at] ^= 1;
        expect(world.show(&changed, 0), 401, "handshake_failed");
    }
    world.show(&claim, 0).unwrap();
}

#[test]
fn a_datagram_is_answered_with_message_2_as_it_is() {
    let world = World::new(SecureChannel::Udp);
    let grant = world.attempt(&identity(), 0).unwrap();
    assert_eq!(grant.challenge.unwrap().message.len(), MESSAGE_2_BYTES);
}

/// A device that changes its channel has no more attempts for it.
#[test]
fn attempts_over_both_channels_are_counted_together() {
    let world = World::new(SecureChannel::Udp);
    let (_, over_ws) = claim(SecureChannel::Ws, &identity(), &master(1), None);
    for _ in 0..5 {
        let channel = (SecureChannel::Ws, HERE);
        let verdict = world.authenticator.authenticate(channel, &over_ws, world.at(0));
        assert!(matches!(verdict, Verdict::Judged(Ok(_))));
    }
    expect(world.attempt(&identity(), 0), 429, "too_many_attempts");
}

#[test]
fn the_endpoint_is_told_what_the_claim_was_made_for() {
    for channel in [SecureChannel::Ws, SecureChannel::Udp] {
        let world = World::with_endpoint(channel);
        let elsewhere = Identity {
            key_id: "cloud".into(),
            ..identity()
        };
        let (_, credential) = claim(channel, &elsewhere, &master(5), None);
        assert_eq!(world.ask(&credential).channel(), channel);
    }
}

fn denied_versions_are_refused_and_newer_ones_admitted(channel: SecureChannel) {
    let world = World::new(channel);
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

fn clocks_may_be_off_by_as_much_as_allowed(channel: SecureChannel) {
    let world = World::new(channel);
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
        let (_, credential) = claim(channel, &identity, &master(1), Some(time));
        let result = world.show(&credential, 0);
        if good {
            result.unwrap();
        } else {
            expect(result, 401, "clock_skew");
        }
    }
}

fn a_time_may_be_required(channel: SecureChannel) {
    let world = World::with(channel, |settings| settings.require_timestamp = true);
    let (_, credential) = claim(channel, &identity(), &master(1), None);
    expect(world.show(&credential, 0), 401, "clock_skew");
    world.attempt(&identity(), 0).unwrap();
}

fn a_device_has_its_burst_then_its_rate(channel: SecureChannel) {
    let world = World::new(channel);
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

fn strangers_and_stale_or_denied_claims_take_none_of_a_device_s_attempts(channel: SecureChannel) {
    let world = World::new(channel);
    let (_, stale) = claim(channel, &identity(), &master(1), Some(1));
    for _ in 0..100 {
        let (_, forged) = claim(channel, &identity(), &master(9), Some(NOW_MS));
        expect(world.show(&forged, 0), 401, "handshake_failed");
        expect(world.show(&stale, 0), 401, "clock_skew");
    }
    for _ in 0..5 {
        world.attempt(&identity(), 0).unwrap();
    }
}

fn a_recorded_claim_that_is_said_again_elsewhere_takes_nothing_from_the_device(channel: SecureChannel) {
    let world = World::new(channel);
    let (_, recorded) = claim(channel, &identity(), &master(1), None);
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
fn a_hundred_thousand_devices_connect_in_the_same_moment(channel: SecureChannel) {
    let world = World::new(channel);
    let mut device = identity();
    for number in 0..100_000 {
        device.device = format!("lamp-{number}").parse().unwrap();
        world
            .authenticator
            .count_attempt(&device.device, HERE, world.at(0))
            .unwrap();
    }
}

fn each_answer_is_new_and_only_its_own_device_finishes_it(channel: SecureChannel) {
    let world = World::new(channel);
    let (device, credential) = claim(channel, &identity(), &master(1), None);
    let (other, _) = claim(channel, &identity(), &master(1), None);
    let (first, second) = (
        world.show(&credential, 0).unwrap(),
        world.show(&credential, 0).unwrap(),
    );
    assert_ne!(first, second);
    assert!(finish(other, &first).is_err());
    assert_eq!(finish(device, &second).unwrap(), second.challenge.unwrap().keys);
}

fn master_keys_change_while_it_runs(channel: SecureChannel) {
    let world = World::new(channel);
    world.keys.store(Arc::new(master_keys(&[("k2", 2), ("k3", 3)])));
    expect(world.attempt(&identity(), 0), 401, "key_unknown");
    let newer = Identity {
        key_id: "k3".into(),
        ..identity()
    };
    let (_, credential) = claim(channel, &newer, &master(3), None);
    world.show(&credential, 0).unwrap();
}

fn the_endpoint_is_asked_for_key_ids_that_are_not_in_the_file(channel: SecureChannel) {
    let world = World::with_endpoint(channel);
    world.attempt(&identity(), 0).unwrap();
    let elsewhere = Identity {
        key_id: "cloud".into(),
        ..identity()
    };
    let (device, credential) = claim(channel, &elsewhere, &master(5), None);
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

fn a_device_that_the_endpoint_does_not_know_looks_like_one_with_a_wrong_key(channel: SecureChannel) {
    let world = World::with_endpoint(channel);
    let elsewhere = Identity {
        key_id: "cloud".into(),
        ..identity()
    };
    let (_, credential) = claim(channel, &elsewhere, &master(5), None);
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

fn cloud(device: &str) -> Identity {
    Identity {
        key_id: "cloud".into(),
        device: device.parse().unwrap(),
        ..identity()
    }
}

impl World {
    /// A device of the endpoint's says what it has, and the endpoint says what its key is. `None`: the endpoint was not asked.
    fn over_endpoint(
        &self,
        source: Source,
        device: &str,
        (shown, known): (u8, u8),
    ) -> Option<Result<Grant, Denied>> {
        let identity = cloud(device);
        let (_, credential) = claim(self.channel, &identity, &master(shown), Some(NOW_MS));
        let verdict = self
            .authenticator
            .authenticate((self.channel, source), &credential, self.at(0));
        match verdict {
            Verdict::Ask(inquiry) => {
                let key = Ok(Some(master(known).device_key(&identity)));
                Some(self.authenticator.authenticate_with(&inquiry, key, self.at(0)))
            }
            Verdict::Judged(result) => {
                let denied = expect(result, 429, "too_many_attempts");
                assert!(denied.retryable() && denied.retry_after_ms.is_some());
                None
            }
        }
    }
}

fn key_ids_that_the_endpoint_does_not_have_are_not_asked_for(channel: SecureChannel) {
    let world = World::with_endpoint(channel);
    let elsewhere = Identity {
        key_id: "cloud3".into(),
        ..identity()
    };
    let (_, credential) = claim(channel, &elsewhere, &master(5), None);
    expect(world.show(&credential, 0), 401, "key_unknown");
}

fn a_source_asks_in_vain_so_often_and_others_go_on(channel: SecureChannel) {
    let world = World::with_endpoint(channel);
    for n in 0..6 {
        let wrong = world.over_endpoint(HERE, &format!("d{n}"), (5, 6)).unwrap();
        expect(wrong, 401, "key_unknown");
    }
    assert!(world.over_endpoint(HERE, "d6", (5, 5)).is_none());
    assert!(world.over_endpoint([9; 8], "d6", (5, 5)).unwrap().is_ok());
    // What is under a master key needs no question.
    world.attempt(&identity(), 0).unwrap();
}

fn who_uses_a_devices_name_keeps_it_from_nothing(channel: SecureChannel) {
    let world = World::with_endpoint(channel);
    let wrong = world.over_endpoint(HERE, "tv", (5, 6)).unwrap();
    expect(wrong, 401, "key_unknown");
    assert!(world.over_endpoint(HERE, "tv", (5, 5)).unwrap().is_ok());
    // When there was no answer, it was not in vain.
    for _ in 0..10 {
        let inquiry = world.ask(&claim(channel, &cloud("fan"), &master(5), None).1);
        let lost = world
            .authenticator
            .authenticate_with(&inquiry, Err(KeyUnavailable), world.at(0));
        expect(lost, 503, "unavailable");
    }
    assert!(world.over_endpoint(HERE, "fan", (5, 5)).unwrap().is_ok());
}

fn who_shows_the_key_takes_from_nobodys_questions_unless_it_is_refused(channel: SecureChannel) {
    let world = World::with_endpoint(channel);
    for n in 0..100 {
        world
            .over_endpoint(HERE, &format!("d{n}"), (5, 5))
            .unwrap()
            .unwrap();
    }
    // Whoever says again what it recorded gets as far as a device may, and then has its failures.
    let results: Vec<_> = (0..20)
        .map_while(|_| world.over_endpoint(HERE, "d0", (5, 5)))
        .map(|result| result.is_ok())
        .collect();
    assert_eq!(results, [[true; 4].as_slice(), &[false; 6]].concat());
}

fn a_proof_with_the_decoy_is_none(channel: SecureChannel) {
    let world = World::with_endpoint(channel);
    let decoy = DeviceKey::from_bytes(&[7; 32]).unwrap();
    assert_eq!(&world.authenticator.decoy, &decoy, "what the test is about");
    let (_, credential) = claim_with(channel, &cloud("tv"), &decoy, Some(NOW_MS));
    let inquiry = world.ask(&credential);
    let result = world
        .authenticator
        .authenticate_with(&inquiry, Ok(None), world.at(0));
    expect(result, 401, "key_unknown");
}
