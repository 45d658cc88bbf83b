//! The tunnel's listener against backends, strangers and floods, over real sockets.

use super::*;
use holdfast_proto::secure::{Identity, Initiator, SecureChannel};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, UnixListener};

/// A tunnel to a socket that echoes.
struct Place {
    tunnel: Arc<Tunnel>,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

async fn place() -> Place {
    place_with(TunnelLimits::default()).await
}

async fn place_with(limits: TunnelLimits) -> Place {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("link.sock");
    let local = UnixListener::bind(&link).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = local.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let path = directory.path().join("link.key");
    std::fs::write(&path, key(1).to_text()).unwrap();
    let keys = LinkKeys::load(&path).unwrap();
    let tunnel = Tunnel::new(keys, link, TunnelMetrics::default(), limits);
    tokio::spawn(tunnel.clone().serve(listener));
    Place {
        tunnel,
        address,
        _directory: directory,
    }
}

fn key(byte: u8) -> DeviceKey {
    DeviceKey::from_bytes(&[byte; 32]).unwrap()
}

impl Place {
    fn refused(&self, cause: &'static str) -> u64 {
        self.tunnel
            .metrics
            .refused
            .get_or_create(&CauseLabel { cause })
            .get()
    }

    /// The local end of a tunnel, made as a backend makes it.
    async fn backend(&self) -> tokio::io::DuplexStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let keys = tunnel::connect(&mut stream, &key(1), "backend".parse().unwrap(), now_ms())
            .await
            .unwrap();
        let (here, there) = tokio::io::duplex(1 << 16);
        tokio::spawn(tunnel::carry(stream, there, keys));
        here
    }

    /// A connection from another source than all with another number, which says nothing.
    async fn silent(&self, source: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 1, 0, source], 0))).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    /// A connection over which somebody says what `message` is, and waits.
    async fn says(&self, message: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let length = (message.len() as u16).to_be_bytes();
        // It may be hung up on already.
        let _ = stream.write_all(&[&length, message].concat()).await;
        stream
    }

    /// Waits until so many connections have places, of which so many have shown the key.
    async fn wait_for_places(&self, count: usize, confirmed: usize) {
        while lock(&self.tunnel.places).counts() != (count, confirmed) {
            tokio::task::yield_now().await;
        }
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_millis() as u64
}

/// A backend's first message.
fn first_message(at_ms: Option<u64>) -> String {
    let identity = Identity {
        key_id: "link".into(),
        product: String::new(),
        class: String::new(),
        device: "backend".parse().unwrap(),
        key_version: 1,
    };
    let (_, message) = Initiator::new(SecureChannel::Link, &identity, &key(1), at_ms).unwrap();
    message
}

async fn echoes(local: &mut tokio::io::DuplexStream) {
    local.write_all(b"batch").await.unwrap();
    let mut answer = [0; 5];
    local.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"batch");
}

/// Waits for the end of the peer's bytes, of which there are so many.
async fn is_hung_up(mut stream: TcpStream) -> usize {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    bytes.len()
}

#[tokio::test]
async fn a_backend_with_the_key_reaches_the_link() {
    let place = place().await;
    let mut local = place.backend().await;
    echoes(&mut local).await;
    assert_eq!(place.tunnel.metrics.open.get(), 1);
}

