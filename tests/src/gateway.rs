//! The real binaries, run as an operator would: own directory, own addresses, generated config and keys.
//!
//! Everything ends with the [`Gateway`], however the test ends; when it panics, logs and metrics are shown.

mod binaries;
mod config;
mod control;
mod group;
mod node;
mod supervised;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Over;
use crate::address::{free_port, free_udp_port, own_address};
use crate::device::Device;
use crate::dial::{Dial, Endpoint, Transport};
use crate::http::{Answer, Http, request};
use crate::keys::{Certificates, DeviceKeys, TokenKey};
use crate::lossy::{self, Relay, Weather};
use crate::python::Devices;
use crate::service::Service;
use config::{Layout, Listen, Settings};
use group::Group;

pub use binaries::locate;
pub use config::{API_KEY, READ_KEY, Route};
pub use control::Control;
pub use node::Node;
pub use supervised::{Following, Supervised, is_running, route, send};

/// How a gateway shall be.
pub struct Builder<'a> {
    service: &'a Service,
    routes: Vec<Route>,
    frontends: usize,
    backends: usize,
    frontend_settings: Settings,
    backend_settings: Settings,
    shared_api: bool,
    channels: Channels,
    public: Option<IpAddr>,
}

/// Which channel devices come over that do not say it.
#[derive(Debug, Clone, Copy)]
enum Channels {
    /// In turn, beginning with `ws`: what happens to one kind of device happens beside the others. Some datagrams are lost.
    Mixed,
    All(Over),
}

/// `wss`, `ws` and `udp` at a public address, below the ports that the system gives away.
const PUBLIC_PORTS: [u16; 3] = [7400, 7401, 7402];

/// Times of every frontend that a test does not set otherwise: long enough that no stall of a busy machine is taken for what a test is
/// not about. Devices wait for a backend that has yet to start, may be slow to say `@hello`, and links may pause.
const FRONTEND_TIMES: [(&str, &str); 3] = [
    ("times.wait", "45s"),
    ("times.hello", "10s"),
    ("backends.timeout", LINK_TIMEOUT),
];
/// The same of every backend: answers about presence may take as long as can be set.
const BACKEND_TIMES: [(&str, &str); 2] = [("query_timeout", "10s"), ("link.timeout", LINK_TIMEOUT)];
const LINK_TIMEOUT: &str = "5s";

/// What devices come over in turn.
pub(crate) const MIXED: [Over; 3] = [Over::Ws, Over::Wss, Over::LossyUdp];

/// A running gateway.
pub struct Gateway {
    pub frontends: Vec<Node>,
    pub backends: Vec<Node>,
    pub tokens: TokenKey,
    pub keys: DeviceKeys,
    pub certificates: Certificates,
    http: Http,
    endpoints: Vec<Endpoints>,
    channels: Channels,
    /// Devices so far.
    dialled: AtomicUsize,
    /// Of what happens to datagrams.
    seed: u64,
    address: IpAddr,
    /// Ports of it that were given to processes, which may not have bound them yet.
    given: HashSet<SocketAddr>,
    /// Where devices come to the only frontend, if that is not `address`.
    public: Option<IpAddr>,
    layout: Layout,
    backend_settings: Settings,
    /// Handed down to every backend; nobody accepts from it here.
    shared_api: Option<Arc<TcpListener>>,
    /// The process of the devices, if they are in Python.
    python: Option<Devices>,
    group: Group,
    _dir: TempDir,
}

/// Where one frontend takes devices.
struct Endpoints {
    wss: Endpoint,
    ws: Endpoint,
    udp: Endpoint,
    /// The way to `udp` that loses some.
    lossy: Relay,
}

