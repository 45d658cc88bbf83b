//! Who has recorded datagrams sends them again, changes them, or sends them back: nothing comes of it, and it is counted.

use std::sync::PoisonError;
use std::time::Duration;

use holdfast_tests::Over;
use holdfast_tests::datagram::Said;
use holdfast_tests::device::Device;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::lossy::{Recording, Relay, Way};
use holdfast_tests::service::{Log, Service};
use http::Method;
use serde_json::json;

use crate::stranger::{Stranger, address};

const FORGED: &str = "holdfast_udp_forged_total";
const DUPLICATES: &str = "holdfast_udp_duplicates_total";
const MOVES: &str = "holdfast_udp_path_validations_total";
const DROPPED: &str = "holdfast_udp_datagrams_dropped_total";
const RESETS: &str = "holdfast_udp_resets_total";
const SESSIONS: &str = "holdfast_frontend_sessions";
const LOGINS: &str = "holdfast_backend_logins_total";
const LATER: Duration = Duration::from_millis(300);
const DATA: u8 = 0x40;

/// A device that has said something, and everything that went by.
async fn recorded(gateway: &Gateway) -> (Relay, Recording, Device) {
    let (relay, recording) = Relay::recording(gateway.udp());
    let dial = gateway.dial_udp_at(relay.address, "victim");
    let mut device = dial.connect().await.expect("it gets in");
    device.hello().await;
    for n in 0..3 {
        works(&mut device, n).await;
    }
    (relay, recording, device)
}

async fn works(device: &mut Device, n: usize) {
    device
        .request(("Demo", "Echo"), &n.to_string(), &json!({"n": n}))
        .await;
    assert_eq!(device.next_reply().await.reply_to, n.to_string());
}

/// What went that way so far: HELLOs, or packets.
fn datagrams(recording: &Recording, way: Way, kind: u8) -> Vec<Vec<u8>> {
    let recording = recording.lock().unwrap_or_else(PoisonError::into_inner);
    let of = recording
        .iter()
        .filter(|(went, bytes)| *went == way && bytes[0] == kind);
    of.map(|(_, bytes)| bytes.clone()).collect()
}

/// Everything that the device said comes again, from its own address and from another.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_replayed_while_it_lives_notices_nothing() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let (relay, recording, mut device) = recorded(&gateway).await;
    let frontend = &gateway.frontends[0];
    let said = datagrams(&recording, Way::ToServer, DATA);
    let before = frontend.metric(DUPLICATES, &[]).await;
    let mut elsewhere = Stranger::at(address(30, 0), gateway.udp()).await;
    for datagram in &said {
        relay.inject(Way::ToServer, datagram).await;
        elsewhere.says(datagram).await;
    }
    frontend
        .wait_for_metric(DUPLICATES, |n| n >= before + (2 * said.len()) as f64)
        .await;
    assert_eq!(elsewhere.listens(LATER).await, [], "who repeats is told nothing");
    for hello in datagrams(&recording, Way::ToServer, 0x01) {
        elsewhere.says(&hello).await;
        elsewhere.listens(LATER).await;
        assert!(elsewhere.heard_bytes <= elsewhere.sent_bytes);
    }
    works(&mut device, 3).await;
    assert_eq!(service.calls().len(), 4);
    assert_eq!(frontend.metric(MOVES, &[]).await, 0.0);
    assert_eq!(gateway.backends[0].metric(LOGINS, &[]).await, 1.0);
    let presence = gateway.api(Method::GET, "/v1/devices/victim", None).await.json();
    let at = presence["sessions"][0]["address"].as_str();
    assert_eq!(at, Some(relay.seen_address().to_string().as_str()));
}

/// The same after its end: a challenge is all that is had of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_replayed_after_its_end_does_not_begin_again() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let (relay, recording, device) = recorded(&gateway).await;
    device.close().await;
    let frontend = &gateway.frontends[0];
    frontend.wait_for_metric(SESSIONS, |n| n == 0.0).await;
    frontend
        .wait_for_metric("holdfast_udp_connections", |n| n == 0.0)
        .await;
    let all = [0x01, DATA]
        .map(|kind| datagrams(&recording, Way::ToServer, kind))
        .concat();
    let mut elsewhere = Stranger::at(address(31, 0), gateway.udp()).await;
    for datagram in &all {
        relay.inject(Way::ToServer, datagram).await;
        elsewhere.says(datagram).await;
    }
    for said in elsewhere.listens(LATER).await {
        let poor = matches!(
            said,
            Said::Reset { .. } | Said::Challenge { .. } | Said::Retry { .. }
        );
        assert!(poor, "{said:?}");
    }
    assert!(elsewhere.heard_bytes <= elsewhere.sent_bytes);
    assert!(frontend.metric(RESETS, &[]).await >= 1.0);
    assert_eq!(service.calls().len(), 3);
    assert_eq!(gateway.backends[0].metric(LOGINS, &[]).await, 1.0);
    let presence = gateway.api(Method::GET, "/v1/devices/victim", None).await;
    assert_eq!(presence.json()["presence"], "offline");
}