#[tokio::test]
async fn another_key_and_garbage_reach_nothing_and_are_counted() {
    let place = place().await;
    let mut stream = TcpStream::connect(place.address).await.unwrap();
    let refused = tunnel::connect(&mut stream, &key(2), "backend".parse().unwrap(), 0).await;
    assert!(refused.is_err());
    is_hung_up(stream).await;
    assert_eq!(place.refused("handshake"), 1);

    let mut stream = TcpStream::connect(place.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    is_hung_up(stream).await;
    // ZeroMQ's own greeting, as a backend without a tunnel would send it.
    let mut stream = TcpStream::connect(place.address).await.unwrap();
    stream.write_all(b"\xff\0\0\0\0\0\0\0\x01\x7f").await.unwrap();
    is_hung_up(stream).await;
    assert_eq!(
        (place.refused("protocol"), place.tunnel.metrics.accepted.get()),
        (2, 0)
    );
}

#[tokio::test]
async fn a_flood_is_held_off_and_a_tunnel_that_stands_goes_on() {
    let place = place().await;
    let mut local = place.backend().await;
    echoes(&mut local).await;
    // One source has so many places; its further connections take those of its earlier ones.
    let mut silent = Vec::new();
    for _ in 0..2 * SOURCE_BURST {
        silent.push(TcpStream::connect(place.address).await.unwrap());
    }
    let refused = || (place.refused("silent") + place.refused("throttled")) as usize;
    while refused() + MAX_HANDSHAKES_PER_SOURCE < silent.len() {
        tokio::task::yield_now().await;
    }
    assert!(place.refused("silent") > 0 && place.refused("throttled") > 0);
    assert_eq!(place.refused("timeout"), 0);
    echoes(&mut local).await;
}

#[tokio::test]
async fn a_backend_gets_in_while_silent_connections_from_everywhere_take_all_places() {
    let limits = TunnelLimits {
        handshakes: 8,
        ..TunnelLimits::default()
    };
    let place = place_with(limits).await;
    let mut silent = Vec::new();
    for source in 0..12 {
        silent.push(place.silent(source).await);
        place.wait_for_places(silent.len().min(8), 0).await;
    }
    for lost in silent.drain(..4) {
        is_hung_up(lost).await;
    }
    assert_eq!((place.refused("silent"), place.refused("busy")), (4, 0));
    let mut local = place.backend().await;
    echoes(&mut local).await;
    assert_eq!((place.refused("silent"), place.refused("busy")), (5, 0));
}

#[tokio::test]
async fn a_backend_gets_in_while_its_own_source_is_full_of_silent_connections() {
    let place = place().await;
    let mut silent = Vec::new();
    for n in 1..=MAX_HANDSHAKES_PER_SOURCE {
        silent.push(TcpStream::connect(place.address).await.unwrap());
        place.wait_for_places(n, 0).await;
    }
    let mut local = place.backend().await;
    echoes(&mut local).await;
    assert_eq!((place.refused("silent"), place.refused("busy")), (1, 0));
}

/// Who stops after a message made with the key had a backend's; nobody is let in beyond the places.
#[tokio::test]
async fn places_of_those_who_showed_the_key_are_kept_and_bounded() {
    let limits = TunnelLimits {
        handshakes: 2,
        ..TunnelLimits::default()
    };
    let place = place_with(limits).await;
    let first = place.says(first_message(Some(now_ms())).as_bytes()).await;
    let second = place.says(first_message(Some(now_ms())).as_bytes()).await;
    place.wait_for_places(2, 2).await;
    assert_eq!(is_hung_up(place.silent(9).await).await, 0);
    assert_eq!(place.refused("busy"), 1);
    drop(first);
    place.wait_for_places(1, 1).await;
    echoes(&mut place.backend().await).await;
    drop(second);
}

#[tokio::test]
async fn replays_and_old_messages_get_no_answer_and_are_counted() {
    let place = place().await;
    let recorded = first_message(Some(now_ms()));
    let mut answered = place.says(recorded.as_bytes()).await;
    answered.read_u16().await.unwrap();
    for (message, cause) in [
        (recorded, "replayed"),
        (first_message(Some(now_ms() - 130_000)), "clock"),
        (first_message(Some(now_ms() + 130_000)), "clock"),
        (first_message(None), "clock"),
    ] {
        let before = place.refused(cause);
        assert_eq!(
            is_hung_up(place.says(message.as_bytes()).await).await,
            0,
            "{cause}"
        );
        assert_eq!(place.refused(cause), before + 1, "{cause}");
    }
    echoes(&mut place.backend().await).await;
}

#[tokio::test]
async fn whoever_takes_too_long_is_let_go_of() {
    let limits = TunnelLimits {
        handshake_timeout: Duration::from_millis(20),
        ..TunnelLimits::default()
    };
    let place = place_with(limits).await;
    is_hung_up(place.silent(1).await).await;
    is_hung_up(place.says(first_message(Some(now_ms())).as_bytes()).await).await;
    assert_eq!(place.refused("timeout"), 2);
    place.wait_for_places(0, 0).await;
}

#[tokio::test]
async fn no_more_tunnels_stand_than_may() {
    let limits = TunnelLimits {
        tunnels: 1,
        ..TunnelLimits::default()
    };
    let place = place_with(limits).await;
    let mut local = place.backend().await;
    echoes(&mut local).await;
    let mut second = place.backend().await;
    assert_eq!(second.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(
        (place.refused("full"), place.tunnel.metrics.accepted.get()),
        (1, 1)
    );
    echoes(&mut local).await;
    drop(local);
    while place.tunnel.tunnels.available_permits() == 0 {
        tokio::task::yield_now().await;
    }
    echoes(&mut place.backend().await).await;
}

#[tokio::test]
async fn a_link_that_is_not_there_is_counted() {
    let place = place().await;
    std::fs::remove_file(&place.tunnel.link).unwrap();
    let mut local = place.backend().await;
    assert_eq!(local.read(&mut [0]).await.unwrap(), 0);
    assert_eq!((place.refused("link"), place.tunnel.metrics.open.get()), (1, 0));
}

#[test]
fn a_key_file_is_read_whole_or_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("link.key");
    std::fs::write(&path, format!("{}\n", key(3).to_text())).unwrap();
    let keys = LinkKeys::load(&path).unwrap();
    assert_eq!(keys.current()[0].as_bytes(), &[3; 32]);
    std::fs::write(&path, "short").unwrap();
    let read = || {
        read_file(&path)
            .and_then(|(text, _)| parse_keys(&text))
            .unwrap_err()
    };
    let error = read().to_string();
    assert!(
        error.contains("not a link key") && !error.contains("short"),
        "{error}"
    );
    std::fs::write(&path, vec![b'x'; 5000]).unwrap();
    assert!(read().to_string().contains("longer than"));
    let three = [key(1), key(2), key(3)].map(|key| key.to_text()).join("\n");
    std::fs::write(&path, three).unwrap();
    let error = read().to_string();
    assert!(error.contains("3 link keys; allowed are 1 to 2"), "{error}");
}

/// A key file whose time stamp never changes.
struct KeyFile {
    path: PathBuf,
    keys: LinkKeys,
    _directory: tempfile::TempDir,
}

impl KeyFile {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("link.key");
        std::fs::write(&path, key(1).to_text()).unwrap();
        set_time(&path);
        Self {
            keys: LinkKeys::load(&path).unwrap(),
            path,
            _directory: directory,
        }
    }

    /// Writes, looks, and says whether to look again soon and what keys are good.
    fn look(&self, text: &str) -> (bool, Vec<u8>) {
        std::fs::write(&self.path, text).unwrap();
        set_time(&self.path);
        let settling = self.keys.look();
        let firsts = self.keys.current().iter().map(|key| key.as_bytes()[0]).collect();
        (settling, firsts)
    }
}

