//! The handshake over datagrams.

use std::time::Instant;

use bytes::Bytes;
use holdfast_proto::udp::{self, Config, Dialed, Dialing, Parameters, Refusal};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::json;
use tokio::net::UdpSocket;
use tokio::time::timeout_at;

use super::{Dial, DialError};
use crate::device::Device;
use crate::device::datagrams::{Opened, socket};
use crate::http::Answer;
use crate::keys::now_ms;

/// Above every limit of a test gateway.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

impl Dial {
    pub(super) async fn over_datagrams(self) -> Result<Device, DialError> {
        let (identity, key) = self.key.expect("who comes over udp has a key");
        let mut config = Config {
            max_message_bytes: MAX_MESSAGE_BYTES,
            ..Config::default()
        };
        if let Some(bytes) = self.receive_buffer {
            config.receive_bytes = bytes;
        }
        let parameters = Parameters {
            attempt: rand::random(),
            max_datagram: udp::MAX_DATAGRAM_BYTES,
            receive_bytes: config.receive_bytes,
            receive_messages: config.receive_messages,
        };
        let dialing = Dialing {
            identity: &identity,
            key: &key,
            parameters,
            now_ms: Some(now_ms()),
            timeout: self.gives_up,
        };
        let dial =
            udp::Dial::new(Instant::now(), &dialing).map_err(|e| DialError::Malformed(e.to_string()))?;
        let server = self.endpoint.address;
        let socket = socket(self.source, server).await?;
        let connection = open(dial, &socket, server).await?;
        Ok(Device::on_datagrams(Opened {
            connection,
            config,
            socket,
            server,
        }))
    }
}

async fn open(
    mut dial: udp::Dial,
    socket: &UdpSocket,
    server: std::net::SocketAddr,
) -> Result<Box<udp::Connection>, DialError> {
    let mut datagram = [0; 2048];
    loop {
        let mut out = Vec::new();
        while dial.poll_transmit(Instant::now(), &mut out) {
            // Nobody may be there yet: that is what repetitions are for.
            socket.send(&out).await.ok();
            out.clear();
        }
        let until = dial.poll_timeout().into();
        let dialed = match timeout_at(until, socket.recv(&mut datagram)).await {
            Ok(Ok(length)) => dial.handle_datagram(Instant::now(), server, &datagram[..length]),
            Ok(Err(_)) => continue,
            Err(_) => dial.handle_timeout(Instant::now()),
        };
        match dialed {
            Dialed::Pending => {}
            Dialed::Open(connection) => return Ok(connection),
            Dialed::Refused(refusal) => return Err(DialError::Refused(Box::new(answer(&refusal)))),
            Dialed::TimedOut => return Err(DialError::Timeout),
        }
    }
}

/// What HTTP would have said: status, code, whether and when to come again.
fn answer(refusal: &Refusal) -> Answer {
    let mut headers = HeaderMap::new();
    headers.insert(
        "content-type",
        HeaderValue::from_static("application/problem+json"),
    );
    if let Some(after) = refusal.retry_after {
        let seconds = after.as_millis().div_ceil(1000) as u64;
        headers.insert("retry-after", HeaderValue::from(seconds));
    }
    let body = json!({
        "type": "about:blank",
        "title": "refused over udp",
        "status": refusal.status,
        "code": refusal.code,
        "retryable": refusal.retryable,
    });
    Answer {
        status: StatusCode::from_u16(refusal.status).expect("the datagram's codec lets only such by"),
        headers,
        body: Bytes::from(body.to_string()),
    }
}
