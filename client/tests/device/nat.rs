//! An address translator between one device and the server, which forgets at a wish.

use std::net::SocketAddr;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;

pub(crate) struct Nat {
    pub(crate) address: SocketAddr,
    forget: mpsc::UnboundedSender<()>,
}

impl Nat {
    pub(crate) async fn before(server: SocketAddr) -> Self {
        let inside = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = inside.local_addr().unwrap();
        let (forget, forgets) = mpsc::unbounded_channel();
        tokio::spawn(translate(inside, server, forgets));
        Self { address, forget }
    }

    /// From now on the device comes from another port.
    pub(crate) fn forget(&self) {
        self.forget.send(()).unwrap();
    }
}

async fn translate(inside: UdpSocket, server: SocketAddr, mut forgets: mpsc::UnboundedReceiver<()>) {
    let mut outside = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (mut up, mut down) = ([0; 2048], [0; 2048]);
    let mut device = None;
    loop {
        tokio::select! {
            received = inside.recv_from(&mut up) => {
                let (length, from) = received.unwrap();
                device = Some(from);
                outside.send_to(&up[..length], server).await.unwrap();
            }
            received = outside.recv_from(&mut down) => {
                let (length, _) = received.unwrap();
                if let Some(device) = device {
                    inside.send_to(&down[..length], device).await.unwrap();
                }
            }
            forget = forgets.recv() => match forget {
                Some(()) => outside = UdpSocket::bind("127.0.0.1:0").await.unwrap(),
                None => return,
            },
        }
    }
}
