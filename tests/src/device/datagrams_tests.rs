//! A device against the server's end of the same transport, without a frontend: what it asks for is echoed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use holdfast_proto::secure::{Credential, SecureChannel, Verified};
use holdfast_proto::udp::datagram::{Hello, Refused};
use holdfast_proto::udp::datagram::{encode_challenge, encode_refused, encode_reset};
use holdfast_proto::udp::{
    ConnectionId, Datagram, INITIAL_SERVER_CREDIT, Opening, PeerCredit, ResetKey, Side,
};
use serde_json::json;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::device::Device;
use crate::dial::{Dial, DialError, Endpoint, Transport};
use crate::keys::DeviceKeys;
use crate::lossy::{Relay, Way, Weather};

/// Takes devices with its key, echoes what they send, refuses those called `refused`.
struct Server {
    keys: Arc<DeviceKeys>,
    address: SocketAddr,
    /// Where each connection's device is now.
    peers: Arc<Mutex<Vec<SocketAddr>>>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        Self::on(
            socket,
            Arc::new(DeviceKeys::generate()),
            ResetKey::from_bytes([1; 32]),
        )
    }

    fn on(socket: UdpSocket, keys: Arc<DeviceKeys>, reset: ResetKey) -> Self {
        let address = socket.local_addr().unwrap();
        let peers = Arc::new(Mutex::new(Vec::new()));
        let run = Run {
            socket,
            keys: keys.clone(),
            reset,
            peers: peers.clone(),
            config: Config::default(),
            open: HashMap::new(),
            out: Vec::new(),
        };
        let task = tokio::spawn(run.run());
        Self {
            keys,
            address,
            peers,
            task,
        }
    }

    fn dial(&self, address: SocketAddr, id: &str) -> Dial {
        let identity = self.keys.identity(id);
        let key = self.keys.device_key(&identity);
        let transport = Transport::Datagrams;
        Dial::new(&Endpoint { address, transport }).key(identity, key)
    }

    async fn device(&self, address: SocketAddr) -> Device {
        self.dial(address, "d").connect().await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Run {
    socket: UdpSocket,
    keys: Arc<DeviceKeys>,
    reset: ResetKey,
    peers: Arc<Mutex<Vec<SocketAddr>>>,
    config: Config,
    /// The connection, and the CHALLENGE that made it, by attempt.
    open: HashMap<u64, (Connection, Vec<u8>)>,
    out: Vec<u8>,
}

impl Run {
    async fn run(mut self) {
        let mut buffer = [0; 2048];
        loop {
            let due = self.open.values().filter_map(|(c, _)| c.poll_timeout()).min();
            let until = due.unwrap_or_else(|| Instant::now() + Duration::from_secs(1));
            if let Ok(received) =
                tokio::time::timeout_at(until.into(), self.socket.recv_from(&mut buffer)).await
            {
                let (length, from) = received.unwrap_or((0, self.socket.local_addr().unwrap()));
                self.on_datagram(from, &mut buffer[..length]).await;
            }
            self.settle().await;
        }
    }

    async fn on_datagram(&mut self, from: SocketAddr, datagram: &mut [u8]) {
        let mut answer = Vec::new();
        match holdfast_proto::udp::parse(datagram) {
            Ok(Datagram::Hello(hello)) => self.on_hello(from, &hello, &mut answer),
            Ok(Datagram::Data { cid, .. }) => {
                let known = self.open.values_mut().find(|(c, _)| c.cid() == cid);
                match known {
                    Some((connection, _)) => {
                        connection.handle_datagram(
                            &self.config,
                            Instant::now(),
                            from,
                            datagram,
                            rand::random(),
                        );
                    }
                    None => encode_reset(cid, &self.reset.token(cid).0, &mut answer),
                }
            }
            _ => {}
        }
        if !answer.is_empty() {
            self.socket.send_to(&answer, from).await.ok();
        }
    }

    fn on_hello(&mut self, from: SocketAddr, hello: &Hello<'_>, answer: &mut Vec<u8>) {
        let parameters = hello.parameters;
        if let Some((_, challenge)) = self.open.get(&parameters.attempt) {
            return answer.extend_from_slice(challenge);
        }
        let credential = Credential::parse_datagram(&parameters.encode(), hello.credential).unwrap();
        let key = self.keys.device_key(&credential.identity);
        let Ok(verified) = Verified::verify(SecureChannel::Udp, &credential, &key) else {
            return refuse(parameters.attempt, 401, "handshake_failed", answer);
        };
        if credential.identity.device.as_str() == "refused" {
            return refuse(parameters.attempt, 503, "unavailable", answer);
        }
        let (message2, keys) = verified.answer().unwrap();
        let cid = ConnectionId::new(0, self.open.len() as u32, rand::random());
        encode_challenge(parameters.attempt, cid, &message2.try_into().unwrap(), answer);
        let opening = Opening {
            cid,
            keys,
            peer: from,
            peer_max_datagram: parameters.max_datagram,
            peer_credit: PeerCredit {
                messages: parameters.receive_messages.into(),
                bytes: parameters.receive_bytes.into(),
            },
            own_credit: INITIAL_SERVER_CREDIT,
            reset_token: Some(self.reset.token(cid)),
        };
        let connection = Connection::new(Side::Server, opening, Instant::now());
        self.open.insert(parameters.attempt, (connection, answer.clone()));
    }

    /// Echoes, and sends what is due.
    async fn settle(&mut self) {
        let config = &self.config;
        let mut ended = Vec::new();
        for (attempt, (connection, _)) in &mut self.open {
            let now = Instant::now();
            connection.handle_timeout(config, now);
            while let Some(event) = connection.poll_event(config) {
                match event {
                    Event::Message(_, text) if text == "bye" => connection.close(now, 4001, "bye"),
                    Event::Message(kind, payload) => connection.send(config, kind, payload).unwrap(),
                    Event::PeerMoved(to) => self.peers.lock().unwrap().push(to),
                    Event::Ended(_) => ended.push(*attempt),
                    Event::Closed { .. } | Event::Delivered(_) => {}
                }
            }
            self.out.clear();
            while let Some(to) = connection.poll_transmit(config, now, &mut self.out) {
                self.socket.send_to(&self.out, to).await.ok();
                self.out.clear();
            }
        }
        for attempt in ended {
            self.open.remove(&attempt);
        }
    }
}

fn refuse(attempt: u64, status: u16, code: &str, answer: &mut Vec<u8>) {
    let refused = Refused {
        attempt,
        status,
        retry_after_ms: 1500,
        retryable: true,
        code,
    };
    encode_refused(&refused, answer);
}

async fn echoes(device: &mut Device, count: usize, bytes: usize) {
    for n in 0..count {
        let payload = json!({"n": n, "pad": "x".repeat(bytes)});
        device.request(("A", "B"), &n.to_string(), &payload).await;
        match device.next().await {
            Incoming::Push(event) => assert_eq!(event.json()["n"], n),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn messages_of_any_size_are_echoed_in_clear_and_foul_weather() {
    let server = Server::start().await;
    let mut device = server.device(server.address).await;
    echoes(&mut device, 50, 10).await;
    echoes(&mut device, 3, 100_000).await;
    for weather in [Weather::LOSSY, Weather::STORMY] {
        let relay = Relay::before(server.address, weather, 7);
        let mut device = server.device(relay.address).await;
        echoes(&mut device, 50, 10).await;
        echoes(&mut device, 3, 50_000).await;
    }
}

#[tokio::test]
async fn refusals_and_closes_have_their_codes() {
    let server = Server::start().await;
    let answer = server.dial(server.address, "refused").refusal().await;
    answer.expect_problem(503, "unavailable");
    assert_eq!(answer.header("retry-after"), "2");
    let identity = server.keys.identity("d");
    let wrong = DeviceKeys::generate().device_key(&identity);
    let dial = server.dial(server.address, "d").key(identity, wrong);
    dial.refusal().await.expect_problem(401, "handshake_failed");
    let mut device = server.device(server.address).await;
    device.send_text("bye").await;
    assert_eq!(device.until_closed().await, (None, 4001));
    server.device(server.address).await.close().await;
}

#[tokio::test]
async fn a_restarted_server_resets_and_a_moved_device_is_followed() {
    let server = Server::start().await;
    let relay = Relay::before(server.address, Weather::CLEAR, 7);
    let mut device = server.device(relay.address).await;
    echoes(&mut device, 3, 10).await;
    relay.move_devices();
    echoes(&mut device, 3, 10).await;
    assert_eq!(server.peers.lock().unwrap().as_slice(), [relay.seen_address()]);
    let (address, keys) = (server.address, server.keys.clone());
    server.task.abort();
    drop(server);
    let socket = loop {
        match UdpSocket::bind(address).await {
            Ok(socket) => break socket,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let _again = Server::on(socket, keys, ResetKey::from_bytes([1; 32]));
    device.send_text("still there?").await;
    assert_eq!(
        device.next().await,
        Incoming::Closed {
            code: ABNORMAL,
            reason: "reset".to_owned()
        }
    );
}

/// What a device does not take stays with the server: no more than its credit comes.
#[tokio::test]
async fn a_device_that_reads_nothing_grants_nothing() {
    let server = Server::start().await;
    let relay = Relay::before(server.address, Weather::CLEAR, 7);
    let dial = server.dial(relay.address, "d").receive_buffer(4096);
    let mut device = dial.connect().await.unwrap();
    for n in 0..20 {
        let payload = json!({"n": n, "pad": "x".repeat(2000)});
        device.request(("A", "B"), &n.to_string(), &payload).await;
    }
    let full = timeout(Duration::from_secs(1), async {
        while relay.came_bytes(Way::ToDevice) < 25_000 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(full.await.is_err(), "40 KB came to a device with room for 4");
    for n in 0..20 {
        match device.next().await {
            Incoming::Push(event) => assert_eq!(event.json()["n"], n),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn nobody_there_is_a_timeout() {
    let server = Server::start().await;
    let relay = Relay::before(server.address, Weather::BLACK_HOLE, 7);
    let dial = server
        .dial(relay.address, "d")
        .gives_up_after(Duration::from_secs(10));
    let error = dial.connect().await.err();
    assert!(matches!(error, Some(DialError::Timeout)), "{error:?}");
    assert!(relay.came(Way::ToServer) >= 4);
}
