//! A connection on `ws` that lasts for so many records that the keys of both directions move on, with records and keys written down a
//! second time from the specification.

use aes_gcm::aead::AeadInPlace as _;
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce, Tag};
use holdfast_proto::secure::{Initiator, SecureChannel, TrafficKey, parse_challenge};
use holdfast_tests::ChannelKind;
use holdfast_tests::device::event_text;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::keys::now_ms;
use holdfast_tests::service::Service;
use holdfast_tests::wire::{BINARY, read_frame, write_frame};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::TcpStream;

/// Records under one key (section 5.3).
const REKEY_RECORDS: u64 = 1 << 20;
/// What is under way at a time: far below what sockets hold.
const BATCH: u64 = 1024;
const TEXT: u8 = 0;

/// The records of one direction.
#[derive(Clone)]
struct Records {
    cipher: Aes256Gcm,
    counter: u64,
}

impl Records {
    fn new(key: &TrafficKey) -> Self {
        Self {
            cipher: Aes256Gcm::new(key.as_bytes().into()),
            counter: 0,
        }
    }

    /// The counter of the next record, under the key whose turn it is.
    fn next(&mut self) -> u64 {
        if self.counter > 0 && self.counter.is_multiple_of(REKEY_RECORDS) {
            let mut key = [0; 32];
            // The tag is no part of it.
            encrypt(&self.cipher, u64::MAX, &mut key);
            self.cipher = Aes256Gcm::new(&key.into());
        }
        self.counter += 1;
        self.counter - 1
    }

    fn seal(&mut self, text: &str) -> Vec<u8> {
        let counter = self.next();
        let mut record = [&[TEXT], text.as_bytes()].concat();
        let tag = encrypt(&self.cipher, counter, &mut record);
        record.extend_from_slice(&tag);
        record
    }

    fn open(&mut self, record: &[u8]) -> String {
        let counter = self.next();
        let plain = decrypt(&self.cipher, counter, record);
        let plain = plain.unwrap_or_else(|| panic!("record {counter} does not open"));
        assert_eq!(plain[0], TEXT);
        String::from_utf8(plain[1..].to_vec()).unwrap()
    }
}

fn encrypt(cipher: &Aes256Gcm, counter: u64, plain: &mut [u8]) -> Tag {
    let nonce = Nonce::from(nonce(counter));
    cipher.encrypt_in_place_detached(&nonce, &[], plain).unwrap()
}

fn decrypt(cipher: &Aes256Gcm, counter: u64, record: &[u8]) -> Option<Vec<u8>> {
    let (sealed, tag) = record.split_last_chunk::<16>()?;
    let (nonce, mut plain) = (Nonce::from(nonce(counter)), sealed.to_vec());
    let opened = cipher.decrypt_in_place_detached(&nonce, &[], &mut plain, &Tag::from(*tag));
    opened.ok().map(|()| plain)
}

fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce
}

/// A device that is online.
struct Device {
    stream: BufStream<TcpStream>,
    to_server: Records,
    to_device: Records,
}

impl Device {
    async fn online(gateway: &Gateway, id: &str) -> Self {
        let identity = gateway.keys.identity(id);
        let key = gateway.keys.device_key(&identity);
        let (initiator, credential) =
            Initiator::new(SecureChannel::Ws, &identity, &key, Some(now_ms())).unwrap();
        let mut stream = BufStream::new(TcpStream::connect(gateway.ws()).await.unwrap());
        let request = format!(
            "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Authorization: Holdfast {credential}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "));
        let challenge = read_frame(&mut stream).await.unwrap();
        let challenge = parse_challenge(&String::from_utf8(challenge.payload).unwrap()).unwrap();
        let keys = initiator.finish(&challenge).unwrap();
        let mut device = Self {
            stream,
            to_server: Records::new(&keys.to_server),
            to_device: Records::new(&keys.to_device),
        };
        device.say("@hello {}").await;
        device.stream.flush().await.unwrap();
        assert!(device.hear().await.starts_with("@welcome "));
        device
    }

    async fn say(&mut self, text: &str) {
        let record = self.to_server.seal(text);
        write_frame(&mut self.stream, 0x80 | BINARY, true, &record).await;
    }

    async fn record(&mut self) -> Vec<u8> {
        let frame = read_frame(&mut self.stream).await.expect("the connection lasts");
        assert_eq!(frame.opcode, BINARY, "{frame:?}");
        frame.payload
    }

    async fn hear(&mut self) -> String {
        let record = self.record().await;
        self.to_device.open(&record)
    }

    /// So many `@ping`s and their `@pong`s.
    async fn ping(&mut self, count: u64) {
        for _ in 0..count {
            self.say("@ping").await;
        }
        self.stream.flush().await.unwrap();
        for _ in 0..count {
            assert_eq!(self.hear().await, "@pong");
        }
    }

    /// A request is answered, and a push comes.
    async fn works(&mut self, gateway: &Gateway, id: &str) {
        self.say(&event_text(("Demo", "Echo"), "r", &json!({"n": 1})))
            .await;
        self.stream.flush().await.unwrap();
        let reply: Value = serde_json::from_str(&self.hear().await).unwrap();
        assert_eq!(
            (&reply["header"]["reply_to"], &reply["payload"]),
            (&json!("r"), &json!({"n": 1}))
        );
        gateway.push(json!({"device": id}), json!("pushed")).await;
        let push: Value = serde_json::from_str(&self.hear().await).unwrap();
        assert_eq!(push["payload"], "pushed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_outlives_the_keys_of_both_its_directions() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(ChannelKind::Ws, &service).await;
    let mut device = Device::online(&gateway, "d").await;
    let begun = std::time::Instant::now();
    while device.to_server.counter + BATCH < REKEY_RECORDS {
        device.ping(BATCH).await;
    }
    device.works(&gateway, "d").await;
    // The last record of each direction under its first key. The server has said more: `@welcome` for `@hello`, and the push.
    device.ping(REKEY_RECORDS - 1 - device.to_device.counter).await;
    assert_eq!(device.to_device.counter, REKEY_RECORDS - 1);
    device.ping(1).await;
    println!("{REKEY_RECORDS} records each way took {:?}", begun.elapsed());
    let old = device.to_device.clone();
    device.say("@ping").await;
    device.stream.flush().await.unwrap();
    let record = device.record().await;
    assert_eq!(
        decrypt(&old.cipher, REKEY_RECORDS, &record),
        None,
        "the gateway's key did not move on"
    );
    assert_eq!(device.to_device.open(&record), "@pong");
    device.ping(BATCH).await;
    assert!(device.to_server.counter > REKEY_RECORDS);
    device.works(&gateway, "d").await;
}
