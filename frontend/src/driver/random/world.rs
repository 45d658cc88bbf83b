//! The parts, and the pipes between them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use holdfast_proto::link::LaneConfig;
use holdfast_proto::link::frames::push::Target;
use holdfast_proto::{FrontendEpoch, FrontendId, ShardId, Share};

use super::Op;
use super::backend::{Backend, SILENCE};
use super::device::Device;
use crate::exchange::{ToHub, ToShard};
use crate::link::{Hub, HubConfig, LinkMetrics};
use crate::session::{Output, Shard, ShardConfig, ShardMetrics, WindowLimits};

const SHARDS: u8 = 2;
const MAX_BACKENDS: usize = 4;
const MAX_DEVICES: usize = 24;
const STEP: Duration = Duration::from_millis(100);

struct Node {
    shard: Shard,
    to_hub: VecDeque<Vec<ToHub>>,
    from_hub: VecDeque<ToShard>,
}

pub(super) struct World {
    now: Instant,
    hub: Hub,
    nodes: Vec<Node>,
    backends: Vec<Backend>,
    devices: Vec<Device>,
    boots: u128,
}

fn shard(index: u8, now: Instant) -> Node {
    let config = ShardConfig {
        shard: ShardId(index),
        window: WindowLimits {
            requests: 4,
            bytes: 100,
            held_bytes: 1000,
        },
        window_total_bytes: 250,
        output_bytes: 300,
        output_total_bytes: 2000,
        output_pushes: 3,
        ..ShardConfig::default()
    };
    Node {
        shard: Shard::new(config, ShardMetrics::default(), now),
        to_hub: VecDeque::new(),
        from_hub: VecDeque::new(),
    }
}

fn pick<T>(items: &mut [T], which: u8) -> Option<&mut T> {
    let count = items.len().max(1);
    items.get_mut(usize::from(which) % count)
}

impl World {
    /// With a backend, and some devices that are online.
    pub(super) fn new() -> Self {
        let mut world = Self::empty();
        world.start();
        for which in 0..4 {
            world.connect(which);
        }
        for _ in 0..4 {
            world.carry();
            world.backends.iter_mut().for_each(Backend::answer_all);
            world.pump();
        }
        world
    }

    fn empty() -> Self {
        let now = Instant::now();
        let config = HubConfig {
            frontend: FrontendId(1),
            epoch: FrontendEpoch(1),
            boot: 1,
            shards: SHARDS,
            lane: LaneConfig::default(),
            max_backends: 16,
            ping_interval: Duration::from_secs(5),
            heartbeat: Duration::from_secs(30),
            max_message_bytes: 1000,
            window_requests: 4,
        };
        Self {
            now,
            hub: Hub::new(config, LinkMetrics::default(), now),
            nodes: (0..SHARDS).map(|n| shard(n, now)).collect(),
            backends: Vec::new(),
            devices: Vec::new(),
            boots: 1,
        }
    }

    pub(super) fn step(&mut self, op: Op) {
        let now = self.now;
        match op {
            Op::Connect(which) => self.connect(which),
            Op::Request(which, len) => self.device(which, |d, shard| d.request(now, shard, len)),
            Op::Control(which, update) => self.device(which, |d, shard| d.control(now, shard, update)),
            Op::DevicePing(which) => self.device(which, |d, shard| d.ping(now, shard)),
            Op::Write(which, most) => self.device(which, |d, shard| d.write(now, shard, most.into())),
            Op::Disconnect(which) => self.device(which, |d, shard| d.disconnect(now, shard)),
            Op::ShardToHub(which) => self.shard_to_hub(usize::from(which % SHARDS)),
            Op::HubToShard(which) => self.hub_to_shard(usize::from(which % SHARDS)),
            Op::HubOut => self.hub_out(),
            Op::BackendIn(which) => self.backend(which, |b| b.read(now)),
            Op::BackendOut(which) => self.backend_out(which),
            Op::Answer(which, what) => self.backend(which, |b| b.answer(what.into())),
            Op::Start => self.start(),
            Op::Crash(which) => self.crash(which),
            Op::Hang(which) => self.backend(which, |b| b.hung = true),
            Op::Drain(which) => self.backend(which, Backend::drain),
            Op::Share(which, share) => self.backend(which, |b| b.share(Share::clamped(share.into()))),
            Op::Push(which, device) => {
                if let Some(id) = pick(&mut self.devices, device).map(|d| d.id) {
                    self.backend(which, |b| b.push(Target::Session(id.into())));
                }
            }
            Op::PushToAll(which) => self.backend(which, |b| b.push(Target::All(true))),
            Op::Close(which, device) => {
                if let Some(id) = pick(&mut self.devices, device).map(|d| d.id) {
                    self.backend(which, |b| b.close(id));
                }
            }
            Op::Turn(which) => self.turn(usize::from(which % SHARDS)),
            Op::Pass(ms) => self.pass(Duration::from_millis(ms.into())),
            Op::Carry => self.carry(),
        }
        self.pump();
    }

