//! A WebSocket: TCP, TLS on `wss`, the upgrade with the credential, on `ws` the server's challenge.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use holdfast_proto::secure::{Initiator, MAX_RECORD_BYTES, SecureChannel, TrafficKeys, parse_challenge};
use http::header::{AUTHORIZATION, HeaderValue, RETRY_AFTER};
use rustls_pki_types::ServerName;
use serde::Deserialize;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::{bad_key, candidates, clock, no_address, silent};
use crate::builder::{Builder, DeviceIdentity, Scheme, Target};
use crate::channel::{Socket, Stream, WebSocketChannel};
use crate::{Disturbance, Error, Refusal, Tls};

/// A channel on `wss` for one that has shown `token`.
pub(super) async fn dial_plain(
    settings: &Builder,
    target: &Target,
    token: String,
) -> Result<WebSocketChannel, Error> {
    let socket = upgrade(settings, target, format!("Bearer {token}"), settings.max_message).await?;
    Ok(WebSocketChannel::plain(socket))
}

/// A channel on `ws`, once the server has proved itself.
pub(super) async fn dial_records(
    settings: &Builder,
    target: &Target,
    identity: &DeviceIdentity,
) -> Result<WebSocketChannel, Error> {
    // A credential is for one attempt: its ephemeral key must not come back.
    let (initiator, credential) = Initiator::new(
        SecureChannel::Ws,
        &identity.identity,
        &identity.key,
        clock(settings),
    )
    .map_err(bad_key)?;
    let longest = MAX_RECORD_BYTES;
    let mut socket = upgrade(settings, target, format!("Holdfast {credential}"), longest).await?;
    let keys = await_challenge(&mut socket, initiator).await?;
    Ok(WebSocketChannel::records(socket, keys, settings.max_message))
}

/// Connects and upgrades. No message over `longest` bytes is taken.
async fn upgrade(
    settings: &Builder,
    target: &Target,
    authorization: String,
    longest: usize,
) -> Result<Socket, Error> {
    let mut request = target
        .url
        .as_str()
        .into_client_request()
        .map_err(|e| Error::Config(format!("url {}: {e}", target.url)))?;
    let mut authorization = HeaderValue::try_from(authorization)
        .map_err(|_| Error::Config("a token holds visible ASCII only".into()))?;
    authorization.set_sensitive(true);
    request.headers_mut().insert(AUTHORIZATION, authorization);

    let failed = |e: io::Error| Error::Connect(format!("{}:{}: {e}", target.host, target.port));
    let tcp = connect_tcp(settings, target).await.map_err(failed)?;
    let stream = match &target.scheme {
        Scheme::Wss(tls) => Stream::Tls(Box::new(encrypt(target, tls, tcp).await?)),
        Scheme::Ws | Scheme::Udp => Stream::Tcp(tcp),
    };
    match client_async_with_config(request, stream, Some(web_socket_config(longest))).await {
        Ok((socket, _)) => Ok(socket),
        Err(WsError::Http(response)) => Err(Error::Refused(refusal(&response))),
        Err(error) => Err(Error::Connect(format!(
            "{}:{}: {error}",
            target.host, target.port
        ))),
    }
}

async fn encrypt(target: &Target, tls: &Tls, tcp: TcpStream) -> Result<TlsStream<TcpStream>, Error> {
    let name = ServerName::try_from(target.host.clone())
        .map_err(|_| Error::Config(format!("{:?} is not a host name", target.host)))?;
    TlsConnector::from(tls.0.clone())
        .connect(name, tcp)
        .await
        .map_err(|e| Error::Connect(format!("{}:{}: {e}", target.host, target.port)))
}

/// The server's half: whoever can answer so holds this device's key. No other message may come first.
async fn await_challenge(socket: &mut Socket, initiator: Initiator) -> Result<TrafficKeys, Error> {
    loop {
        let message = match socket.next().await {
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(Error::Connect(format!("no challenge: {error}"))),
            None => return Err(Error::Connect("no challenge: the server hung up".into())),
        };
        let challenge = match &message {
            Message::Text(text) => parse_challenge(text),
            Message::Close(_) => return Err(Error::Connect("no challenge: the server closed".into())),
            _ => None,
        };
        let keys = challenge.and_then(|message2| initiator.finish(&message2).ok());
        return keys.ok_or(Error::Disturbed(Disturbance::Challenge));
    }
}

async fn connect_tcp(settings: &Builder, target: &Target) -> io::Result<TcpStream> {
    let mut last = no_address();
    for (address, share) in candidates(settings, target).await? {
        match tokio::time::timeout(share, connect_to(settings, address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = silent(address),
        }
    }
    Err(last)
}

async fn connect_to(settings: &Builder, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if let Some(local) = settings.local_address {
        socket.bind(SocketAddr::new(local, 0))?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Small buffers: one process of a load test holds 15,000 devices.
fn web_socket_config(longest: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(Some(longest))
        .max_frame_size(Some(longest))
}

const BUFFER_BYTES: usize = 4096;
#[derive(Deserialize, Default)]
#[serde(default)]
struct Problem {
    code: String,
    title: String,
    detail: String,
    retry_after_ms: Option<u64>,
    retryable: Option<bool>,
}

fn refusal(response: &http::Response<Option<Vec<u8>>>) -> Refusal {
    let body = response.body().as_deref().unwrap_or_default();
    let problem: Problem = serde_json::from_slice(body).unwrap_or_default();
    let seconds = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|v| v.to_str().ok()?.trim().parse().ok());
    let hints = [
        seconds.map(Duration::from_secs),
        problem.retry_after_ms.map(Duration::from_millis),
    ];
    let status = response.status();
    let code = if problem.code.is_empty() {
        format!("http_{}", status.as_u16())
    } else {
        problem.code
    };
    let detail = if problem.detail.is_empty() {
        problem.title
    } else {
        problem.detail
    };
    Refusal {
        status: status.as_u16(),
        code,
        detail,
        retry_after: hints.into_iter().flatten().max(),
        retryable: problem.retryable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_the_problem_document_says() {
        let response = http::Response::builder()
            .status(503)
            .header(RETRY_AFTER, "3")
            .body(Some(
                br#"{"code":"overloaded","title":"busy","retryable":true,"retry_after_ms":3400}"#.to_vec(),
            ))
            .unwrap();
        let refusal = refusal(&response);
        assert_eq!(
            (refusal.status, refusal.code.as_str(), refusal.detail.as_str()),
            (503, "overloaded", "busy")
        );
        assert_eq!(refusal.retry_after, Some(Duration::from_millis(3400)));
        assert_eq!(refusal.retryable, Some(true));
        assert_eq!(
            refusal.to_string(),
            "the server refused the connection: 503 overloaded: busy"
        );
    }

    #[test]
    fn a_refusal_without_a_document_still_has_a_code() {
        let response = http::Response::builder()
            .status(502)
            .body(Some(b"<html>".to_vec()))
            .unwrap();
        let refusal = refusal(&response);
        assert_eq!((refusal.code.as_str(), refusal.retry_after), ("http_502", None));
        assert_eq!(refusal.retryable, None);
    }
}
