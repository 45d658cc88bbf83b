//! HTTP over the Unix sockets of `holdfast up` and of backends. A connection per call: these calls are rare.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::http_client::Answer;

/// One call.
#[derive(Debug, Clone)]
pub(crate) struct UnixCall<'a> {
    pub(crate) socket: &'a Path,
    pub(crate) method: Method,
    pub(crate) path: &'a str,
    pub(crate) json: Option<Bytes>,
}

impl<'a> UnixCall<'a> {
    pub(crate) fn get(socket: &'a Path, path: &'a str) -> Self {
        Self {
            socket,
            method: Method::GET,
            path,
            json: None,
        }
    }

    /// Sends it and reads the whole answer, whatever its status.
    pub(crate) async fn send(self, timeout: Duration) -> Result<Answer> {
        let (socket, path) = (self.socket.to_owned(), self.path.to_owned());
        let exchange = async {
            let (head, body) = self.open().await?.into_parts();
            let body = Limited::new(body, MAX_BODY_BYTES).collect().await;
            let body = body.map_err(|e| anyhow!("{}: {e}", socket.display()))?;
            Ok(Answer {
                status: head.status,
                body: body.to_bytes(),
            })
        };
        tokio::time::timeout(timeout, exchange).await.unwrap_or_else(|_| {
            Err(anyhow!(
                "{} did not answer {path} in {timeout:?}",
                socket.display()
            ))
        })
    }

    /// Sends it and gives the answer while its body is still coming.
    pub(crate) async fn open(self) -> Result<Response<Incoming>> {
        let at = || format!("cannot reach {}", self.socket.display());
        let stream = UnixStream::connect(self.socket).await.with_context(at)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.with_context(at)?;
        // What fails here fails the answer too.
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(self.method)
            .uri(self.path)
            .header(HOST, "localhost");
        if self.json.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(self.json.unwrap_or_default()))
            .context("request")?;
        sender.send_request(request).await.with_context(at)
    }
}

/// The socket of a backend's or supervisor's control API.
pub(crate) fn socket_of(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.sock"))
}

/// Far more than any answer of ours.
const MAX_BODY_BYTES: usize = 4 << 20;
