//! A backend of the test's own making: the pure lane and codec over a real DEALER, in a task that keeps its link alive.
//!
//! It attaches and gives credit back by itself. What it answers is up to the test, or it answers everything: see [`Answers`].

mod answer;

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use holdfast_proto::link::frames::{Hello, Ready, Request};
use holdfast_proto::link::{
    Command, Epoch, Incoming, Lane, LaneConfig, UNKNOWN_EPOCH, decode_batch, read_notice,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zeromq::util::PeerIdentity;
use zeromq::{DealerSocket, Socket, SocketOptions, SocketRecv, SocketSend, ZmqMessage};

pub use answer::{bound, closed, logged_out, reply, updated, welcomed};

/// How long a test waits for a frame before it is a failure.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the peer shows that it lives.
const HEARTBEAT: Duration = Duration::from_millis(50);
/// Field 15, a varint: no batch has such a field today.
const FIELD_OF_A_LATER_VERSION: &[u8] = &[0x78, 0x01];

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// The test.
    Test,
    /// The peer lets every device on `wss` in and out (it knows no device's key); the rest is the test's.
    Admission,
    /// The peer: it lets every device in and echoes every request.
    Itself,
}

/// See the module's documentation. Its socket is gone when this is dropped.
pub struct Peer {
    orders: mpsc::UnboundedSender<Order>,
    got: mpsc::UnboundedReceiver<Command>,
    task: JoinHandle<()>,
}

enum Order {
    Say(Command),
    /// Neither read nor write any more.
    Hang,
    Wake,
}

impl Peer {
    /// Says Hello with these protocol versions, and READY. Whether it is taken shows in what it gets.
    pub async fn attach(endpoint: &str, name: &str, versions: RangeInclusive<u32>, answers: Answers) -> Self {
        let epoch = Epoch {
            boot: rand::random(),
            attach: 1,
        };
        let mut options = SocketOptions::default();
        let identity = format!("{name}/{epoch}");
        options.peer_identity(PeerIdentity::try_from(identity.as_bytes()).expect("a short identity"));
        let mut socket = DealerSocket::with_options(options);
        socket.connect(endpoint).await.expect("the frontend listens");
        let mut lane = Lane::new(LaneConfig::default(), epoch, UNKNOWN_EPOCH, Instant::now());
        let later = *versions.end() > *holdfast_proto::link::PROTOCOL_VERSIONS.end();
        lane.enqueue(Command::Hello(hello(name, versions)), None);
        lane.enqueue(Command::Ready(Ready::default()), None);
        let (orders, todo) = mpsc::unbounded_channel();
        let (tell, got) = mpsc::unbounded_channel();
        let end = End {
            socket,
            lane,
            later,
            answers,
            tell,
            progress: 0,
        };
        let task = tokio::spawn(end.run(todo));
        Self { orders, got, task }
    }

    /// Sends a command, whatever it is.
    pub fn say(&self, command: Command) {
        self.order(Order::Say(command));
    }

    /// Stands still, as after SIGSTOP: what is said meanwhile goes out after [`Peer::wake`].
    pub fn hang(&self) {
        self.order(Order::Hang);
    }

    pub fn wake(&self) {
        self.order(Order::Wake);
    }

    /// Waits until the frontend has said Hello: the peer is attached.
    pub async fn attached(&mut self) {
        let hello = |command| matches!(command, Command::Hello(_)).then_some(());
        self.until("the frontend's Hello", hello).await;
    }

    /// The next request of a device.
    pub async fn request(&mut self) -> Request {
        self.until("a request", |command| match command {
            Command::TextMessage(request) => Some(request),
            _ => None,
        })
        .await
    }

    /// Waits for a command that `pick` takes; drops those before it. Panics when none comes.
    pub async fn until<T>(&mut self, what: &str, mut pick: impl FnMut(Command) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let command = self
                    .got
                    .recv()
                    .await
                    .unwrap_or_else(|| panic!("the link ended before {what}"));
                if let Some(picked) = pick(command) {
                    return picked;
                }
            }
        };
        timeout(PATIENCE, waiting)
            .await
            .unwrap_or_else(|_| panic!("{what} did not come"))
    }

    fn order(&self, order: Order) {
        self.orders
            .send(order)
            .expect("the peer's task lives as long as the peer");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn hello(name: &str, versions: RangeInclusive<u32>) -> Hello {
    Hello {
        version_min: *versions.start(),
        version_max: *versions.end(),
        name: name.to_owned(),
        build: "test".to_owned(),
        features: vec!["a_feature_of_the_test".to_owned()],
        ..Default::default()
    }
}

/// The task's side.
struct End {
    socket: DealerSocket,
    lane: Lane,
    /// Whether every batch holds a field that this build does not know.
    later: bool,
    answers: Answers,
    tell: mpsc::UnboundedSender<Command>,
    progress: u64,
}

impl End {
    async fn run(mut self, mut todo: mpsc::UnboundedReceiver<Order>) {
        let mut tick = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                order = todo.recv() => match order {
                    None => return,
                    Some(Order::Say(command)) => self.lane.enqueue(command, None),
                    Some(Order::Hang) => self.hang(&mut todo).await,
                    Some(Order::Wake) => {}
                },
                message = self.socket.recv() => match message {
                    Ok(message) => self.handle(message),
                    Err(_) => return,
                },
                _ = tick.tick() => self.progress += 1,
            }
            if self.flush().await.is_err() {
                return;
            }
        }
    }

    async fn hang(&mut self, todo: &mut mpsc::UnboundedReceiver<Order>) {
        while let Some(order) = todo.recv().await {
            match order {
                Order::Say(command) => self.lane.enqueue(command, None),
                Order::Hang => {}
                Order::Wake => return,
            }
        }
    }

    /// A notice is told to the test and changes nothing: this backend does not know when it should stop.
    fn handle(&mut self, message: ZmqMessage) {
        let batch = message.get(0).expect("a message has a frame").clone();
        let (header, frames) = decode_batch(batch).expect("a frontend's batch");
        if let Some(notice) = read_notice(self.lane.local(), &header, &frames) {
            let _ = self.tell.send(notice);
            return;
        }
        if self.lane.remote() == UNKNOWN_EPOCH
            && let Some(from) = header.from
        {
            self.lane.set_remote(from.into());
        }
        let mut got = Vec::new();
        if self
            .lane
            .handle_batch(Instant::now(), (header, frames), &mut got)
            .is_err()
        {
            return;
        }
        for Incoming { command, charge } in got {
            if let Some(charge) = charge {
                self.lane.release(charge);
            }
            let itself = match self.answers {
                Answers::Test => false,
                Answers::Admission => {
                    matches!(command, Command::Bind(_) | Command::Login(_) | Command::Logout(_))
                }
                Answers::Itself => true,
            };
            if itself && let Some(answer) = answer::answer(&command) {
                self.lane.enqueue(answer, None);
            }
            // A test that is over does not listen any more.
            let _ = self.tell.send(command);
        }
    }

    async fn flush(&mut self) -> Result<(), zeromq::ZmqError> {
        let now = Instant::now();
        while let Some(batch) = self
            .lane
            .poll_batch(now, self.progress, |_, _| {})
            .or_else(|| self.lane.poll_header(now, self.progress))
        {
            let mut bytes = BytesMut::from(&batch[..]);
            if self.later {
                bytes.extend_from_slice(FIELD_OF_A_LATER_VERSION);
            }
            self.socket.send(Bytes::from(bytes).into()).await?;
        }
        Ok(())
    }
}
