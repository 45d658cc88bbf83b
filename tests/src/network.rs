//! Real networks inside one machine: devices in one network namespace, the gateway in another, and a router between the two that loses,
//! delays, reorders, translates and throttles as it is told.
//!
//! A socket belongs to the namespace of the thread that makes it, so each side has a runtime whose threads are in its namespace, and
//! both sides are part of the test as ever. The namespaces have no name: they end with the descriptors and processes that hold them, so
//! nothing is left of them however the test ends. What happens to datagrams happens to UDP alone, but for [`Network::throttle`].
//!
//! That needs root, or a user namespace in which one is (`unshare --user --map-root-user`), and `ip`, `tc` and `iptables`.

mod namespace;
mod reorder;

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use tokio::runtime::{Handle, Runtime};

use namespace::Namespace;
pub use reorder::{Jitter, Reordering};

/// The gateway's address.
pub const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 2));
/// The devices' address until they move.
pub const DEVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2));
/// And afterwards.
pub const DEVICE_MOVED: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 77));
/// The router's address on the gateway's side, which is the devices' when it translates.
pub const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 1));
/// And the one it is given by [`Network::renumber_router`].
pub const ROUTER_MOVED: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 99));
/// Set where the tests cannot have networks of their own and shall not fail for it.
const SKIP: &str = "HOLDFAST_SKIP_NETWORKS";
/// Threads of each side.
const THREADS: usize = 2;

/// The three namespaces and what lives in two of them.
pub struct Network {
    devices: Side,
    router: Arc<Namespace>,
    server: Side,
}

struct Side {
    namespace: Arc<Namespace>,
    runtime: Runtime,
}

/// Runs `test` in a network of its own, in the gateway's namespace. Panics where there can be none, unless the environment says that
/// this is known.
pub fn with_network<F: Future<Output = ()>>(test: impl FnOnce(Arc<Network>) -> F + Send) {
    if std::env::var_os(SKIP).is_some() {
        // Not by a macro, whose output the test harness keeps to itself.
        let said = format!("SKIPPED, as {SKIP} is set: nothing is tested over real networks\n");
        std::io::stderr().write_all(said.as_bytes()).ok();
        return;
    }
    let network = Arc::new(Network::new());
    let server = &network.server;
    server.namespace.run(|| {
        server.runtime.block_on(test(network.clone()));
    });
}

impl Network {
    fn new() -> Self {
        let [devices, router, server] = std::array::from_fn(|_| Arc::new(Namespace::new(SKIP)));
        for namespace in [&devices, &router, &server] {
            namespace.ip("link set lo up");
        }
        join(&router, "lan", "10.1.0.1/24", &devices, "10.1.0.2/24");
        join(&router, "wan", "10.2.0.1/24", &server, "10.2.0.2/24");
        router.write("/proc/sys/net/ipv4/ip_forward", "1");
        devices.ip("route add default via 10.1.0.1");
        server.ip("route add default via 10.2.0.1");
        Self {
            devices: Side::of(devices),
            router,
            server: Side::of(server),
        }
    }

    /// What runs here has its sockets on the devices' side.
    pub fn devices(&self) -> Handle {
        self.devices.runtime.handle().clone()
    }

    /// Each datagram is lost with this probability, each way.
    pub fn lose(&self, probability: f64) {
        let ways = [("lan", "wan"), ("wan", "lan")];
        for (from, to) in ways {
            self.router.iptables(&format!(
                "-A FORWARD -i {from} -o {to} -p udp -m statistic --mode random --probability {probability} -j DROP"
            ));
        }
    }

    /// The same for everything, TCP as well.
    pub fn lose_all_kinds(&self, probability: f64) {
        self.router.iptables(&format!(
            "-A FORWARD -m statistic --mode random --probability {probability} -j DROP"
        ));
    }

    /// How many packets the rules have swallowed so far.
    pub fn dropped(&self) -> u64 {
        let rules = self.router.iptables("-L FORWARD -n -v -x");
        let drops = rules.lines().filter(|line| line.contains(" DROP "));
        drops
            .filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok())
            .sum()
    }

    /// Nothing gets through any more, either way, until [`Network::heal`].
    pub fn black_hole(&self) {
        self.router.iptables("-I FORWARD -p udp -j DROP");
    }

    pub fn heal(&self) {
        self.router.iptables("-D FORWARD -p udp -j DROP");
    }

    /// Each datagram takes its own time, each way. Ends when the returned one is dropped.
    pub fn delay(&self, jitter: Jitter) -> Reordering {
        let reordering = Reordering::start(&self.router, jitter);
        let queue = reorder::QUEUE;
        self.router
            .iptables(&format!("-A FORWARD -p udp -j NFQUEUE --queue-num {queue}"));
        reordering
    }

    /// So many bits per second, each way, with room for few packets that wait; the rest is lost.
    pub fn throttle(&self, bits_per_second: u64) {
        for interface in ["lan", "wan"] {
            self.router.tc(&format!(
                "qdisc add dev {interface} root tbf rate {bits_per_second}bit burst 8kb limit 48kb"
            ));
        }
    }

    /// How many packets found no room there.
    pub fn overflowed(&self) -> u64 {
        let shown = self.router.tc("-s qdisc show");
        let dropped = shown.split("(dropped ").skip(1);
        dropped
            .filter_map(|rest| rest.split(',').next()?.parse::<u64>().ok())
            .sum()
    }

    /// The devices get another address and lose the one they had.
    pub fn move_devices(&self) {
        let devices = &self.devices.namespace;
        devices.ip("addr del 10.1.0.2/24 dev eth0");
        devices.ip(&format!("addr add {DEVICE_MOVED}/24 dev eth0"));
        devices.ip("route replace default via 10.1.0.1");
    }

    /// The router hides the devices behind its own address. A mapping that was not used for a second is forgotten, and the next one has
    /// another port.
    pub fn translate(&self, ports: &str) {
        self.router.iptables(&format!(
            "-t nat -A POSTROUTING -o wan -p udp -j MASQUERADE --to-ports {ports}"
        ));
        for timeout in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
            self.router
                .write(&format!("/proc/sys/net/netfilter/{timeout}"), "1");
        }
    }

    /// New mappings have other ports from now on.
    pub fn translate_to(&self, ports: &str) {
        self.router.iptables("-t nat -F POSTROUTING");
        self.translate(ports);
    }

    /// The router gets another address on the gateway's side: with the old one all its mappings are gone.
    pub fn renumber_router(&self) {
        self.router.ip(&format!("addr add {ROUTER_MOVED}/24 dev wan"));
        self.router.ip(&format!("addr del {ROUTER}/24 dev wan"));
        self.router.ip(&format!("addr replace {ROUTER_MOVED}/24 dev wan"));
    }
}

impl Side {
    fn of(namespace: Arc<Namespace>) -> Self {
        let inside = namespace.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .on_thread_start(move || inside.enter())
            .enable_all()
            .build()
            .expect("a runtime");
        Self { namespace, runtime }
    }
}

/// A cable from the router's `interface` to the host's `eth0`. A burst is cut into its datagrams before it is on the cable, as every
/// other cable would have it: what happens, happens to each by itself.
fn join(router: &Namespace, interface: &str, address: &str, host: &Namespace, host_address: &str) {
    let path = host.path();
    router.ip(&format!(
        "link add {interface} type veth peer name eth0 netns {path}"
    ));
    for (namespace, interface, address) in [(router, interface, address), (host, "eth0", host_address)] {
        namespace.ip(&format!("addr add {address} dev {interface}"));
        namespace.ip(&format!("link set {interface} gso_max_segs 1 up"));
    }
}