fn set_time(path: &Path) {
    let file = std::fs::File::options().append(true).open(path).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
}

#[test]
fn a_key_is_replaced_while_the_old_one_is_good_and_a_bad_file_changes_nothing() {
    let file = KeyFile::new();
    let both = format!("{}\n{}\n", key(1).to_text(), key(2).to_text());
    let change = |text: &str| [file.look(text), file.look(text)];
    assert_eq!(change(&both), [(true, vec![1]), (false, vec![1, 2])]);
    assert_eq!(change("nonsense"), [(true, vec![1, 2]), (false, vec![1, 2])]);
    assert_eq!(change(&key(2).to_text()), [(true, vec![1, 2]), (false, vec![2])]);
    assert_eq!(file.look(&key(2).to_text()), (false, vec![2]));
}

#[test]
fn a_file_that_is_just_being_written_is_not_taken_half() {
    let file = KeyFile::new();
    let (first, both) = (
        key(2).to_text(),
        format!("{}\n{}\n", key(2).to_text(), key(1).to_text()),
    );
    assert_eq!(file.look(&first), (true, vec![1]));
    assert_eq!(file.look(&both), (true, vec![1]));
    assert_eq!(file.look(&both), (false, vec![2, 1]));
}

#[tokio::test]
async fn the_listener_takes_a_new_key_when_the_file_has_it() {
    let place = place().await;
    while place.tunnel.metrics.keys.get() != 1 {
        tokio::task::yield_now().await;
    }
    let both = format!("{}\n{}\n", key(2).to_text(), key(1).to_text());
    std::fs::write(&place.tunnel.keys.path, both).unwrap();
    while place.tunnel.metrics.keys.get() != 2 {
        tokio::task::yield_now().await;
    }
    echoes(&mut place.backend().await).await;
}
