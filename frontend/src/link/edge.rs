//! The link's ZeroMQ edge: one ROUTER on its own thread.
//!
//! The traps of the crate `zeromq` that shape this file: a send must never wait (credits keep every peer's queue far below
//! its fixed size); `Ok` means queued, not sent; liveness is only read inside `recv`, so that is always polled; a stale
//! socket file must neither be in the way nor be removed by its predecessor, so the listener is bound at a temporary name
//! and renamed; a tight loop of sends never yields by itself.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Instant;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use holdfast_proto::ShardId;
use tokio::sync::{mpsc, watch};
use zeromq::{RouterRecvHalf, RouterSendHalf, Socket, SocketEvent, SocketRecv, SocketSend, ZmqMessage};

use super::hub::Hub;
use super::metrics::LinkMetrics;
use super::status::LinkStatus;
use crate::exchange::{ToHub, ToShard};

/// Messages taken from the socket, and vectors from shards, before a turn goes on to send.
const MAX_PER_TURN: usize = 256;
/// Sends between two yields: the writers run on the same thread.
const SENDS_PER_YIELD: usize = 32;

/// What shards get at least for writing their sessions' last words.
const GOODBYE_TIME: std::time::Duration = std::time::Duration::from_millis(200);

/// What the link thread is made of.
pub struct LinkSetup {
    pub hub: Hub,
    pub metrics: LinkMetrics,
    /// The socket file; its directory is made, with mode 0700.
    pub path: PathBuf,
    pub from_shards: mpsc::UnboundedReceiver<(ShardId, Vec<ToHub>)>,
    pub to_shards: Vec<mpsc::UnboundedSender<Vec<ToShard>>>,
    /// Turns true when the frontend shall stop.
    pub stop: watch::Receiver<bool>,
    pub status: watch::Sender<LinkStatus>,
}

/// A bound ROUTER and the lock on its place.
pub struct LinkSocket {
    socket: zeromq::RouterSocket,
    events: futures_util::stream::BoxStream<'static, SocketEvent>,
    _lock: nix::fcntl::Flock<std::fs::File>,
}

impl LinkSocket {
    /// Binds the socket file, in place of one that a dead frontend left.
    ///
    /// # Errors
    /// Another frontend holds the place, or what the system says.
    pub async fn bind(path: &Path, identity: &str) -> io::Result<Self> {
        let directory = path
            .parent()
            .filter(|d| !d.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        make_private(directory, path)?;
        let lock = lock(&beside(path, "lock"))?;
        let temporary = beside(path, "new");
        let _ = std::fs::remove_file(&temporary);
        let listener = std::os::unix::net::UnixListener::bind(&temporary)?;
        std::fs::rename(&temporary, path)?;
        listener.set_nonblocking(true)?;
        let mut options = zeromq::SocketOptions::default();
        if let Ok(identity) = identity.parse() {
            options.peer_identity(identity);
        }
        let mut socket = zeromq::RouterSocket::with_options(options);
        let events = socket.monitor().boxed();
        socket.bind_listener(listener).await.map_err(io::Error::other)?;
        Ok(Self {
            socket,
            events,
            _lock: lock,
        })
    }
}

/// A file of the socket's own in the same directory: the whole name counts, so that several frontends can share it.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// Makes the directory, with mode 0700. One that was there and open to others is closed to them only when it holds nothing
/// of theirs: nobody wants `/tmp` or `/run` closed because a socket's path was chosen carelessly.
fn make_private(directory: &Path, socket: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let open = std::fs::metadata(directory)?.permissions().mode() & 0o077 != 0;
    if !open {
        return Ok(());
    }
    let name = socket.file_name().unwrap_or_default().as_encoded_bytes();
    for entry in std::fs::read_dir(directory)? {
        if !entry?.file_name().as_encoded_bytes().starts_with(name) {
            let place = directory.display();
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "{place} is open to others and holds other files: name a directory for the link alone, or chmod 700 it"
                ),
            ));
        }
    }
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
}