impl Gateway {
    /// One frontend, one backend, and `Demo.*` routed to the service's `/demo`.
    pub fn builder(service: &Service) -> Builder<'_> {
        Builder {
            service,
            routes: vec![Route::new("Demo", service.url("/demo"))],
            frontends: 1,
            backends: 1,
            frontend_settings: settings(&FRONTEND_TIMES),
            backend_settings: settings(&BACKEND_TIMES),
            shared_api: false,
            channels: Channels::Mixed,
            public: None,
        }
    }

    /// The default gateway, ready.
    pub async fn start(service: &Service) -> Self {
        Self::builder(service).start().await
    }

    /// The same for devices of one kind.
    pub async fn start_over(over: impl Into<Over>, service: &Service) -> Self {
        Self::builder(service).over(over).start().await
    }

    /// Starts one more backend, attached to all frontends, and returns its index when it is ready.
    pub async fn add_backend(&mut self) -> usize {
        let index = self.add_backend_node();
        self.backends[index].restart().await;
        self.frontends_ready().await;
        index
    }

    /// Starts one more backend with further arguments and settings, and returns its index when it is attached to all
    /// frontends. It may be one that does not serve its API.
    pub async fn add_backend_as(&mut self, arguments: &[&str], settings: &[(&str, &str)]) -> usize {
        let common = self.backend_settings.clone();
        self.backend_settings.extend(self::settings(settings));
        let index = self.add_backend_node();
        self.backend_settings = common;
        self.backends[index].arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        self.backends[index].start();
        self.control(index).wait_ready().await;
        index
    }

    /// Starts one more backend and returns its index at once: it may be one that never attaches.
    pub fn start_backend(&mut self) -> usize {
        let index = self.add_backend_node();
        self.backends[index].start();
        index
    }

    /// The control socket of a backend.
    pub fn control(&self, backend: usize) -> Control {
        let name = &self.backends[backend].name;
        Control {
            socket: self.layout.control_dir().join(format!("{name}.sock")),
        }
    }

    /// What a frontend says of itself and its backends.
    pub async fn status(&self, frontend: usize) -> Value {
        let url = format!("{}/status", self.frontends[frontend].url);
        self.http.get(&url).await.expect("the frontend answers").json()
    }

    /// What a frontend says of one backend; null when it is not attached.
    pub async fn status_of(&self, frontend: usize, backend: usize) -> Value {
        let (status, name) = (self.status(frontend).await, &self.backends[backend].name);
        let mut backends = status["backends"].as_array().expect("a list").iter();
        let found = backends.rfind(|b| b["name"] == name.as_str());
        found.cloned().unwrap_or_default()
    }

    /// Waits until every frontend is ready: a backend is attached.
    pub async fn frontends_ready(&mut self) {
        for frontend in &mut self.frontends {
            frontend.wait_ready().await;
        }
    }

    /// A way to the first frontend over `wss`, without a token.
    pub fn dial(&self) -> Dial {
        Dial::new(&self.endpoints[0].wss)
    }

    /// A way to the first frontend over `ws`, without a key.
    pub fn dial_ws(&self) -> Dial {
        Dial::new(&self.endpoints[0].ws)
    }

    /// A way for `id` into the first frontend.
    pub fn dial_as(&self, id: &str) -> Dial {
        self.dial_at(0, id)
    }

    /// The same at another frontend.
    pub fn dial_at(&self, frontend: usize, id: &str) -> Dial {
        let over = match self.channels {
            Channels::All(over) => over,
            Channels::Mixed => MIXED[self.dialled.fetch_add(1, Ordering::Relaxed) % MIXED.len()],
        };
        let endpoints = &self.endpoints[frontend];
        let endpoint = match over {
            Over::Wss => return Dial::new(&endpoints.wss).token(&self.tokens.token(id)),
            Over::Ws => &endpoints.ws,
            Over::PythonWs => {
                let python = self.python.as_ref().expect("it was started with the gateway");
                let transport = Transport::Python(python.socket());
                &Endpoint {
                    transport,
                    ..endpoints.ws
                }
            }
            Over::Udp => &endpoints.udp,
            Over::LossyUdp => {
                let address = endpoints.lossy.address;
                let transport = Transport::Datagrams;
                &Endpoint { address, transport }
            }
        };
        self.dial_with_key(endpoint, id)
    }

    /// A way for `id` over datagrams to `address`: the frontend's, or that of somebody between.
    pub fn dial_udp_at(&self, address: SocketAddr, id: &str) -> Dial {
        let transport = Transport::Datagrams;
        self.dial_with_key(&Endpoint { address, transport }, id)
    }

    fn dial_with_key(&self, endpoint: &Endpoint, id: &str) -> Dial {
        let identity = self.keys.identity(id);
        let key = self.keys.device_key(&identity);
        Dial::new(endpoint).key(identity, key)
    }

    /// A device that is online at the first frontend.
    pub async fn device(&self, id: &str) -> Device {
        self.device_at(0, id).await
    }

    pub async fn device_at(&self, frontend: usize, id: &str) -> Device {
        let mut device = self
            .dial_at(frontend, id)
            .connect()
            .await
            .unwrap_or_else(|e| panic!("{id} did not get in: {e}"));
        device.hello().await;
        device
    }

    /// Calls the first backend's API with the operator's key.
    pub async fn api(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.api_at(
            0,
            request(method, &self.api_url(path), Some(API_KEY), to_bytes(body)),
        )
        .await
    }

    /// Sends a request of the test's own making to a backend's API.
    pub async fn api_at(&self, backend: usize, request: http::Request<Bytes>) -> Answer {
        let name = &self.backends[backend].name;
        self.http
            .send(request)
            .await
            .unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// The URL of a path of the first backend's API.
    pub fn api_url(&self, path: &str) -> String {
        format!("{}{path}", self.backends[0].url)
    }

    /// Pushes `Alerts.Fire` and returns the API's answer, which must be 200.
    pub async fn push(&self, to: Value, payload: Value) -> Value {
        let body = json!({"to": to, "namespace": "Alerts", "name": "Fire", "payload": payload});
        let answer = self.api(Method::POST, "/v1/messages", Some(body)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// Replaces the routes file.
    pub fn write_routes(&self, routes: &[Route]) {
        self.layout.write_routes(routes);
    }

    /// Writes a routes file that no backend uses by itself, and gives its path.
    pub fn write_other_routes(&self, name: &str, routes: &[Route]) -> String {
        self.layout.write_routes_as(name, routes)
    }

    /// Writes a signing key beside the common one, and gives its path.
    pub fn write_key(&self, name: &str, key: &[u8]) -> String {
        self.layout.write_key(name, key)
    }

    /// The path of a file in the gateway's directory: `ca.pem`, `routes.toml`, …
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.layout.dir.join(name)
    }

    /// Where the first frontend's link is, for a backend of the test's own.
    pub fn link(&self) -> String {
        self.layout.link(1)
    }

    /// Where the first frontend listens for devices on `wss`.
    pub fn wss(&self) -> SocketAddr {
        self.endpoints[0].wss.address
    }

    /// Where it listens for those on `ws`.
    pub fn ws(&self) -> SocketAddr {
        self.endpoints[0].ws.address
    }

    /// Where it takes datagrams.
    pub fn udp(&self) -> SocketAddr {
        self.endpoints[0].udp.address
    }

    /// The relay through which devices come to the first frontend when they come over lossy `udp`.
    pub fn relay(&self) -> &Relay {
        &self.endpoints[0].lossy
    }

    fn add_frontend_node(&mut self, tls: &Arc<rustls::ClientConfig>, settings: &Settings) {
        let number = self.frontends.len() + 1;
        let [mut wss, mut ws, admin] = std::array::from_fn(|_| self.new_port(free_port));
        let mut udp = self.new_port(free_udp_port);
        if let Some(public) = self.public {
            [wss, ws, udp] = PUBLIC_PORTS.map(|port| SocketAddr::new(public, port));
        }
        let listen = Listen { wss, ws, udp, admin };
        let config = self.layout.write_frontend(number, &listen, settings);
        let node = self.node(format!("frontend{number}"), "holdfast-frontend", admin, config);
        self.frontends.push(node);
        let endpoint = |address, transport| Endpoint { address, transport };
        self.endpoints.push(Endpoints {
            wss: endpoint(wss, Transport::Tls(tls.clone())),
            ws: endpoint(ws, Transport::Tcp),
            udp: endpoint(udp, Transport::Datagrams),
            lossy: Relay::before(udp, Weather::LOSSY, self.seed + number as u64),
        });
    }

    fn add_backend_node(&mut self) -> usize {
        let index = self.backends.len();
        let name = format!("backend{}", index + 1);
        let shared = self.shared_api.as_ref().and_then(|l| l.local_addr().ok());
        let api = shared.unwrap_or_else(|| self.new_port(free_port));
        let config = self
            .layout
            .write_backend(&name, self.frontends.len(), api, &self.backend_settings);
        let mut node = self.node(name, "holdfast-backend", api, config);
        node.listener = self.shared_api.clone();
        self.backends.push(node);
        index
    }

    /// A port that is free, and that none of the gateway's processes was given: what two of them have drawn is free until one binds it.
    fn new_port(&mut self, free: impl Fn(IpAddr) -> SocketAddr) -> SocketAddr {
        loop {
            let port = free(self.address);
            if self.given.insert(port) {
                return port;
            }
        }
    }

    fn node(&self, name: String, binary: &'static str, http: SocketAddr, config: std::path::PathBuf) -> Node {
        Node {
            url: format!("http://{http}"),
            log: self.layout.dir.join(format!("{name}.log")),
            name,
            binary,
            config,
            arguments: Vec::new(),
            listener: None,
            group: self.group.id(),
            http: self.http.clone(),
            child: None,
            pid: Arc::default(),
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}={}", lossy::SEED, self.seed);
            for node in self.frontends.iter().chain(&self.backends) {
                node.print_state();
            }
        }
    }
}

