//! Somebody on the way speaks to a device in the server's name: what he can make up does nothing, before the handshake and after it.

use std::sync::PoisonError;

use holdfast_tests::Over;
use holdfast_tests::datagram::{Said, challenge, data_header, refused, reset};
use holdfast_tests::device::Device;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::lossy::{Relay, Way};
use holdfast_tests::service::Service;
use serde_json::json;

use crate::victim::Victim;

async fn works(device: &mut Device, id: &str) {
    device.request(("Demo", "Echo"), id, &json!({})).await;
    assert_eq!(device.next_reply().await.reply_to, id);
}

fn retry(attempt: u64) -> Vec<u8> {
    [&[2, 1][..], &attempt.to_be_bytes(), &[20], &[3; 20]].concat()
}

/// All that a server could say of this attempt and this connection, made up.
fn forgeries(attempt: u64, cid: u64) -> Vec<Vec<u8>> {
    let mut packet = data_header(cid, 7).to_vec();
    packet.resize(100, 0x55);
    let mut first = data_header(cid, 0).to_vec();
    first.resize(29, 0);
    vec![
        refused(attempt, 401, "handshake_failed"),
        refused(attempt, 503, "unavailable"),
        retry(attempt),
        challenge(attempt, cid, &[7; 48]),
        challenge(attempt, cid ^ 1, &[9; 48]),
        reset(cid, &[0; 16]),
        reset(cid, &[0x5a; 16]),
        reset(cid ^ 1, &[0x5a; 16]),
        packet,
        first,
        vec![0x99; 50],
        vec![],
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_up_does_nothing_to_a_session() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let (relay, recording) = Relay::recording(gateway.udp());
    let dial = gateway.dial_udp_at(relay.address, "d");
    let mut device = dial.connect().await.expect("it gets in");
    device.hello().await;
    let said = |way, kind| {
        let recording = recording.lock().unwrap_or_else(PoisonError::into_inner);
        let mut of = recording
            .iter()
            .filter(|(went, bytes)| *went == way && bytes[0] == kind);
        of.next().map(|(_, bytes)| bytes.clone()).expect("it was said")
    };
    let real = said(Way::ToDevice, 0x03);
    let Said::Challenge { attempt, cid, .. } = Said::parse(&real) else {
        panic!("expected a CHALLENGE");
    };
    for (n, forgery) in forgeries(attempt, cid).iter().enumerate() {
        relay.inject(Way::ToDevice, forgery).await;
        works(&mut device, &n.to_string()).await;
    }
    // The real one again is late by now.
    relay.inject(Way::ToDevice, &real).await;
    // A reset's token is a connection's own, and a byte short of it is nothing.
    for byte in 0..=255 {
        relay.inject(Way::ToDevice, &reset(cid, &[byte; 16])).await;
    }
    works(&mut device, "last").await;
    assert!(device.look().await.0.forged >= 1);
}

/// The forger is quicker than the server each time.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_up_keeps_nobody_from_coming_in() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let tamper = |way, datagram: Vec<u8>| match (way, datagram.first()) {
        (Way::ToDevice, Some(0x03)) => {
            let Said::Challenge { attempt, cid, .. } = Said::parse(&datagram) else {
                unreachable!("it is a CHALLENGE by its type");
            };
            let mut all = forgeries(attempt, cid);
            all.push(datagram);
            all
        }
        _ => vec![datagram],
    };
    let relay = Relay::tampering(gateway.udp(), Box::new(tamper));
    let dial = gateway.dial_udp_at(relay.address, "raw");
    let mut device = dial.connect().await.expect("it gets in");
    device.hello().await;
    works(&mut device, "x").await;
    let url = format!("udp://{}", relay.address);
    let victim = Victim::start_at(&gateway, "sdk", url);
    victim.online().await;
    victim.works().await;
}

/// The SDK's device too is none the worse for what is put between its datagrams.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_up_ends_no_session_of_the_sdk_s() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let mut attempt = 0;
    let tamper = move |way, datagram: Vec<u8>| {
        if let (Way::ToDevice, Some(0x02..=0x04 | 0x40)) = (way, datagram.first()) {
            let cid = match Said::parse(&datagram) {
                Said::Challenge { attempt: of, .. } => {
                    attempt = of;
                    return vec![datagram];
                }
                Said::Data { cid, .. } => cid,
                _ => return vec![datagram],
            };
            let mut all = forgeries(attempt, cid);
            all.push(datagram);
            return all;
        }
        vec![datagram]
    };
    let relay = Relay::tampering(gateway.udp(), Box::new(tamper));
    let url = format!("udp://{}", relay.address);
    let mut victim = Victim::start_at(&gateway, "sdk", url);
    victim.online().await;
    for _ in 0..20 {
        victim.works().await;
    }
    assert!(victim.undisturbed(), "its connection ended");
    assert_eq!(service.calls().len(), 20);
}
