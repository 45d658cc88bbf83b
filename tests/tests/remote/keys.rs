//! The link key: who lacks it, at either end, and how it is changed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use holdfast_tests::service::Service;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::strangers::{ACCEPTED, REFUSED, is_served};
use super::{OPEN, Place};

const KEYS: &str = "holdfast_tunnel_keys";
const ATTACHED: &str = "holdfast_link_attached_total";

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_changed_while_backends_stay_and_then_the_old_one_is_refused() {
    let (service, place) = (Service::start().await, Place::new());
    let (old, new) = (place.write_key("old.key", 1), place.write_key("new.key", 2));
    let builder = place.gateway(&service, place.listen);
    let mut gateway = builder.backend_set("link_key", old).start().await;
    is_served(&gateway, "before").await;

    place.write_keys("link.key", &[1, 2]);
    gateway.frontends[0].wait_for_metric(KEYS, |n| n == 2.0).await;
    gateway.add_backend_as(&[], &[("link_key", &new)]).await;
    assert_eq!(gateway.frontends[0].metric(OPEN, &[]).await, 2.0);
    place.write_keys("link.key", &[2]);
    gateway.frontends[0].wait_for_metric(KEYS, |n| n == 1.0).await;
    is_served(&gateway, "between").await;
    assert_eq!(
        gateway.frontends[0].metric(OPEN, &[]).await,
        2.0,
        "what stands stays"
    );

    gateway.backends[0].kill9().await;
    gateway.frontends[0].wait_for_metric(OPEN, |n| n == 1.0).await;
    gateway.backends[0].start();
    let frontend = &gateway.frontends[0];
    frontend
        .wait_for_series(REFUSED, &[("cause", "handshake")], |n| n >= 2.0)
        .await;
    let tunnels = (
        frontend.metric(ACCEPTED, &[]).await,
        frontend.metric(ATTACHED, &[]).await,
    );
    assert_eq!(tunnels, (2.0, 2.0));
    is_served(&gateway, "after").await;
}

/// Where a backend takes the frontend to be.
struct Impostor {
    address: SocketAddr,
    /// Lets connections through to the real frontend.
    honest: Arc<AtomicBool>,
    /// How many bytes each connection brought before anything was answered, and after that.
    heard: mpsc::UnboundedReceiver<(usize, usize)>,
}

async fn impostor(frontend: SocketAddr) -> Impostor {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let honest = Arc::new(AtomicBool::new(false));
    let (tell, heard) = mpsc::unbounded_channel();
    let is_honest = honest.clone();
    tokio::spawn(async move {
        let mut number = 0;
        while let Ok((mut near, _)) = listener.accept().await {
            if is_honest.load(Ordering::Relaxed) {
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(frontend).await.expect("the frontend listens");
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                });
                continue;
            }
            number += 1;
            tokio::spawn(lie(near, number, tell.clone()));
        }
    });
    Impostor {
        address,
        honest,
        heard,
    }
}

/// Answers as whoever lacks the key can: with what looks like message 2, with something else, or by hanging up.
async fn lie(mut backend: TcpStream, number: u8, tell: mpsc::UnboundedSender<(usize, usize)>) {
    const MESSAGE_2_BYTES: usize = 48;
    let Ok(length) = backend.read_u16().await else {
        return;
    };
    let mut message = vec![0; length.into()];
    backend.read_exact(&mut message).await.expect("a whole message");
    let mut rest = Vec::new();
    let answer = match number % 3 {
        0 => vec![],
        1 => [&[0, MESSAGE_2_BYTES as u8][..], &[number; MESSAGE_2_BYTES]].concat(),
        _ => b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
    };
    if !answer.is_empty() {
        let _ = backend.write_all(&answer).await;
        let _ = backend.read_to_end(&mut rest).await;
    }
    // The test is over when nobody listens.
    let _ = tell.send((message.len(), rest.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_frontend_gets_one_message_and_the_backend_goes_on_trying() {
    let (service, place) = (Service::start().await, Place::new());
    let mut impostor = impostor(place.listen).await;
    let mut gateway = place
        .gateway(&service, impostor.address)
        .backends(0)
        .start()
        .await;
    let backend = gateway.start_backend();
    for _ in 0..6 {
        let (message, after) = impostor.heard.recv().await.expect("it goes on trying");
        assert!(message > 0);
        assert_eq!(after, 0, "a backend said something to who had not shown the key");
    }
    let frontend = &gateway.frontends[0];
    assert_eq!(frontend.metric(ATTACHED, &[]).await, 0.0);
    impostor.honest.store(true, Ordering::Relaxed);
    gateway.backends[backend].wait_ready().await;
    is_served(&gateway, "d").await;
}