impl Builder<'_> {
    pub fn routes(mut self, routes: Vec<Route>) -> Self {
        self.routes = routes;
        self
    }

    /// All devices come over this channel; without this they come over each in turn.
    pub fn over(mut self, over: impl Into<Over>) -> Self {
        self.channels = Channels::All(over.into());
        self
    }

    pub fn frontends(mut self, count: usize) -> Self {
        self.frontends = count;
        self
    }

    /// The only frontend takes devices at this address, which is nobody else's, instead of on the loopback.
    pub fn at(mut self, public: IpAddr) -> Self {
        self.public = Some(public);
        self
    }

    /// How many backends are running at the start; 0 for none.
    pub fn backends(mut self, count: usize) -> Self {
        self.backends = count;
        self
    }

    /// All backends inherit one listening socket for the API, as they do from a supervisor.
    pub fn shared_api(mut self) -> Self {
        self.shared_api = true;
        self
    }

    /// A setting of every frontend, by dotted path.
    pub fn frontend_set(mut self, path: &str, value: impl Into<toml::Value>) -> Self {
        self.frontend_settings.push((path.to_owned(), value.into()));
        self
    }

    /// A setting of every backend, by dotted path.
    pub fn backend_set(mut self, path: &str, value: impl Into<toml::Value>) -> Self {
        self.backend_settings.push((path.to_owned(), value.into()));
        self
    }

    /// How long either end of a link may keep silent before the other takes it for gone: short where that is to happen.
    pub fn link_timeout(self, time: &str) -> Self {
        self.frontend_set("backends.timeout", time)
            .backend_set("link.timeout", time)
    }

    /// Starts the processes and waits until they are ready (without a backend: alive).
    pub async fn start(self) -> Gateway {
        let dir = tempfile::Builder::new()
            .prefix("holdfast-")
            .tempdir()
            .expect("a temporary directory");
        let layout = Layout {
            dir: dir.path().to_owned(),
        };
        let (certificates, tokens) = (Certificates::generate(), TokenKey::generate());
        let keys = DeviceKeys::generate();
        layout.write_shared(&certificates, &tokens, &keys, self.service.signing_key());
        layout.write_routes(&self.routes);
        let tls = certificates.client_config();
        let address = own_address();
        let shared_api = self
            .shared_api
            .then(|| Arc::new(TcpListener::bind((address, 0)).expect("a free port")));
        let python = match self.channels {
            Channels::All(Over::PythonWs) => Some(Devices::start(dir.path().join("python.sock")).await),
            _ => None,
        };
        let mut gateway = Gateway {
            frontends: Vec::new(),
            backends: Vec::new(),
            tokens,
            keys,
            certificates,
            http: Http::default(),
            endpoints: Vec::new(),
            channels: self.channels,
            dialled: AtomicUsize::new(0),
            seed: lossy::seed(),
            address,
            given: HashSet::new(),
            public: self.public,
            layout,
            backend_settings: self.backend_settings,
            shared_api,
            python,
            group: Group::new(),
            _dir: dir,
        };
        for _ in 0..self.frontends {
            gateway.add_frontend_node(&tls, &self.frontend_settings);
        }
        for frontend in &mut gateway.frontends {
            frontend.start();
        }
        for frontend in &mut gateway.frontends {
            frontend.wait_live().await;
        }
        for _ in 0..self.backends {
            let index = gateway.add_backend_node();
            gateway.backends[index].restart().await;
        }
        if self.backends > 0 {
            gateway.frontends_ready().await;
        }
        gateway
    }
}

fn settings(pairs: &[(&str, &str)]) -> Settings {
    let owned = pairs
        .iter()
        .map(|(path, value)| ((*path).to_owned(), (*value).into()));
    owned.collect()
}

fn to_bytes(body: Option<Value>) -> Bytes {
    body.map_or_else(Bytes::new, |b| Bytes::from(b.to_string()))
}
