//! A device on `wss` that is led to something else never shows its token, and a device changes its channel for nobody.

use std::net::SocketAddr;
use std::sync::Arc;

use holdfast_client::{Device, Error, Tls};
use holdfast_tests::gateway::Gateway;
use holdfast_tests::keys::Certificates;
use holdfast_tests::service::Service;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

/// A device with a token that trusts the gateway's authority.
async fn connect(gateway: &Gateway, address: SocketAddr, token: &str) -> Result<Device, Error> {
    let tls = Tls::from_ca_pem(gateway.certificates.ca_pem.as_bytes()).unwrap();
    let url = format!("wss://localhost:{}", address.port());
    Device::builder(url, token).tls(tls).connect().await
}

/// Takes a connection, answers whatever comes with `answer`, and tells what came.
async fn answering(answer: &'static [u8]) -> (SocketAddr, mpsc::UnboundedReceiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut came = Vec::new();
            stream.read_buf(&mut came).await.ok();
            stream.write_all(answer).await.ok();
            stream.shutdown().await.ok();
            stream.read_to_end(&mut came).await.ok();
            tell.send(came).ok();
        }
    });
    (address, told)
}

/// Passes bytes on as they are, and tells what the device sent.
async fn passing(to: SocketAddr) -> (SocketAddr, mpsc::UnboundedReceiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((device, _)) = listener.accept().await {
            let server = TcpStream::connect(to).await.unwrap();
            let (mut from_device, mut to_device) = device.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move {
                tokio::io::copy(&mut from_server, &mut to_device).await.ok();
                to_device.shutdown().await.ok();
            });
            let mut came = Vec::new();
            while let Ok(n @ 1..) = from_device.read_buf(&mut came).await {
                to_server.write_all(&came[came.len() - n..]).await.ok();
            }
            tell.send(came).ok();
        }
    });
    (address, told)
}

fn assert_says_nothing(came: &[u8], token: &str) {
    assert!(!came.is_empty(), "the device tried");
    for secret in [&b"Bearer"[..], b"GET ", &token.as_bytes()[..16]] {
        let shown = came.windows(secret.len()).any(|part| part == secret);
        assert!(!shown, "{:?}", String::from_utf8_lossy(came));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wss_device_at_the_ws_port_shows_nothing() {
    let service = Service::start().await;
    let gateway = Gateway::start(&service).await;
    let token = gateway.tokens.token("d");
    let (address, mut told) = passing(gateway.ws()).await;
    let error = connect(&gateway, address, &token).await.err().unwrap();
    assert!(matches!(error, Error::Connect(_)), "{error}");
    assert_says_nothing(&told.recv().await.unwrap(), &token);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_strips_tls_learns_nothing() {
    let service = Service::start().await;
    let gateway = Gateway::start(&service).await;
    let token = gateway.tokens.token("d");
    for answer in [
        &b"HTTP/1.1 301 Moved Permanently\r\nLocation: ws://localhost/\r\nContent-Length: 0\r\n\r\n"[..],
        b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Holdfast\r\nContent-Length: 0\r\n\r\n",
        b"",
    ] {
        let (address, mut told) = answering(answer).await;
        let error = connect(&gateway, address, &token).await.err().unwrap();
        assert!(matches!(error, Error::Connect(_)), "{error}");
        assert_says_nothing(&told.recv().await.unwrap(), &token);
    }
}

/// TLS alone is not enough: it must be the gateway's.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_another_certificate_learns_nothing() {
    let service = Service::start().await;
    let gateway = Gateway::start(&service).await;
    let token = gateway.tokens.token("d");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server_config(&Certificates::generate())));
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        acceptor.accept(stream).await.err().map(|error| error.to_string())
    });
    let error = connect(&gateway, address, &token).await.err().unwrap();
    assert!(matches!(error, Error::Connect(_)), "{error}");
    let refused = server.await.unwrap();
    assert!(
        refused.is_some(),
        "the device went on after a stranger's certificate"
    );
}

/// Led to the TLS port, a device on `ws` gets nowhere and stays what it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_ws_device_at_the_wss_port_gets_nowhere() {
    let service = Service::start().await;
    let gateway = Gateway::start(&service).await;
    let identity = gateway.keys.identity("d");
    let key = gateway.keys.device_key(&identity);
    let device = Device::builder_with_key(format!("ws://{}", gateway.wss()), identity, key);
    let error = device.connect().await.err().unwrap();
    assert!(matches!(error, Error::Connect(_)), "{error}");
}

fn server_config(certificates: &Certificates) -> ServerConfig {
    let chain = CertificateDer::from_pem_slice(certificates.chain_pem.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(certificates.key_pem.as_bytes()).unwrap();
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .unwrap()
}