    fn connect(&mut self, which: u8) {
        let index = usize::from(which % SHARDS);
        if self.devices.iter().filter(|d| d.is_connected()).count() < MAX_DEVICES {
            let device = Device::connect(self.now, &mut self.nodes[index].shard, index);
            self.devices.extend(device);
        }
    }

    fn device(&mut self, which: u8, act: impl FnOnce(&mut Device, &mut Shard)) {
        if let Some(device) = pick(&mut self.devices, which) {
            act(device, &mut self.nodes[device.shard].shard);
        }
    }

    fn backend(&mut self, which: u8, act: impl FnOnce(&mut Backend)) {
        if let Some(backend) = pick(&mut self.backends, which) {
            act(backend);
        }
        self.bury();
    }

    /// A backend that is over closes its socket.
    fn bury(&mut self) {
        let (over, rest) = std::mem::take(&mut self.backends)
            .into_iter()
            .partition(Backend::is_over);
        self.backends = rest;
        let over: Vec<Backend> = over;
        for backend in over {
            self.hub.handle_disconnected(self.now, &backend.identity);
        }
    }

    fn start(&mut self) {
        if self.backends.len() < MAX_BACKENDS {
            self.boots += 1;
            self.backends.push(Backend::new(self.now, self.boots));
        }
    }

    fn crash(&mut self, which: u8) {
        if !self.backends.is_empty() {
            let backend = self.backends.remove(usize::from(which) % self.backends.len());
            self.hub.handle_disconnected(self.now, &backend.identity);
        }
    }

    fn backend_out(&mut self, which: u8) {
        let now = self.now;
        self.backend(which, |b| b.write(now));
        if let Some(backend) = pick(&mut self.backends, which)
            && let Some(batch) = backend.outbox.pop_front()
        {
            self.hub.handle_batch(now, &backend.identity, batch);
        }
    }

    fn hub_out(&mut self) {
        while let Some((to, batch)) = self
            .hub
            .poll_batch(self.now)
            .or_else(|| self.hub.poll_header(self.now))
        {
            if let Some(backend) = self.backends.iter_mut().find(|b| b.identity == to) {
                backend.inbox.push_back(batch);
            }
        }
        while let Some((shard, message)) = self.hub.poll_shard() {
            self.nodes[usize::from(shard.0)].from_hub.push_back(message);
        }
    }

    fn shard_to_hub(&mut self, index: usize) {
        for message in self.nodes[index].to_hub.pop_front().unwrap_or_default() {
            self.hub.handle_shard(self.now, ShardId(index as u8), message);
        }
    }

    fn hub_to_shard(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if let Some(message) = node.from_hub.pop_front() {
            node.shard.handle_hub(self.now, message);
        }
    }

    fn turn(&mut self, index: usize) {
        let shard = &mut self.nodes[index].shard;
        if shard.has_turn() {
            shard.handle_turn(self.now);
        }
    }

