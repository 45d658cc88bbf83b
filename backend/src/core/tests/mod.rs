//! The whole core against scripted frontends, on virtual time.

mod frontend;
mod links;
mod shares;
mod work;

use super::*;
use crate::api::{PushReport, PushStatus};
use frontend::ScriptedFrontend;
use holdfast_proto::link::{Command, LaneConfig};

pub(super) const ROUTES: &str = "[[route]]\nnamespace = \"N\"\nname = \"*\"\nurl = \"http://h/\"\n";

pub(super) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A backend and its frontends; what the backend asks of its owner is kept, or done at once.
pub(super) struct World {
    now: Now,
    core: Backend,
    metrics: CoreMetrics,
    frontends: Vec<ScriptedFrontend>,
    binds: Vec<(BindId, Bytes)>,
    calls: Vec<(CallId, ServiceRequest)>,
    cancelled: Vec<CallId>,
    api: Vec<(Ticket, Result<ApiAnswer, GatewayError>)>,
    /// Sockets to open, when they are due.
    sockets: Vec<(LinkIndex, Instant)>,
    exited: bool,
}

impl World {
    pub(super) fn new(links: usize) -> Self {
        let now = Now {
            instant: Instant::now(),
            unix_ms: 1_000_000,
        };
        let metrics = CoreMetrics::default();
        let settings = CoreSettings {
            link: LinkSettings {
                name: "b".into(),
                build: "1".into(),
                boot: 1,
                lane: LaneConfig::default(),
                retry: ms(100),
                share: Share::FULL,
            },
            links,
            max_in_flight: 100,
            last_seen_capacity: 100,
            push_timeout: ms(5000),
            query_timeout: ms(300),
            drain_grace: ms(3000),
            breaker: BreakerSettings::default(),
            seed: 1,
        };
        let table = Arc::new(RouteTable::parse(ROUTES).unwrap());
        let core = Backend::new(settings, table, metrics.clone(), now.instant);
        Self {
            now,
            core,
            metrics,
            frontends: (0..links).map(|n| ScriptedFrontend::new(n as u16)).collect(),
            binds: Vec::new(),
            calls: Vec::new(),
            cancelled: Vec::new(),
            api: Vec::new(),
            sockets: Vec::new(),
            exited: false,
        }
    }

    /// All links attached, READY received.
    pub(super) fn attached(links: usize) -> Self {
        let mut world = Self::new(links);
        world.run(ms(50));
        assert!(world.core.is_ready());
        world.frontends.iter_mut().for_each(|f| f.received.clear());
        world
    }

    pub(super) fn send(&mut self, link: usize, command: Command) {
        self.frontends[link].send(command);
        self.run(ms(1));
    }

    /// Lets time pass in steps of a millisecond, every frontend that is alive taking part.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now.instant + time;
        while self.now.instant < end {
            self.now.instant += ms(1);
            self.now.unix_ms += 1;
            for _ in 0..4 {
                self.turn();
            }
        }
    }

    fn turn(&mut self) {
        let now = self.now;
        let due: Vec<LinkIndex> = self
            .sockets
            .iter()
            .filter(|s| s.1 <= now.instant)
            .map(|s| s.0)
            .collect();
        self.sockets.retain(|s| s.1 > now.instant);
        for link in due {
            if self.frontends[link.get()].reachable {
                self.core.handle_connected(link, now);
            } else {
                self.core.handle_disconnected(link, now);
            }
        }
        for (index, frontend) in self.frontends.iter_mut().enumerate() {
            for batch in frontend.poll(now.instant) {
                self.core.handle_batch(LinkIndex::new(index), now, batch);
            }
        }
        self.core.handle_timeout(now, 0);
        while let Some((link, batch)) = self.core.poll_transmit(now.instant) {
            self.frontends[link.get()].handle(now.instant, batch);
        }
        self.act();
    }

    pub(super) fn act(&mut self) {
        while let Some(action) = self.core.poll_action() {
            match action {
                Action::Authenticate { bind, credential, .. } => self.binds.push((bind, credential)),
                Action::Call { call, request } => self.calls.push((call, *request)),
                Action::CancelCall(call) => self.cancelled.push(call),
                Action::ApiDone { ticket, result } => self.api.push((ticket, result)),
                Action::Reconnect { link, at, .. } => self.sockets.push((link, at)),
                Action::Exit => self.exited = true,
            }
        }
    }

    pub(super) fn ask(&mut self, ticket: u64, request: ApiRequest) {
        self.core.handle_api(Ticket(ticket), request, self.now.instant);
        self.run(ms(1));
    }

    pub(super) fn answer(&mut self, ticket: u64) -> Result<ApiAnswer, GatewayError> {
        let index = self
            .api
            .iter()
            .position(|a| a.0 == Ticket(ticket))
            .expect("it ended");
        self.api.swap_remove(index).1
    }

    pub(super) fn push_status(&mut self, ticket: u64) -> PushStatus {
        match self.answer(ticket) {
            Ok(ApiAnswer::Push(PushReport::Results(results))) => results[0].status,
            other => panic!("{other:?}"),
        }
    }
}
