//! The way in of a Python device: what is wanted goes there, the outcome comes back.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::{Dial, DialError};
use crate::device::Device;
use crate::device::driven::Frame;
use crate::http::Answer;

/// What a WebSocket library sends by itself.
const OF_THE_LIBRARY: [&str; 5] = [
    "Host",
    "Upgrade",
    "Connection",
    "Sec-WebSocket-Version",
    "Sec-WebSocket-Key",
];

#[derive(Deserialize)]
struct Refusal {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Dial {
    pub(super) async fn through_python(self, devices: &Path) -> Result<Device, DialError> {
        let mut stream = UnixStream::connect(devices).await?;
        let connect = Frame {
            kind: b'C',
            data: self.wanted().to_string().into_bytes(),
        };
        connect.write(&mut stream).await?;
        let Frame { kind, data } = Frame::read(&mut stream).await?;
        match kind {
            b'O' => Ok(Device::driven(stream, headers(parse(&data)?)?)),
            b'R' => Err(refused(parse(&data)?)),
            b'F' => Err(failed(&String::from_utf8_lossy(&data))),
            other => Err(DialError::Malformed(format!("a frame of kind {other}"))),
        }
    }

    /// Panics if it is something that a library does not do.
    fn wanted(&self) -> Value {
        for name in OF_THE_LIBRARY {
            let count = self.headers.iter().filter(|(n, _)| n == name).count();
            assert_eq!(count, 1, "the Python device's library sends one {name} by itself");
        }
        let further = |(name, _): &&(String, String)| !OF_THE_LIBRARY.contains(&name.as_str());
        let (identity, key) = self.key.as_ref().map_or((None, None), |(identity, key)| {
            let identity = json!({
                "key_id": identity.key_id,
                "product": identity.product,
                "class": identity.class,
                "device": identity.device.as_str(),
                "key_version": identity.key_version,
            });
            (Some(identity), Some(key.to_text()))
        });
        json!({
            "url": format!("ws://{}", self.endpoint.address),
            "host": self.endpoint.address.ip(),
            "port": self.endpoint.address.port(),
            "identity": identity,
            "key": key.as_deref(),
            "headers": self.headers.iter().filter(further).collect::<Vec<_>>(),
            "source": self.source,
            "receive_buffer": self.receive_buffer,
        })
    }
}

fn parse<T: serde::de::DeserializeOwned>(data: &[u8]) -> Result<T, DialError> {
    serde_json::from_slice(data).map_err(|e| DialError::Malformed(e.to_string()))
}

fn refused(refusal: Refusal) -> DialError {
    let answer = || -> Option<Answer> {
        Some(Answer {
            status: StatusCode::from_u16(refusal.status).ok()?,
            headers: headers(refusal.headers).ok()?,
            body: Bytes::from(STANDARD.decode(&refusal.body).ok()?),
        })
    };
    answer().map_or_else(
        || DialError::Malformed(format!("no answer of HTTP: {}", refusal.status)),
        |answer| DialError::Refused(Box::new(answer)),
    )
}

fn headers(pairs: Vec<(String, String)>) -> Result<HeaderMap, DialError> {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let (Ok(name), Ok(value)) = (HeaderName::try_from(&name), HeaderValue::try_from(&value)) else {
            return Err(DialError::Malformed(format!("the header {name}: {value}")));
        };
        headers.append(name, value);
    }
    Ok(headers)
}

fn failed(why: &str) -> DialError {
    match why.split_once(' ') {
        Some(("timeout", _)) => DialError::Timeout,
        Some(("io", why)) => std::io::Error::other(why).into(),
        _ => DialError::Malformed(why.to_owned()),
    }
}
