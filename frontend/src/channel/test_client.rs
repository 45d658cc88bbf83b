//! A device in memory: rustls' client against a [`WssChannel`], without a socket.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::{PrivateKeyDer, ServerName};

use super::{Channel, ChannelError, ChannelEvent, Scratch, ScratchLimits, StreamChannel, WssChannel};

/// A client's frame: `first` byte, then `payload` masked.
pub(crate) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x5A, 0xA5, 0x3C, 0xC3];
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..126 => frame.push(0x80 | len as u8),
        len @ 126..0x1_0000 => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&MASK);
    frame.extend(
        payload
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    frame
}

pub(crate) const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer abc\r\n\r\n";

/// Server and client configuration with a certificate made for the occasion.
pub(crate) fn configs(version: &'static SupportedProtocolVersion) -> (Arc<ServerConfig>, ClientConfig) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), client)
}

/// A device and the gateway's end of its connection.
pub(crate) struct Pair {
    pub(crate) channel: WssChannel,
    pub(crate) scratch: Scratch,
    pub(crate) client: ClientConnection,
    /// Bytes per read of the gateway.
    pub(crate) chunk: usize,
    received: Vec<u8>,
}

impl Pair {
    pub(crate) fn new(version: &'static SupportedProtocolVersion) -> Self {
        Self::with_client(version, |_| ())
    }

    /// One whose client is configured differently.
    pub(crate) fn with_client(
        version: &'static SupportedProtocolVersion,
        edit: impl FnOnce(&mut ClientConfig),
    ) -> Self {
        let (server, mut client) = configs(version);
        edit(&mut client);
        let client = Arc::new(client);
        let name = ServerName::try_from("localhost").unwrap();
        Self {
            channel: WssChannel::new(&server).unwrap(),
            scratch: Scratch::new(ScratchLimits::default()),
            client: ClientConnection::new(client, name).unwrap(),
            chunk: usize::MAX,
            received: Vec::new(),
        }
    }

    /// One that has been let in.
    pub(crate) fn open(version: &'static SupportedProtocolVersion) -> Self {
        Self::new(version).opened()
    }

    /// Lets it in.
    pub(crate) fn opened(mut self) -> Self {
        self.write(REQUEST);
        let events = self.run().unwrap();
        assert!(matches!(events[..], [ChannelEvent::Upgrade(_)]), "{events:?}");
        self.channel.accept(&mut self.scratch, None).unwrap();
        self.flush();
        assert!(self.read().starts_with(b"HTTP/1.1 101 "));
        self
    }

    /// The client's plaintext, to be encrypted.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.client.writer().write_all(bytes).unwrap();
    }

    /// Takes the client's next bytes for the wire.
    pub(crate) fn wire(&mut self) -> Vec<u8> {
        let mut wire = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut wire).unwrap();
        }
        wire
    }

    /// Back and forth until both are silent; everything is polled.
    pub(crate) fn run(&mut self) -> Result<Vec<ChannelEvent>, ChannelError> {
        let mut events = Vec::new();
        loop {
            let wire = self.wire();
            if wire.is_empty() {
                return Ok(events);
            }
            for piece in wire.chunks(self.chunk.min(super::READ_BYTES)) {
                events.extend(self.turn(piece)?);
                self.deliver();
            }
        }
    }

    /// One turn with all its events.
    pub(crate) fn turn(&mut self, bytes: &[u8]) -> Result<Vec<ChannelEvent>, ChannelError> {
        let mut events = Vec::new();
        self.begin(bytes)?;
        while let Some(event) = self.channel.poll_event(&mut self.scratch)? {
            events.push(event);
        }
        self.channel.park(&mut self.scratch)?;
        Ok(events)
    }

    pub(crate) fn begin(&mut self, bytes: &[u8]) -> Result<(), ChannelError> {
        self.scratch.read_target()[..bytes.len()].copy_from_slice(bytes);
        self.channel.handle_input(&mut self.scratch, bytes.len())
    }

    pub(crate) fn flush(&mut self) {
        self.channel.flush(&mut self.scratch).unwrap();
        self.deliver();
    }

    /// Gives the gateway's output to the client.
    pub(crate) fn deliver(&mut self) {
        let mut bytes = self.scratch.outbound();
        while !bytes.is_empty() {
            self.client.read_tls(&mut bytes).unwrap();
            self.client.process_new_packets().unwrap();
            // At the end of what is there rustls says WouldBlock.
            let _ = self.client.reader().read_to_end(&mut self.received);
        }
        self.scratch.clear_outbound();
    }

    /// What the client has decrypted since the last call.
    pub(crate) fn read(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.received)
    }
}
