//! The relay between two bare sockets.

use tokio::time::timeout;

use super::*;

const SOON: Duration = Duration::from_secs(10);
/// Nothing that is on its way takes longer, on a busy machine either.
const LATER: Duration = Duration::from_secs(1);

struct Ends {
    relay: Relay,
    device: UdpSocket,
    server: UdpSocket,
}

impl Ends {
    async fn new(weather: Weather) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = bind(any).unwrap();
        let relay = Relay::before(server.local_addr().unwrap(), weather, 1);
        let device = bind(any).unwrap();
        device.connect(relay.address).await.unwrap();
        Self {
            relay,
            device,
            server,
        }
    }

    async fn arrives(&self) -> (u8, SocketAddr) {
        let mut buffer = [0; 8];
        let (_, from) = timeout(SOON, self.server.recv_from(&mut buffer))
            .await
            .expect("a datagram comes")
            .unwrap();
        (buffer[0], from)
    }

    async fn answers(&self, to: SocketAddr, byte: u8) {
        self.server.send_to(&[byte], to).await.unwrap();
        let mut buffer = [0; 8];
        let length = timeout(SOON, self.device.recv(&mut buffer)).await.unwrap();
        assert_eq!((length.unwrap(), buffer[0]), (1, byte));
    }

    /// What arrives of `count` datagrams, in that order.
    async fn send(&self, count: u8) -> Vec<u8> {
        for byte in 0..count {
            self.device.send(&[byte]).await.unwrap();
        }
        let mut arrived = Vec::new();
        let mut buffer = [0; 8];
        while let Ok(received) = timeout(LATER, self.server.recv_from(&mut buffer)).await {
            received.unwrap();
            arrived.push(buffer[0]);
        }
        arrived
    }
}

#[tokio::test]
async fn in_clear_weather_all_passes_both_ways_in_order() {
    let ends = Ends::new(Weather::CLEAR).await;
    assert_eq!(ends.send(50).await, (0..50).collect::<Vec<_>>());
    ends.device.send(&[9]).await.unwrap();
    let (_, from) = ends.arrives().await;
    assert_ne!(from, ends.device.local_addr().unwrap());
    ends.answers(from, 7).await;
    assert_eq!(
        (ends.relay.came(Way::ToServer), ends.relay.came(Way::ToDevice)),
        (51, 1)
    );
}

#[tokio::test]
async fn weather_loses_doubles_and_reorders_by_its_seed() {
    let losing = Weather {
        lost_per_mille: 500,
        ..Weather::CLEAR
    };
    let mut outcomes = Vec::new();
    for _ in 0..2 {
        let arrived = Ends::new(losing).await.send(100).await;
        assert!((25..75).contains(&arrived.len()), "{arrived:?}");
        outcomes.push(arrived);
    }
    assert_eq!(outcomes[0], outcomes[1], "the same seed, the same losses");
    let doubling = Weather {
        doubled_per_mille: 1000,
        ..Weather::CLEAR
    };
    assert_eq!(Ends::new(doubling).await.send(3).await, [0, 0, 1, 1, 2, 2]);
    let reordering = Weather {
        held_back_per_mille: 300,
        ..Weather::CLEAR
    };
    let mut arrived = Ends::new(reordering).await.send(50).await;
    assert!(!arrived.is_sorted(), "{arrived:?}");
    arrived.sort_unstable();
    assert_eq!(arrived, (0..50).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_device_that_is_moved_is_seen_elsewhere_and_its_old_address_is_dead() {
    let ends = Ends::new(Weather::CLEAR).await;
    ends.device.send(&[1]).await.unwrap();
    let (_, before) = ends.arrives().await;
    assert_eq!(before, ends.relay.seen_address());
    ends.relay.move_devices();
    ends.server.send_to(&[2], before).await.unwrap();
    ends.device.send(&[3]).await.unwrap();
    let (byte, after) = ends.arrives().await;
    assert_eq!((byte, after), (3, ends.relay.seen_address()));
    assert_ne!(before, after);
    ends.answers(after, 4).await;
}

#[tokio::test]
async fn a_black_hole_swallows_and_injected_datagrams_pass() {
    let ends = Ends::new(Weather::CLEAR).await;
    ends.device.send(&[1]).await.unwrap();
    let (_, from) = ends.arrives().await;
    ends.relay.black_hole();
    assert!(ends.send(10).await.is_empty());
    ends.relay.inject(Way::ToServer, &[8]).await;
    assert_eq!(ends.arrives().await, (8, from));
    ends.relay.inject(Way::ToDevice, &[9]).await;
    let mut buffer = [0; 8];
    ends.device.recv(&mut buffer).await.unwrap();
    assert_eq!(buffer[0], 9);
}
