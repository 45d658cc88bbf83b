//! A man in the middle: a TCP proxy that takes WebSocket connections apart, notes everything, and does to each frame what the
//! test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_tests::wire::write_frame;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
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

/// What goes on in the place of a head: the upgrade's request, or its answer.
pub(crate) type Heads = Box<dyn FnMut(Way, Vec<u8>) -> Vec<u8> + Send>;

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

/// What is done to a connection.
struct Deeds {
    heads: Heads,
    frames: Tamper,
}

impl Deeds {
    fn none() -> Self {
        Self {
            heads: Box::new(|_, head| head),
            frames: Box::new(|_, _, frame| vec![frame]),
        }
    }
}

impl Frame {
    /// No frame: the wire is cut here, both ways.
    pub(crate) fn cut() -> Self {
        Self {
            first: CUT,
            payload: Vec::new(),
        }
    }

    fn is_cut(&self) -> bool {
        self.first == CUT
    }

    pub(crate) fn opcode(&self) -> u8 {
        self.first & 0x0f
    }
}

/// No frame begins so: all reserved bits, and no opcode.
const CUT: u8 = 0x70;

impl Middle {
    /// Stands before `server`. The first connection is tampered with, those after it only watched.
    pub(crate) async fn before(server: SocketAddr, frames: Tamper) -> Self {
        Self::start(
            server,
            Deeds {
                frames,
                ..Deeds::none()
            },
        )
        .await
    }

    /// The same with the heads of the upgrade.
    pub(crate) async fn before_heads(server: SocketAddr, heads: Heads) -> Self {
        Self::start(
            server,
            Deeds {
                heads,
                ..Deeds::none()
            },
        )
        .await
    }

    async fn start(server: SocketAddr, deeds: Deeds) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let recordings = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(accept(listener, server, deeds, recordings.clone()));
        Self {
            address,
            recordings,
            task,
        }
    }

    /// One who only listens.
    pub(crate) async fn listening(server: SocketAddr) -> Self {
        Self::start(server, Deeds::none()).await
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
    deeds: Deeds,
    recordings: Arc<Mutex<Vec<Recording>>>,
) {
    let mut deeds = Some(deeds);
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
            deeds: Mutex::new(deeds.take().unwrap_or_else(Deeds::none)),
            cut: Notify::new(),
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
    deeds: Mutex<Deeds>,
    cut: Notify,
}

impl Between {
    async fn run(&self, mut device: TcpStream, mut server: TcpStream) {
        let Some(request) = read_head(&mut device).await else {
            return;
        };
        self.note(|recording| recording.request.clone_from(&request));
        let request = self.pass_head(Way::ToServer, request);
        if server.write_all(&request).await.is_err() {
            return;
        }
        let Some(true_answer) = read_head(&mut server).await else {
            return;
        };
        let answer = self.pass_head(Way::ToDevice, true_answer.clone());
        if !answer.starts_with(b"HTTP/1.1 101 ") {
            // A true refusal goes through to its end, in one piece.
            let mut refusal = answer;
            if refusal == true_answer {
                server.read_to_end(&mut refusal).await.ok();
            }
            device.write_all(&refusal).await.ok();
            return;
        }
        if device.write_all(&answer).await.is_err() {
            return;
        }
        let (from_device, to_device) = device.split();
        let (from_server, to_server) = server.split();
        let both = async {
            tokio::join!(
                self.carry(Way::ToServer, from_device, to_server),
                self.carry(Way::ToDevice, from_server, to_device)
            )
        };
        tokio::select! {
            _ = both => {}
            () = self.cut.notified() => {}
        }
    }

    async fn carry(
        &self,
        way: Way,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin + Send,
    ) {
        let mut n = 0;
        while let Some(frame) = read_frame(&mut from).await {
            for frame in self.pass(way, &mut n, frame) {
                if frame.is_cut() {
                    self.cut.notify_one();
                    return std::future::pending().await;
                }
                write_frame(&mut to, frame.first, way == Way::ToServer, &frame.payload).await;
            }
        }
        to.shutdown().await.ok();
    }

    fn pass_head(&self, way: Way, head: Vec<u8>) -> Vec<u8> {
        (lock(&self.deeds).heads)(way, head)
    }

    fn pass(&self, way: Way, n: &mut usize, frame: Frame) -> Vec<Frame> {
        self.note(|recording| match way {
            Way::ToServer => recording.to_server.push(frame.clone()),
            Way::ToDevice => recording.to_device.push(frame.clone()),
        });
        *n += 1;
        (lock(&self.deeds).frames)(way, *n - 1, frame)
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
