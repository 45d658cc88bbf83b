//! A slow line with short queues.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use holdfast_tests::Over;
use holdfast_tests::network::{DEVICE, with_network};
use holdfast_tests::service::Service;
use serde_json::json;

use crate::common::{Sdk, assert_each_once, gateway};

const BITS_PER_SECOND: u64 = 8_000_000;
/// With its header a message of the longest kind that a frontend takes by default.
const PAYLOAD_BYTES: usize = (1 << 20) - 1024;

#[test]
fn the_longest_messages_get_through_a_slow_line_each_way() {
    with_network(|network| async move {
        network.throttle(BITS_PER_SECOND);
        let service = Service::start().await;
        let gateway = gateway(&service, Over::Udp).await;
        let sdk = Sdk::online(&network, &gateway, "sdk").await;
        let payload = json!({"pad": "x".repeat(PAYLOAD_BYTES - 64)});
        let begun = Instant::now();
        let reply = sdk.ask(&payload).await.expect("a reply");
        let took = begun.elapsed();
        assert_eq!(reply.payload, payload.to_string());
        let ideal = Duration::from_secs_f64(2.0 * 8.0 * PAYLOAD_BYTES as f64 / BITS_PER_SECOND as f64);
        println!(
            "there and back in {took:?}, at best {ideal:?}; {} packets overflowed",
            network.overflowed()
        );
        assert!(took > ideal, "{took:?}: the line was not slow");
        sdk.assert_same_session(&gateway, DEVICE).await;
        assert_each_once(&service, 1);
    });
}

/// Several share the line, and nobody starves.
#[test]
fn several_share_a_slow_line() {
    const DEVICES: [&str; 4] = ["a", "b", "c", "d"];
    with_network(|network| async move {
        network.throttle(BITS_PER_SECOND);
        let service = Service::start().await;
        let gateway = gateway(&service, Over::Udp).await;
        let sdks = join_all(DEVICES.map(|id| Sdk::online(&network, &gateway, id))).await;
        let payload = json!({"pad": "x".repeat(PAYLOAD_BYTES / 4)});
        let replies = join_all(sdks.iter().map(|sdk| sdk.ask(&payload))).await;
        for reply in replies {
            assert_eq!(reply.expect("a reply").payload, payload.to_string());
        }
        println!("{} packets overflowed", network.overflowed());
        for sdk in &sdks {
            sdk.assert_same_session(&gateway, DEVICE).await;
        }
        assert_each_once(&service, DEVICES.len());
    });
}
