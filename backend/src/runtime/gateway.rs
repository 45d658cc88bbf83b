//! The API's way to the link thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use holdfast_proto::DeviceId;
use tokio::sync::{mpsc, oneshot};

use crate::api::{
    BackendStats, Frontend, Gateway, GatewayError, Presence, PushReport, PushRequest, Readiness, Stats,
};
use crate::core::{ApiAnswer, ApiRequest};
use crate::push::Ticket;

/// Commands that wait for the link thread, at most; beyond it the caller is told to come back.
pub(super) const COMMANDS_CAPACITY: usize = 1024;
/// Hint to callers that find the queue full or the link thread leaving.
const RETRY_AFTER: Duration = Duration::from_secs(1);

type ApiResult = Result<ApiAnswer, GatewayError>;

/// One request and where its result goes.
#[derive(Debug)]
pub struct ApiCommand {
    pub request: ApiRequest,
    pub reply: oneshot::Sender<ApiResult>,
}

/// What the link thread last said of itself.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub ready: bool,
    pub draining: bool,
    pub in_flight: u64,
    pub frontends: Vec<Frontend>,
}

impl Snapshot {
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