/// Each part of a packet is changed, cut off or added to; and packets are sent back to where they came from.
#[tokio::test(flavor = "multi_thread")]
async fn changed_and_reflected_packets_are_dropped_and_counted() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let (relay, recording, mut device) = recorded(&gateway).await;
    let frontend = &gateway.frontends[0];
    let sum = async |frontend: &holdfast_tests::gateway::Node| {
        let mut sum = 0.0;
        for counter in [FORGED, DUPLICATES, DROPPED, RESETS] {
            sum += frontend.metric(counter, &[]).await;
        }
        sum
    };
    let before = sum(frontend).await;
    let mut changed = Vec::new();
    for datagram in datagrams(&recording, Way::ToServer, DATA) {
        for at in [0, 1, 8, 9, 12, 13, datagram.len() - 1] {
            let mut flipped = datagram.clone();
            flipped[at] ^= 0x10;
            changed.push(flipped);
        }
        changed.push(datagram[..datagram.len() - 1].to_vec());
        changed.push(datagram[..20].to_vec());
        changed.push([&datagram[..], &[0]].concat());
        // A number that nobody has used yet.
        let mut ahead = datagram.clone();
        ahead[9] ^= 0x40;
        changed.push(ahead);
    }
    // What the server said is worth nothing to itself.
    changed.extend(datagrams(&recording, Way::ToDevice, DATA));
    for datagram in &changed {
        relay.inject(Way::ToServer, datagram).await;
    }
    let all = before + changed.len() as f64;
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while sum(frontend).await < all {
        let counted = sum(frontend).await - before;
        assert!(
            std::time::Instant::now() < deadline,
            "{counted} of {} are counted",
            changed.len()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(frontend.metric(FORGED, &[]).await >= (changed.len() / 5) as f64);
    for datagram in datagrams(&recording, Way::ToServer, DATA) {
        relay.inject(Way::ToDevice, &datagram).await;
    }
    works(&mut device, 3).await;
    assert_eq!(service.calls().len(), 4);
    // Those whose numbers it has seen are dropped for that already.
    let stats = device.look().await.0;
    assert!(stats.forged + u64::from(stats.duplicates) >= 3, "{stats:?}");
}

/// Somebody on the way doubles everything, puts a changed copy before each, and lets packets of long ago come again.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_while_all_of_it_is_tampered_with() {
    const REQUESTS: usize = 100;
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let mut old = Vec::new();
    let tamper = move |_, datagram: Vec<u8>| {
        if datagram[0] != DATA {
            return vec![datagram];
        }
        old.push(datagram.clone());
        let mut flipped = datagram.clone();
        *flipped.last_mut().expect("it has a tag") ^= 1;
        let long_ago = old[old.len() / 3].clone();
        vec![flipped, datagram.clone(), long_ago, datagram]
    };
    let relay = Relay::tampering(gateway.udp(), Box::new(tamper));
    let dial = gateway.dial_udp_at(relay.address, "d");
    let mut device = dial.connect().await.expect("it gets in");
    device.hello().await;
    for n in 0..REQUESTS {
        let payload = json!({"n": n, "pad": "x".repeat(n * 50)});
        device.request(("Demo", "Echo"), &n.to_string(), &payload).await;
    }
    for n in 0..REQUESTS {
        assert_eq!(device.next_reply().await.json()["n"], n);
    }
    assert_eq!(service.calls().len(), REQUESTS, "each once");
    assert_eq!(service.log(Log::inconsistent_keys), 0);
    let frontend = &gateway.frontends[0];
    assert!(frontend.metric(FORGED, &[]).await >= REQUESTS as f64);
    assert!(frontend.metric(DUPLICATES, &[]).await >= REQUESTS as f64);
}

/// Whatever it is told, an eavesdropper finds nothing of what was said in what went by.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_is_not_on_the_wire() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let (_relay, recording, device) = recorded(&gateway).await;
    device.close().await;
    let recording = recording.lock().unwrap_or_else(PoisonError::into_inner);
    for (way, datagram) in recording.iter().filter(|(_, bytes)| bytes[0] == DATA) {
        for said in [
            &b"Demo"[..],
            b"Echo",
            b"@hello",
            b"@welcome",
            b"session",
            b"normal",
        ] {
            let shown = datagram.windows(said.len()).any(|part| part == said);
            assert!(!shown, "{way:?} {datagram:02x?}");
        }
    }
}
