//! The service behind the gateway: answers each POST with its body, as cheaply as hyper can.

use std::convert::Infallible;

use anyhow::Result;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::{Commands, answer};
use crate::protocol::Answer;

pub(super) async fn serve(commands: Commands) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    answer(&Answer::Ready(Some(listener.local_addr()?), None))?;
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if stream.set_nodelay(true).is_err() {
                continue;
            }
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(echo));
            // Clients that end their connections are no event.
            tokio::task::spawn_local(async move { drop(connection.await) });
        }
    });
    commands.until_end().await
}

async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = match request.into_body().collect().await {
        Ok(body) => Response::new(Full::new(body.to_bytes())),
        Err(_) => {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::BAD_REQUEST;
            response
        }
    };
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
