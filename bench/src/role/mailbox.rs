//! The baseline of a push: the least that takes `POST {"to":{"device":…},…}`, writes an event to that device's WebSocket, and
//! says that it was written. One thread, no key, no checks.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::accept_async_with_config;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::echo::{config, listen};
use super::{Commands, answer, tls};
use crate::protocol::{Answer, ServerTls};

/// A message, and who wants to know that it was written.
type Letter = (Utf8Bytes, oneshot::Sender<()>);
type Boxes = Rc<RefCell<HashMap<String, mpsc::Sender<Letter>>>>;

const LETTERS_PER_BOX: usize = 64;

pub(super) async fn serve(files: ServerTls, commands: Commands) -> Result<()> {
    let acceptor = tls::acceptor(&files)?;
    let devices = listen(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let api = TcpListener::bind("127.0.0.1:0").await?;
    answer(&Answer::Ready(
        Some(devices.local_addr()?),
        Some(api.local_addr()?),
    ))?;
    let boxes = Boxes::default();
    tokio::task::spawn_local(accept_devices(devices, acceptor, boxes.clone()));
    tokio::task::spawn_local(accept_calls(api, boxes));
    commands.until_end().await
}

async fn accept_devices(listener: TcpListener, acceptor: TlsAcceptor, boxes: Boxes) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, boxes) = (acceptor.clone(), boxes.clone());
        // Ends are no event.
        tokio::task::spawn_local(async move { drop(Box::pin(device(stream, acceptor, boxes)).await) });
    }
}

async fn device(stream: TcpStream, acceptor: TlsAcceptor, boxes: Boxes) -> Result<()> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let mut socket = accept_async_with_config(stream, Some(config())).await?;
    let hello = socket.next().await.context("no hello")??.into_text()?;
    let id = hello.strip_prefix("@id ").context("not a hello")?.to_owned();
    let (sender, mut letters) = mpsc::channel(LETTERS_PER_BOX);
    boxes.borrow_mut().insert(id, sender);
    socket.send(Message::text("@ok")).await?;
    loop {
        tokio::select! {
            letter = letters.recv() => {
                let Some((text, written)) = letter else { return Ok(()) };
                socket.send(Message::Text(text)).await?;
                // The caller may have gone.
                let _ = written.send(());
            }
            message = socket.next() => drop(message.context("the end")??),
        }
    }
}

async fn accept_calls(listener: TcpListener, boxes: Boxes) {
    while let Ok((stream, _)) = listener.accept().await {
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        let boxes = boxes.clone();
        let service = service_fn(move |request| push(request, boxes.clone()));
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        tokio::task::spawn_local(async move { drop(connection.await) });
    }
}

#[derive(Deserialize)]
struct Push<'a> {
    #[serde(borrow)]
    to: To<'a>,
    namespace: &'a str,
    name: &'a str,
    #[serde(borrow)]
    payload: &'a RawValue,
}

#[derive(Deserialize)]
struct To<'a> {
    device: &'a str,
}

async fn push(request: Request<Incoming>, boxes: Boxes) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, text) = match deliver(request, &boxes).await {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error:#}")),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

async fn deliver(request: Request<Incoming>, boxes: &Boxes) -> Result<String> {
    let body = request.into_body().collect().await?.to_bytes();
    let push: Push<'_> = serde_json::from_slice(&body)?;
    let (namespace, name, payload) = (push.namespace, push.name, push.payload.get());
    let text = format!(
        r#"{{"header":{{"namespace":"{namespace}","name":"{name}","id":"m-1"}},"payload":{payload}}}"#
    );
    let device = boxes.borrow().get(push.to.device).cloned();
    let (written, done) = oneshot::channel();
    device
        .context("no such device")?
        .send((text.into(), written))
        .await?;
    done.await?;
    let device = push.to.device;
    Ok(format!(
        r#"{{"id":"m-1","results":[{{"device":"{device}","status":"written"}}]}}"#
    ))
}
