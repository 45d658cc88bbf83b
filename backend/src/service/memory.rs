//! The room for replies being read: bytes, shared by all workers.
//!
//! A body reserves all the room that it may need before it is read, holding none while it waits, so waiting cannot deadlock.
//! A body of unannounced length reserves what its route allows and gives the rest back once it is complete. One route may
//! take only a part of the room, so that a service which sends slowly does not hold up the others. Who finds no room in
//! time is refused, which is overload, not a fault of the service.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rustc_hash::FxHashMap;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout_at;

use super::FailureDetail;
use crate::route::RouteKey;

/// Bodies up to this size need no room: together they are bounded by the requests in flight (64 MiB at the default).
pub const UNRESERVED_BYTES: usize = 8 * 1024;
/// The part of all room that one route may take.
pub const ROUTE_SHARE: usize = 2;
/// Routes remembered while nothing of them is being read.
const MAX_IDLE_ROUTES: usize = 1024;

/// See the module's documentation. Clones share the room.
#[derive(Debug, Clone)]
pub struct ReplyMemory {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    all: Arc<Semaphore>,
    route_bytes: usize,
    routes: Mutex<FxHashMap<RouteKey, Arc<Semaphore>>>,
    metrics: MemoryMetrics,
}

#[derive(Debug, Default, Clone)]
struct MemoryMetrics {
    reserved: Gauge,
    waits: Counter,
    refused: Counter,
}

/// Room for one body; free again when dropped. Small bodies' is empty.
#[derive(Debug, Default)]
pub struct ReplyRoom {
    reserved: Option<Reserved>,
}

#[derive(Debug)]
struct Reserved {
    of_all: OwnedSemaphorePermit,
    of_route: OwnedSemaphorePermit,
    gauge: Gauge,
}

