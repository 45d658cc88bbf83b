//! A man in the middle: a TCP proxy that takes WebSocket connections apart, notes everything, and does to each frame what the
//! test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_tests::wire::write_frame;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Which way something went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    ToServer,
    ToDevice,
}

/// A frame, unmasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    /// FIN, reserved bits and opcode.
    pub(crate) first: u8,
    pub(crate) payload: Vec<u8>,
}

/// What goes on in the place of a frame; `n` counts this way's frames of the connection from 0.
pub(crate) type Tamper = Box<dyn FnMut(Way, usize, Frame) -> Vec<Frame> + Send>;

/// What came by on one connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recording {
    pub(crate) request: Vec<u8>,
    pub(crate) to_server: Vec<Frame>,
    pub(crate) to_device: Vec<Frame>,
}

/// A running proxy. It ends when dropped.
pub(crate) struct Middle {
    pub(crate) address: SocketAddr,
    recordings: Arc<Mutex<Vec<Recording>>>,
    task: JoinHandle<()>,
}

impl Middle {
    /// Stands before `server`. The first connection is tampered with, those after it only watched.
    pub(crate) async fn before(server: SocketAddr, tamper: Tamper) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let recordings = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(accept(listener, server, tamper, recordings.clone()));
        Self {
            address,
            recordings,
            task,
        }
    }

    /// One who only listens.
    pub(crate) async fn listening(server: SocketAddr) -> Self {
        Self::before(server, Box::new(|_, _, frame| vec![frame])).await
    }

    pub(crate) fn recording(&self, connection: usize) -> Recording {
        lock(&self.recordings)[connection].clone()
    }
}

impl Drop for Middle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    server: SocketAddr,
    tamper: Tamper,
    recordings: Arc<Mutex<Vec<Recording>>>,
) {
    let mut tamper = Some(tamper);
    // Connections end with their ends.
    while let Ok((device, _)) = listener.accept().await {
        let index = {
            let mut recordings = lock(&recordings);
            recordings.push(Recording::default());
            recordings.len() - 1
        };
        let between = Between {
            recordings: recordings.clone(),
            index,
            tamper: Mutex::new(
                tamper
                    .take()
                    .unwrap_or_else(|| Box::new(|_, _, frame| vec![frame])),
            ),
        };
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(server).await else {
                return;
            };
            between.run(device, server).await;
        });
    }
}

/// One connection.
struct Between {
    recordings: Arc<Mutex<Vec<Recording>>>,
    index: usize,
    tamper: Mutex<Tamper>,
}

impl Between {
    async fn run(&self, mut device: TcpStream, mut server: TcpStream) {
        let Some(request) = read_head(&mut device).await else {
            return;
        };
        self.note(|recording| recording.request.clone_from(&request));
        if server.write_all(&request).await.is_err() {
            return;
        }
        let Some(answer) = read_head(&mut server).await else {
            return;
        };
        if device.write_all(&answer).await.is_err() {
            return;
        }
        if !answer.starts_with(b"HTTP/1.1 101 ") {
            // A refusal goes through to its end.
            tokio::io::copy(&mut server, &mut device).await.ok();
            return;
        }
        let (mut from_device, mut to_device) = device.split();
        let (mut from_server, mut to_server) = server.split();
        tokio::join!(
            async {
                let mut n = 0;
                while let Some(frame) = read_frame(&mut from_device).await {
                    for frame in self.pass(Way::ToServer, &mut n, frame) {
                        write_frame(&mut to_server, frame.first, true, &frame.payload).await;
                    }
                }
                to_server.shutdown().await.ok();
            },
            async {
                let mut n = 0;
                while let Some(frame) = read_frame(&mut from_server).await {
                    for frame in self.pass(Way::ToDevice, &mut n, frame) {
                        write_frame(&mut to_device, frame.first, false, &frame.payload).await;
                    }
                }
                to_device.shutdown().await.ok();
            }
        );
    }

    fn pass(&self, way: Way, n: &mut usize, frame: Frame) -> Vec<Frame> {
        self.note(|recording| match way {
            Way::ToServer => recording.to_server.push(frame.clone()),
            Way::ToDevice => recording.to_device.push(frame.clone()),
        });
        *n += 1;
        lock(&self.tamper)(way, *n - 1, frame)
    }

    fn note(&self, what: impl FnOnce(&mut Recording)) {
        what(&mut lock(&self.recordings)[self.index]);
    }
}

/// An HTTP head with its empty line; `None` when the stream ends before.
pub(crate) async fn read_head(from: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(from.read_u8().await.ok()?);
    }
    Some(head)
}

/// A frame of either side; `None` at the end of the stream.
pub(crate) async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> Option<Frame> {
    let [first, second] = [from.read_u8().await.ok()?, from.read_u8().await.ok()?];
    let length = match second & 0x7f {
        126 => u64::from(from.read_u16().await.ok()?),
        127 => from.read_u64().await.ok()?,
        short => u64::from(short),
    };
    let mut mask = [0; 4];
    if second & 0x80 != 0 {
        from.read_exact(&mut mask).await.ok()?;
    }
    let mut payload = vec![0; usize::try_from(length).ok()?];
    from.read_exact(&mut payload).await.ok()?;
    for (byte, key) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
    Some(Frame { first, payload })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
