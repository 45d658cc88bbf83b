//! What an idle `wss` connection holds: its heap and its inline size, counted by the global allocator.
//!
//! Alone in its binary, single-threaded while it measures.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};

use bytes::Bytes;
use holdfast_frontend::channel::{
    Channel, ChannelEvent, MessageKind, Scratch, ScratchLimits, StreamChannel, WssChannel, load_server_config,
};
use rustls::crypto::ring;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::ServerName;

struct Counting;

static HELD: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; only sizes are counted.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's obligations are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's obligations are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Design §11: 5 KiB of user space for all of an idle `wss` session. The rest of it is the driver's and the session's.
const LIMIT: isize = 4_500;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer abc\r\n\r\n";

fn held() -> isize {
    HELD.load(Ordering::Relaxed)
}

fn configs(dir: &Path, version: &'static SupportedProtocolVersion) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (load_server_config(&certificate, &key).unwrap(), Arc::new(client))
}

/// One read of the gateway and its answer; how many bytes it made the channel hold is counted apart from the client's.
fn turn(
    channel: &mut WssChannel,
    scratch: &mut Scratch,
    client: &mut ClientConnection,
    grown: &mut isize,
) -> Vec<ChannelEvent> {
    let mut wire = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut wire).unwrap();
    }
    let mut events = Vec::new();
    for piece in wire.chunks(5_000) {
        scratch.read_target()[..piece.len()].copy_from_slice(piece);
        let before = held();
        channel.handle_input(scratch, piece.len()).unwrap();
        while let Some(event) = channel.poll_event(scratch).unwrap() {
            if let ChannelEvent::Upgrade(_) = event {
                channel.accept(scratch, None).unwrap();
            }
            events.push(event);
        }
        channel.park(scratch).unwrap();
        *grown += held() - before;
        let mut out = scratch.outbound();
        while !out.is_empty() {
            client.read_tls(&mut out).unwrap();
            client.process_new_packets().unwrap();
            let _ = client.reader().read_to_end(&mut Vec::new());
        }
        scratch.clear_outbound();
    }
    events
}

/// A client's frame with a mask of zeros.
fn frame(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    [&[0x82, 0xFE, length[0], length[1], 0, 0, 0, 0], payload].concat()
}

/// A connection through its upgrade, and what it holds then and after a message of 16 KB each way.
fn measure(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>, scratch: &mut Scratch) -> (isize, isize) {
    let mut client =
        ClientConnection::new(Arc::clone(client), ServerName::try_from("localhost").unwrap()).unwrap();
    let before = held();
    let mut channel = WssChannel::new(server).unwrap();
    let mut grown = held() - before + size_of::<WssChannel>() as isize;
    client.writer().write_all(REQUEST).unwrap();
    loop {
        // The events are measured too, so they are dropped outside of the count: give back what they took.
        let events = turn(&mut channel, scratch, &mut client, &mut grown);
        let before = held();
        drop(events);
        grown += held() - before;
        if !client.wants_write() {
            break;
        }
    }
    assert!(channel.is_open());
    let after_upgrade = grown;
    client.set_buffer_limit(None);
    client.writer().write_all(&frame(&[7; 16_000])).unwrap();
    let events = turn(&mut channel, scratch, &mut client, &mut grown);
    let before = held();
    assert!(
        matches!(&events[..], [ChannelEvent::Message(MessageKind::Binary, bytes)] if bytes.len() == 16_000)
    );
    drop(events);
    channel
        .send(scratch, MessageKind::Binary, &Bytes::from_static(&[7; 16_000]))
        .unwrap();
    channel.flush(scratch).unwrap();
    scratch.clear_outbound();
    grown += held() - before;
    assert_eq!(scratch.budget().used(), 0);
    (after_upgrade, grown)
}

#[test]
fn an_idle_connection_holds_no_buffer() {
    let dir = tempfile::tempdir().unwrap();
    println!("WssChannel inline: {} bytes", size_of::<WssChannel>());
    for (name, version) in [
        ("TLS 1.3", &rustls::version::TLS13),
        ("TLS 1.2", &rustls::version::TLS12),
    ] {
        let (server, client) = configs(dir.path(), version);
        let mut scratch = Scratch::new(ScratchLimits::default());
        // The first two connections also pay for the scratch's growth and for what libraries make once.
        for _ in 0..2 {
            measure(&server, &client, &mut scratch);
        }
        let (upgraded, used) = measure(&server, &client, &mut scratch);
        println!("{name}: {upgraded} bytes after the upgrade, {used} after 16 KB each way");
        assert!(upgraded > 0 && used > 0, "nothing was measured");
        assert!(
            upgraded <= LIMIT && used <= LIMIT,
            "{name}: {upgraded}, {used}; the limit is {LIMIT}"
        );
    }
}
