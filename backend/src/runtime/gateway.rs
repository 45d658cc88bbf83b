//! The API's way to the link thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use holdfast_proto::{DeviceId, Share};
use tokio::sync::{mpsc, oneshot};

use crate::api::{
    BackendStats, Frontend, Gateway, GatewayError, Presence, PushReport, PushRequest, Readiness, Stats,
};
use crate::control::{FrontendStatus, Member, RequestCounts, Status};
use crate::core::{ApiAnswer, ApiRequest, ShareRefused};
use crate::dispatch::RequestMetrics;
use crate::push::Ticket;

/// Commands that wait for the link thread, at most; beyond it the caller is told to come back.
pub(super) const COMMANDS_CAPACITY: usize = 1024;
/// Changes of the share that wait for the link thread, at most; further callers wait.
pub(super) const SHARES_CAPACITY: usize = 8;
/// Hint to callers that find the queue full or the link thread leaving.
const RETRY_AFTER: Duration = Duration::from_secs(1);

type ApiResult = Result<ApiAnswer, GatewayError>;

/// One request and where its result goes.
#[derive(Debug)]
pub struct ApiCommand {
    pub request: ApiRequest,
    pub reply: oneshot::Sender<ApiResult>,
}

/// A share of the sessions, and where to say whether it was taken.
#[derive(Debug)]
pub struct ShareCommand {
    pub share: Share,
    pub reply: oneshot::Sender<Result<(), ShareRefused>>,
}

/// What the link thread last said of itself.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub ready: bool,
    /// Every frontend is attached.
    pub attached: bool,
    pub draining: bool,
    pub share: Share,
    pub in_flight: u64,
    pub frontends: Vec<Frontend>,
}

impl Snapshot {
    /// Before it has said anything.
    pub fn starting(share: Share) -> Self {
        Self {
            ready: false,
            attached: false,
            draining: false,
            share,
            in_flight: 0,
            frontends: Vec::new(),
        }
    }

    /// It leaves, and no device's request is with it any more.
    pub fn is_quiet(&self) -> bool {
        self.draining && self.in_flight == 0
    }
}

/// [`Gateway`] over a queue to the link thread.
pub struct HubGateway {
    commands: mpsc::Sender<ApiCommand>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    backend: BackendStats,
}

impl HubGateway {
    pub fn new(
        commands: mpsc::Sender<ApiCommand>,
        snapshot: Arc<ArcSwap<Snapshot>>,
        backend: BackendStats,
    ) -> Self {
        Self {
            commands,
            snapshot,
            backend,
        }
    }

    async fn ask(&self, request: ApiRequest) -> ApiResult {
        let (reply, result) = oneshot::channel();
        let sent = self.commands.try_send(ApiCommand { request, reply });
        sent.map_err(|_| GatewayError::Overloaded {
            retry_after: RETRY_AFTER,
        })?;
        result.await.unwrap_or(Err(unavailable()))
    }
}

#[async_trait]
impl Gateway for HubGateway {
    async fn push(&self, request: PushRequest) -> Result<PushReport, GatewayError> {
        match self
            .ask(ApiRequest::Push {
                target: request.target,
                message: request.message,
            })
            .await?
        {
            ApiAnswer::Push(report) => Ok(report),
            ApiAnswer::Presence(_) | ApiAnswer::Closed(_) => Err(unavailable()),
        }
    }

    async fn presence(&self, device: DeviceId) -> Result<Presence, GatewayError> {
        match self.ask(ApiRequest::Presence(device)).await? {
            ApiAnswer::Presence(presence) => Ok(presence),
            ApiAnswer::Push(_) | ApiAnswer::Closed(_) => Err(unavailable()),
        }
    }

    async fn close(&self, device: DeviceId) -> Result<u64, GatewayError> {
        match self.ask(ApiRequest::Close(device)).await? {
            ApiAnswer::Closed(sessions) => Ok(sessions),
            ApiAnswer::Push(_) | ApiAnswer::Presence(_) => Err(unavailable()),
        }
    }

    fn readiness(&self) -> Readiness {
        let snapshot = self.snapshot.load();
        match (snapshot.ready, snapshot.draining) {
            (true, _) => Readiness::Ready,
            (false, true) => Readiness::NotReady("draining".to_owned()),
            (false, false) => Readiness::NotReady("no frontend is attached".to_owned()),
        }
    }

    fn stats(&self) -> Stats {
        let snapshot = self.snapshot.load();
        Stats {
            backend: self.backend.clone(),
            frontends: snapshot.frontends.clone(),
            in_flight: snapshot.in_flight,
        }
    }
}

/// [`Member`] over a queue to the link thread.
pub struct HubMember {
    pub backend: BackendStats,
    /// The frontends as they are configured.
    pub addresses: Vec<String>,
    pub requests: RequestMetrics,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub shares: mpsc::Sender<ShareCommand>,
}

#[async_trait]
impl Member for HubMember {
    fn status(&self) -> Status {
        let snapshot = self.snapshot.load();
        let frontends = self.addresses.iter().enumerate().map(|(index, address)| {
            let known = snapshot.frontends.get(index);
            FrontendStatus {
                address: address.clone(),
                state: known.map_or("connecting", |f| f.state),
                frontend_id: known.and_then(|f| f.id),
                frontend_epoch: known.and_then(|f| f.epoch),
            }
        });
        Status {
            name: self.backend.name.clone(),
            version: self.backend.version.clone(),
            epoch: self.backend.epoch.clone(),
            pid: std::process::id(),
            share: snapshot.share,
            draining: snapshot.draining,
            in_flight: snapshot.in_flight,
            frontends: frontends.collect(),
            requests: RequestCounts::read(&self.requests),
        }
    }

    fn attached(&self) -> Result<(), String> {
        let snapshot = self.snapshot.load();
        if snapshot.attached {
            return Ok(());
        }
        if snapshot.draining {
            return Err("draining".to_owned());
        }
        let attached = |f: &&Frontend| matches!(f.state, "active" | "standby");
        let count = snapshot.frontends.iter().filter(attached).count();
        Err(format!(
            "{count} of {} frontends are attached",
            self.addresses.len()
        ))
    }

    async fn set_share(&self, share: Share) -> Result<(), ShareRefused> {
        let (reply, result) = oneshot::channel();
        // The link thread ends only with a backend that leaves.
        let sent = self.shares.send(ShareCommand { share, reply }).await;
        sent.map_err(|_| ShareRefused::Draining)?;
        result.await.unwrap_or(Err(ShareRefused::Draining))
    }
}

fn unavailable() -> GatewayError {
    GatewayError::Unavailable {
        retry_after: RETRY_AFTER,
    }
}

/// The link thread's side: who waits for which result. Bounded by the core's bound on operations.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    last: u64,
    waiting: HashMap<Ticket, oneshot::Sender<ApiResult>>,
}

impl Waiters {
    pub(super) fn add(&mut self, reply: oneshot::Sender<ApiResult>) -> Ticket {
        self.last += 1;
        let ticket = Ticket(self.last);
        self.waiting.insert(ticket, reply);
        ticket
    }

    /// A caller that has gone away is not told.
    pub(super) fn finish(&mut self, ticket: Ticket, result: ApiResult) {
        if let Some(reply) = self.waiting.remove(&ticket) {
            let _ = reply.send(result);
        }
    }
}
