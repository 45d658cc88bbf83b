//! Somebody between cuts a device off when it has said `@hello`, keeps what it said, and lets it through when the device is online
//! again: it was admitted before the one that the device has now, so it is the one that is closed.

use std::net::SocketAddr;

use holdfast_client::Error;
use holdfast_tests::ChannelKind;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::service::Service;
use holdfast_tests::wire::write_frame;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::middle::{Frame, read_frame, read_head};
use crate::victim::Victim;

/// Handshakes of one device that the gateway waits for at a time, less the one by which the device comes online.
const HELD: usize = 3;
/// The first byte of a close frame.
const CLOSE: u8 = 0x88;

/// The gateway's end of a connection that the device has lost, and the `@hello` that would log it in.
struct Held {
    server: TcpStream,
    hello: Frame,
}

impl Held {
    async fn let_through(mut self) -> TcpStream {
        write_frame(&mut self.server, self.hello.first, true, &self.hello.payload).await;
        self.server
    }
}

/// Holds back the first connections, and passes on what comes after them.
async fn holding_back(server: SocketAddr) -> (SocketAddr, mpsc::UnboundedReceiver<Held>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for n in 0.. {
            let Ok((mut device, _)) = listener.accept().await else {
                return;
            };
            let mut server = TcpStream::connect(server).await.unwrap();
            if n < HELD {
                tell.send(hold_back(device, server).await).ok();
            } else {
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut device, &mut server).await });
            }
        }
    });
    (address, told)
}

async fn hold_back(mut device: TcpStream, mut server: TcpStream) -> Held {
    let request = read_head(&mut device).await.unwrap();
    server.write_all(&request).await.unwrap();
    let answer = read_head(&mut server).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
    device.write_all(&answer).await.unwrap();
    let challenge = read_frame(&mut server).await.unwrap();
    write_frame(&mut device, challenge.first, false, &challenge.payload).await;
    let hello = read_frame(&mut device).await.unwrap();
    Held { server, hello }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_held_back_disturbs_nobody() {
    let service = Service::start().await;
    let gateway = Gateway::builder(&service)
        .over(ChannelKind::Ws)
        // All this must be over before what is held is given up.
        .frontend_set("times.challenge", "1m")
        .start()
        .await;
    let (address, mut held) = holding_back(gateway.ws()).await;
    let mut victim = Victim::start(&gateway, "victim", address);
    let mut holds = Vec::new();
    for _ in 0..HELD {
        assert!(matches!(victim.loss().await, Error::Connect(_)));
        holds.push(held.recv().await.unwrap());
    }
    victim.online().await;
    victim.works().await;
    for hold in holds {
        let mut late = hold.let_through().await;
        // `@welcome`, `@goodbye` and the close, in records that only the device could read; then the close in the clear.
        let close = loop {
            let frame = read_frame(&mut late).await.expect("the gateway closes it");
            if frame.first == CLOSE {
                break frame;
            }
        };
        assert_eq!(close.payload[..2], 4000_u16.to_be_bytes());
        victim.works().await;
    }
    assert!(victim.undisturbed());
    let replaced = [("reason", "replaced")];
    let closed = gateway.frontends[0]
        .metric("holdfast_frontend_closed_total", &replaced)
        .await;
    assert_eq!(closed, HELD as f64);
}
