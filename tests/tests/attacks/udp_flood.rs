//! HELLOs in numbers that nobody honest makes: who is connected notices next to nothing, and who is honest gets in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use holdfast_tests::Over;
use holdfast_tests::device::Device;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::lossy::{Relay, Way};
use holdfast_tests::service::Service;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::stranger::{Stranger, address, strange_hello};

const UNFINISHED: &str = "holdfast_udp_attempts_unfinished";
const RECEIVED: &str = "holdfast_udp_datagrams_received_total";
const ROUNDS: usize = 200;
/// Datagrams per second. A generator that spins would starve what it measures.
const RATE: u32 = 10_000;

/// Sends HELLOs of devices that are none, from many addresses, until told to stop.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Flood {
    async fn start(gateway: &Gateway) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut strangers = Vec::new();
        for n in 0..200 {
            strangers.push(Stranger::at(address(50, n), gateway.udp()).await);
        }
        // Handshakes cost their maker more than the one who refuses them: some are made once, and made new by their attempt.
        let hellos: Vec<Vec<u8>> = (0..64)
            .map(|n| strange_hello(&gateway.keys, &format!("d{n}")).encode(&[]))
            .collect();
        let (stopped, counted) = (stop.clone(), sent.clone());
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(1));
            let mut n = 0u64;
            while !stopped.load(Ordering::Relaxed) {
                ticks.tick().await;
                for _ in 0..RATE / 1000 {
                    let mut hello = hellos[n as usize % hellos.len()].clone();
                    hello[2..10].copy_from_slice(&n.to_be_bytes());
                    let stranger = &strangers[n as usize % strangers.len()];
                    stranger.socket.try_send(&hello).ok();
                    n += 1;
                }
                counted.store(n as usize, Ordering::Relaxed);
            }
        });
        Self { stop, sent, task }
    }

    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("it does not panic");
        self.sent.load(Ordering::Relaxed)
    }
}

/// Round trips one after the other; gives the median and the longest.
async fn round_trips(device: &mut Device) -> (Duration, Duration) {
    let mut took = Vec::new();
    for n in 0..ROUNDS {
        let begun = Instant::now();
        device.request(("Demo", "Echo"), &n.to_string(), &json!({})).await;
        assert_eq!(device.next_reply().await.reply_to, n.to_string());
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    (took[ROUNDS / 2], took[ROUNDS - 1])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_hellos_leaves_sessions_alone_and_honest_devices_a_way_in() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let mut bound = gateway.device("bound").await;
    round_trips(&mut bound).await;
    let (before, longest_before) = round_trips(&mut bound).await;
    let memory = gateway.frontends[0].resident_bytes();
    let flood = Flood::start(&gateway).await;
    gateway.frontends[0]
        .wait_for_metric(RECEIVED, |n| n > 5_000.0)
        .await;
    let (during, longest) = round_trips(&mut bound).await;
    // It has its turn among the others, and is asked to show where it is.
    let mut honest = gateway.dial_as("honest").connect().await.expect("it gets in");
    honest.hello().await;
    let unfinished = gateway.frontends[0].metric(UNFINISHED, &[]).await;
    let growth = gateway.frontends[0].resident_bytes().saturating_sub(memory);
    let sent = flood.stop().await;
    println!(
        "{sent} HELLOs; median {before:?}, then {during:?}; longest {longest_before:?}, then {longest:?}"
    );
    // 64 of each shard may be unfinished, and those of sources that have shown where they are.
    assert!(unfinished <= 64.0 * 8.0, "{unfinished} are unfinished");
    assert!(growth < 32 << 20, "the frontend grew by {growth} bytes");
    round_trips(&mut bound).await;
}

/// Somebody who saw a connection's id sends packets for it, made up or recorded, far faster than the device.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_forged_and_repeated_packets_costs_the_session_nothing() {
    const PACKETS: usize = 20_000;
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let (relay, recording) = Relay::recording(gateway.udp());
    let dial = gateway.dial_udp_at(relay.address, "bound");
    let mut bound = dial.connect().await.expect("it gets in");
    bound.hello().await;
    round_trips(&mut bound).await;
    let last = {
        let recording = recording
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut sent = recording
            .iter()
            .filter(|(way, bytes)| *way == Way::ToServer && bytes[0] == 0x40);
        sent.next_back()
            .map(|(_, bytes)| bytes.clone())
            .expect("it has sent packets")
    };
    let mut forged = last.clone();
    *forged.last_mut().expect("it has a tag") ^= 1;
    // A number that is still to come.
    forged[10] ^= 1;
    let mut stranger = Stranger::at(address(51, 0), gateway.udp()).await;
    let flood = async {
        for n in 0..PACKETS {
            let datagram = if n % 2 == 0 { &forged } else { &last };
            stranger.says(datagram).await;
            if n % 20 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    };
    let ((), _) = tokio::join!(flood, round_trips(&mut bound));
    assert!(stranger.listens(Duration::from_millis(100)).await.is_empty());
    let frontend = &gateway.frontends[0];
    for counter in ["holdfast_udp_forged_total", "holdfast_udp_duplicates_total"] {
        let counted = frontend.metric(counter, &[]).await;
        assert!(counted >= (PACKETS / 4) as f64, "{counter}: {counted}");
    }
    assert_eq!(
        frontend.metric("holdfast_udp_path_validations_total", &[]).await,
        0.0
    );
    round_trips(&mut bound).await;
}