impl ReplyMemory {
    /// Room for `bytes`, at least [`ROUTE_SHARE`] times the largest reply that a route may allow.
    pub fn new(bytes: usize) -> Self {
        let bytes = bytes.min(Semaphore::MAX_PERMITS);
        let shared = Shared {
            all: Arc::new(Semaphore::new(bytes)),
            route_bytes: bytes / ROUTE_SHARE,
            routes: Mutex::default(),
            metrics: MemoryMetrics::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    pub fn register(&self, registry: &mut Registry) {
        let metrics = &self.shared.metrics;
        registry.register(
            "reply_memory_bytes",
            "Room reserved for replies being read",
            metrics.reserved.clone(),
        );
        registry.register(
            "reply_memory_waits",
            "Replies that had to wait for room to be read",
            metrics.waits.clone(),
        );
        registry.register(
            "reply_memory_refused",
            "Replies given up because no room came free in time",
            metrics.refused.clone(),
        );
    }

    /// Waits for room for `bytes` until `deadline`.
    pub(super) async fn reserve(
        &self,
        route: &RouteKey,
        bytes: usize,
        deadline: Instant,
    ) -> Result<ReplyRoom, FailureDetail> {
        if bytes <= UNRESERVED_BYTES {
            return Ok(ReplyRoom::default());
        }
        let metrics = &self.shared.metrics;
        // Nobody closes the semaphores: an error is the deadline's.
        let acquired = timeout_at(deadline.into(), self.acquire(route, bytes)).await;
        let Ok(Ok(room)) = acquired else {
            metrics.refused.inc();
            return Err(FailureDetail::NoRoom);
        };
        metrics.reserved.inc_by(room.of_all.num_permits() as i64);
        Ok(ReplyRoom { reserved: Some(room) })
    }

    /// The route's room first: whoever waits for it keeps nothing from other routes.
    async fn acquire(&self, route: &RouteKey, bytes: usize) -> Result<Reserved, AcquireError> {
        let metrics = &self.shared.metrics;
        let bytes = u32::try_from(bytes.min(self.shared.route_bytes)).unwrap_or(u32::MAX);
        let (of_route, all) = (self.route(route), self.shared.all.clone());
        let waits = of_route.available_permits() < bytes as usize || all.available_permits() < bytes as usize;
        metrics.waits.inc_by(u64::from(waits));
        let of_route = of_route.acquire_many_owned(bytes).await?;
        let of_all = all.acquire_many_owned(bytes).await?;
        let gauge = metrics.reserved.clone();
        Ok(Reserved {
            of_all,
            of_route,
            gauge,
        })
    }

    fn route(&self, key: &RouteKey) -> Arc<Semaphore> {
        let mut routes = self.shared.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(route) = routes.get(key) {
            return route.clone();
        }
        if routes.len() >= MAX_IDLE_ROUTES {
            routes.retain(|_, route| Arc::strong_count(route) > 1);
        }
        let route = Arc::new(Semaphore::new(self.shared.route_bytes));
        routes.insert(key.clone(), route.clone());
        route
    }
}

impl ReplyRoom {
    /// The body is complete: what it does not need is free.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let Some(reserved) = &mut self.reserved else {
            return;
        };
        let spare = reserved.of_all.num_permits().saturating_sub(bytes);
        reserved.of_route.split(spare);
        if reserved.of_all.split(spare).is_some() {
            reserved.gauge.dec_by(spare as i64);
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.gauge.dec_by(self.of_all.num_permits() as i64);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const KIB: usize = 1024;

    fn key(name: &str) -> RouteKey {
        RouteKey {
            namespace: "N".into(),
            name: name.into(),
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    fn late() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn reserved(memory: &ReplyMemory) -> i64 {
        memory.shared.metrics.reserved.get()
    }

    #[tokio::test]
    async fn one_route_takes_its_part_and_no_more() {
        let memory = ReplyMemory::new(64 * KIB);
        let first = memory.reserve(&key("a"), 32 * KIB, soon()).await.unwrap();
        let refused = memory.reserve(&key("a"), 9 * KIB, soon()).await;
        assert_eq!(refused.unwrap_err(), FailureDetail::NoRoom);
        let other = memory.reserve(&key("b"), 32 * KIB, soon()).await.unwrap();
        assert!(memory.reserve(&key("c"), 9 * KIB, soon()).await.is_err());
        let small = memory.reserve(&key("c"), UNRESERVED_BYTES, soon()).await;
        assert!(small.is_ok(), "small ones need no room");
        assert_eq!(reserved(&memory), 64 * KIB as i64);
        drop((first, other));
        assert_eq!(reserved(&memory), 0);
        assert!(memory.reserve(&key("c"), 9 * KIB, soon()).await.is_ok());
        let metrics = &memory.shared.metrics;
        assert_eq!((metrics.waits.get(), metrics.refused.get()), (2, 2));
    }

    #[tokio::test]
    async fn who_waits_gets_the_room_that_comes_free() {
        let memory = ReplyMemory::new(64 * KIB);
        let mut first = memory.reserve(&key("a"), 32 * KIB, soon()).await.unwrap();
        let waiting = tokio::spawn({
            let memory = memory.clone();
            async move { memory.reserve(&key("a"), 20 * KIB, late()).await.is_ok() }
        });
        first.shrink(12 * KIB);
        assert!(waiting.await.unwrap());
        assert_eq!(reserved(&memory), 12 * KIB as i64);
    }

    #[tokio::test]
    async fn who_gives_up_waiting_leaves_nothing_reserved() {
        let memory = ReplyMemory::new(64 * KIB);
        let first = memory.reserve(&key("a"), 32 * KIB, soon()).await.unwrap();
        for _ in 0..3 {
            assert!(memory.reserve(&key("a"), 32 * KIB, soon()).await.is_err());
        }
        drop(first);
        assert!(memory.reserve(&key("a"), 32 * KIB, soon()).await.is_ok());
    }

    #[tokio::test]
    async fn routes_that_come_and_go_are_not_all_remembered() {
        let memory = ReplyMemory::new(64 * KIB);
        let kept = memory.reserve(&key("kept"), 32 * KIB, soon()).await.unwrap();
        for n in 0..3 * MAX_IDLE_ROUTES {
            let route = key(&n.to_string());
            assert!(memory.reserve(&route, 9 * KIB, soon()).await.is_ok());
        }
        assert!(memory.shared.routes.lock().unwrap().len() <= MAX_IDLE_ROUTES);
        assert!(memory.reserve(&key("kept"), 9 * KIB, soon()).await.is_err());
        drop(kept);
    }
}