/// Takes the lock file at `path` for as long as the result lives.
pub(crate) fn lock(path: &Path) -> io::Result<nix::fcntl::Flock<std::fs::File>> {
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        match errno {
            nix::errno::Errno::EWOULDBLOCK => {
                io::Error::new(io::ErrorKind::AddrInUse, "another process holds it")
            }
            errno => errno.into(),
        }
    })
}

/// Runs the link until every shard has stopped.
pub async fn run(socket: LinkSocket, setup: LinkSetup) {
    let LinkSocket {
        socket,
        events,
        _lock,
    } = socket;
    let (sender, receiver) = socket.split();
    let LinkSetup {
        hub,
        metrics,
        from_shards,
        to_shards,
        stop,
        status,
        ..
    } = setup;
    let mut link = Link {
        hub,
        metrics,
        sender,
        batches: to_shards.iter().map(|_| Vec::new()).collect(),
        to_shards,
        status,
        sends: 0,
        stopping: None,
    };
    let inputs = Inputs {
        receiver,
        events,
        from_shards,
        stop,
    };
    link.run(inputs).await;
}

struct Inputs {
    receiver: RouterRecvHalf,
    events: futures_util::stream::BoxStream<'static, SocketEvent>,
    from_shards: mpsc::UnboundedReceiver<(ShardId, Vec<ToHub>)>,
    stop: watch::Receiver<bool>,
}

struct Link {
    hub: Hub,
    metrics: LinkMetrics,
    sender: RouterSendHalf,
    to_shards: Vec<mpsc::UnboundedSender<Vec<ToShard>>>,
    /// By shard: what this turn has for it.
    batches: Vec<Vec<ToShard>>,
    status: watch::Sender<LinkStatus>,
    sends: usize,
    /// When the frontend was told to stop.
    stopping: Option<Instant>,
}

impl Link {
    async fn run(&mut self, mut inputs: Inputs) {
        loop {
            // Also a loop that never waits hears of the stop.
            if self.stopping.is_none() && *inputs.stop.borrow() {
                self.stopping = Some(Instant::now());
                self.hub.handle_stop();
            }
            let mut moved = self.drain(&mut inputs);
            let now = Instant::now();
            if now >= self.hub.poll_timeout() {
                self.hub.handle_timeout(now);
            }
            moved |= self.transmit(now).await;
            self.tell_shards();
            self.tell_status();
            if self.may_end(now) {
                return;
            }
            while let Some((identity, batch)) = self.hub.poll_header(now) {
                self.send(identity, batch).await;
            }
            if moved {
                tokio::task::yield_now().await;
                continue;
            }
            self.wait(&mut inputs).await;
        }
    }

    /// Stopped: every LOGOUT is acknowledged, or nobody is there to take one.
    fn may_end(&self, now: Instant) -> bool {
        let Some(since) = self.stopping else { return false };
        now >= since + GOODBYE_TIME && (self.hub.is_stopped() || self.hub.is_alone())
    }

    /// Takes whatever has come, up to the turn's bound; true when something had.
    fn drain(&mut self, inputs: &mut Inputs) -> bool {
        let mut moved = false;
        for _ in 0..MAX_PER_TURN {
            match inputs.receiver.recv().now_or_never() {
                Some(received) => self.on_received(received),
                None => break,
            }
            moved = true;
        }
        while let Some(Some(event)) = inputs.events.next().now_or_never() {
            self.on_event(event);
            moved = true;
        }
        for _ in 0..MAX_PER_TURN {
            let Ok((shard, messages)) = inputs.from_shards.try_recv() else {
                break;
            };
            self.on_shard(shard, messages);
            moved = true;
        }
        moved
    }

    async fn wait(&mut self, inputs: &mut Inputs) {
        let mut due = self.hub.poll_timeout();
        let goodbyes = self.stopping.map(|since| since + GOODBYE_TIME);
        if let Some(at) = goodbyes.filter(|at| *at > Instant::now()) {
            due = due.min(at);
        }
        let mut sleep = pin!(tokio::time::sleep_until(due.into()));
        tokio::select! {
            received = inputs.receiver.recv() => self.on_received(received),
            Some(event) = inputs.events.next() => self.on_event(event),
            Some((shard, messages)) = inputs.from_shards.recv() => self.on_shard(shard, messages),
            Ok(()) = inputs.stop.changed(), if self.stopping.is_none() => {}
            // A process that was stopped may hear its clock before its sockets: they are read first, for silence is judged on
            // all that came.
            () = &mut sleep => tokio::task::yield_now().await,
        }
    }