    /// What the driver does after every call: channels hear, and vectors for the hub are put on their way.
    fn pump(&mut self) {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            while let Some(output) = node.shard.poll_output() {
                let key = match &output {
                    Output::Admit { key, .. }
                    | Output::Refuse { key, .. }
                    | Output::Send { key, .. }
                    | Output::Ping { key }
                    | Output::Close { key, .. }
                    | Output::Resume { key } => *key,
                };
                let mut mine = self.devices.iter_mut();
                let device = mine.find(|d| d.shard == index && d.key == key).unwrap();
                device.handle(self.now, &mut node.shard, output);
            }
            node.shard.assert_consistent();
            if node.shard.has_for_hub() {
                node.to_hub.push_back(node.shard.take_to_hub(Vec::new()));
            }
        }
    }

    fn carry(&mut self) {
        let now = self.now;
        for which in 0..self.backends.len() {
            let backend = &mut self.backends[which];
            while !backend.inbox.is_empty() && !backend.hung {
                backend.read(now);
            }
            backend.write(now);
            for batch in std::mem::take(&mut backend.outbox) {
                self.hub.handle_batch(now, &backend.identity, batch);
            }
        }
        self.bury();
        for index in 0..self.nodes.len() {
            while !self.nodes[index].to_hub.is_empty() {
                self.shard_to_hub(index);
            }
        }
        self.hub_out();
        for index in 0..self.nodes.len() {
            while !self.nodes[index].from_hub.is_empty() {
                self.hub_to_shard(index);
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = end.min(self.now + STEP);
            self.carry_link();
            if self.now >= self.hub.poll_timeout() {
                self.hub.handle_timeout(self.now);
            }
            for node in &mut self.nodes {
                node.shard.handle_timeout(self.now);
            }
            self.pump();
        }
    }

    /// Heartbeats go on although the shards are held back.
    fn carry_link(&mut self) {
        let now = self.now;
        for backend in &mut self.backends {
            backend.write(now);
            for batch in std::mem::take(&mut backend.outbox) {
                self.hub.handle_batch(now, &backend.identity, batch);
            }
        }
        self.hub_out();
        for backend in &mut self.backends {
            while !backend.inbox.is_empty() && !backend.hung {
                backend.read(now);
            }
        }
        self.bury();
    }

    /// Lets everything come to its end, then says what is left.
    pub(super) fn settle(&mut self) {
        self.backends.retain(|b| !b.hung);
        self.run_dry();
        if !self.backends.iter().any(Backend::takes_work) {
            self.boots += 1;
            self.backends.push(Backend::new(self.now, self.boots));
        }
        self.run_dry();
        self.devices.iter().for_each(Device::assert_paid);
        self.backends.iter().for_each(Backend::assert_paid);
        for which in 0..self.devices.len() {
            let (now, device) = (self.now, &mut self.devices[which]);
            device.disconnect(now, &mut self.nodes[device.shard].shard);
            self.pump();
        }
        self.run_dry();
        for node in &self.nodes {
            assert_eq!(node.shard.live(), 0, "slots leaked");
        }
        assert_eq!(self.hub.sessions(), 0, "the index leaked");
        for peer in self.hub.usage().peers {
            let outstanding = peer.lane.outstanding.map(|g| g.messages);
            assert_eq!(outstanding, [0; 4], "credits leaked");
            assert_eq!((peer.lane.queued, peer.broadcasts), ([0; 4], 0));
        }
    }

    /// Long enough for silence to be noticed, stragglers to be given up and first messages to be awaited no more.
    fn run_dry(&mut self) {
        self.run();
        self.pass(SILENCE);
        self.run();
    }

    /// Until nothing moves any more.
    fn run(&mut self) {
        for _ in 0..1000 {
            self.carry();
            self.pump();
            self.backends.iter_mut().for_each(Backend::answer_all);
            for device in &mut self.devices {
                let unwritten = device.unwritten;
                device.write(self.now, &mut self.nodes[device.shard].shard, unwritten);
            }
            self.pump();
            for index in 0..self.nodes.len() {
                self.turn(index);
            }
            self.pump();
            let still = |n: &Node| n.to_hub.is_empty() && n.from_hub.is_empty() && !n.shard.has_turn();
            let idle = |b: &Backend| b.is_idle() && b.lane.is_flushed();
            let written = self.devices.iter().all(|d| d.unwritten == 0 || !d.is_connected());
            if self.backends.iter().all(idle) && self.nodes.iter().all(still) && written {
                return;
            }
        }
        panic!("something goes on for ever");
    }
}
