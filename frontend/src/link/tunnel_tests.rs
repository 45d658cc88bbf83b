//! The tunnel's listener against backends, strangers and floods, over real sockets.

use super::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

/// A tunnel to a socket that echoes.
struct Place {
    tunnel: Arc<Tunnel>,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

async fn place() -> Place {
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
    let tunnel = Tunnel::new(keys, link, TunnelMetrics::default());
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
        let keys = tunnel::connect(&mut stream, &key(1), "backend".parse().unwrap(), 0)
            .await
            .unwrap();
        let (here, there) = tokio::io::duplex(1 << 16);
        tokio::spawn(tunnel::carry(stream, there, keys));
        here
    }
}

async fn echoes(local: &mut tokio::io::DuplexStream) {
    local.write_all(b"batch").await.unwrap();
    let mut answer = [0; 5];
    local.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"batch");
}

/// Waits for the end of the peer's bytes.
async fn is_hung_up(mut stream: TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new()).await;
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
    // Silent connections hold the places of their source; more are turned away at once.
    let mut silent = Vec::new();
    for _ in 0..MAX_HANDSHAKES_PER_SOURCE {
        let mut stream = TcpStream::connect(place.address).await.unwrap();
        stream.write_all(b"\0").await.unwrap();
        silent.push(stream);
    }
    for _ in 0..2 * SOURCE_BURST {
        is_hung_up(TcpStream::connect(place.address).await.unwrap()).await;
    }
    assert!(place.refused("busy") > 0 && place.refused("throttled") > 0);
    echoes(&mut local).await;
    drop(silent);
}

#[test]
fn a_key_file_is_read_whole_or_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("link.key");
    std::fs::write(&path, format!("{}\n", key(3).to_text())).unwrap();
    let keys = LinkKeys::load(&path).unwrap();
    assert_eq!(keys.current()[0].as_bytes(), &[3; 32]);
    std::fs::write(&path, "short").unwrap();
    let error = read_keys(&path).unwrap_err().to_string();
    assert!(
        error.contains("not a link key") && !error.contains("short"),
        "{error}"
    );
    std::fs::write(&path, vec![b'x'; 5000]).unwrap();
    assert!(read_keys(&path).unwrap_err().to_string().contains("longer than"));
    let three = [key(1), key(2), key(3)].map(|key| key.to_text()).join("\n");
    std::fs::write(&path, three).unwrap();
    let error = read_keys(&path).unwrap_err().to_string();
    assert!(error.contains("3 link keys; allowed are 1 to 2"), "{error}");
}

#[test]
fn a_key_is_replaced_while_the_old_one_is_good_and_a_bad_file_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("link.key");
    std::fs::write(&path, key(1).to_text()).unwrap();
    let keys = LinkKeys::load(&path).unwrap();
    let look = |text: String, seconds: u64| {
        std::fs::write(&path, text).unwrap();
        let file = std::fs::File::options().append(true).open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
            .unwrap();
        let mut loaded = keys.loaded.lock().unwrap();
        keys.look(&mut loaded);
        let first = loaded.keys.iter().map(|key| key.as_bytes()[0]);
        first.collect::<Vec<_>>()
    };
    let both = format!("{}\n{}\n", key(1).to_text(), key(2).to_text());
    assert_eq!(look(both, 1), [1, 2]);
    assert_eq!(look("nonsense".to_owned(), 2), [1, 2]);
    assert_eq!(look(key(2).to_text().clone(), 3), [2]);
}