    fn on_received(&mut self, received: zeromq::ZmqResult<ZmqMessage>) {
        let parts = match received {
            Ok(message) => message.into_vec(),
            Err(error) => {
                self.metrics.malformed.inc();
                tracing::warn!(%error, "the link's socket could not receive");
                return;
            }
        };
        let now = Instant::now();
        match <[Bytes; 2]>::try_from(parts) {
            Ok([identity, batch]) => self.hub.handle_batch(now, &identity, batch),
            Err(_) => {
                self.metrics.malformed.inc();
            }
        }
    }

    fn on_event(&mut self, event: SocketEvent) {
        if let SocketEvent::Disconnected(identity) = event {
            self.hub
                .handle_disconnected(Instant::now(), &Bytes::copy_from_slice(identity.as_ref()));
        }
    }

    fn on_shard(&mut self, shard: ShardId, messages: Vec<ToHub>) {
        let now = Instant::now();
        for message in messages {
            self.hub.handle_shard(now, shard, message);
        }
    }

    async fn transmit(&mut self, now: Instant) -> bool {
        let mut moved = false;
        while let Some((identity, batch)) = self.hub.poll_batch(now) {
            self.send(identity, batch).await;
            moved = true;
        }
        moved
    }

    async fn send(&mut self, identity: Bytes, batch: Bytes) {
        let Ok(message) = ZmqMessage::try_from(vec![identity, batch]) else {
            return;
        };
        if let Err(error) = self.sender.send(message).await {
            // Its socket is gone: the monitor or the silence will tell.
            self.metrics.send_failures.inc();
            tracing::debug!(%error, "a batch could not be sent");
        }
        self.sends += 1;
        if self.sends.is_multiple_of(SENDS_PER_YIELD) {
            tokio::task::yield_now().await;
        }
    }

    fn tell_shards(&mut self) {
        while let Some((shard, message)) = self.hub.poll_shard() {
            if let Some(batch) = self.batches.get_mut(usize::from(shard.0)) {
                batch.push(message);
            }
        }
        for (batch, shard) in self.batches.iter_mut().zip(&self.to_shards) {
            if !batch.is_empty() {
                // A shard that is gone has ended the process, or is about to.
                let _ = shard.send(std::mem::take(batch));
            }
        }
    }

    fn tell_status(&mut self) {
        if !self.hub.take_changed() {
            return;
        }
        self.status.send_replace(LinkStatus {
            backends: self.hub.status(),
            hand_overs: self.hub.hand_overs(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn open_directory(root: &Path, name: &str) -> PathBuf {
        let directory = root.join(name);
        std::fs::create_dir(&directory).unwrap();
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
        directory
    }

    #[test]
    fn the_directory_is_made_private_unless_it_is_somebody_else_s() {
        let root = tempfile::tempdir().unwrap();
        let made = root.path().join("a/b");
        make_private(&made, &made.join("f.sock")).unwrap();
        assert_eq!(mode(&made), 0o700);

        let own = open_directory(root.path(), "own");
        std::fs::write(own.join("f.sock.lock"), "").unwrap();
        make_private(&own, &own.join("f.sock")).unwrap();
        assert_eq!(mode(&own), 0o700);

        let shared = open_directory(root.path(), "shared");
        std::fs::write(shared.join("other"), "").unwrap();
        let error = make_private(&shared, &shared.join("f.sock")).unwrap_err();
        assert!(error.to_string().contains("chmod 700"), "{error}");
        assert_eq!(mode(&shared), 0o755);
    }

    #[tokio::test]
    async fn frontends_may_share_a_directory_but_not_a_socket() {
        let root = tempfile::tempdir().unwrap();
        let bind = async |name| LinkSocket::bind(&root.path().join(name), name).await;
        let _one = bind("link.1").await.unwrap();
        let _two = bind("link.2").await.unwrap();
        assert_eq!(
            bind("link.1").await.err().unwrap().kind(),
            io::ErrorKind::AddrInUse
        );
    }
}
