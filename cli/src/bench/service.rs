//! The service behind the gateway: answers each call with its body after a delay, and keeps the books. One thread.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::ValueEnum;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use tokio::net::{TcpListener, TcpSocket};

use super::book::{Book, Call, Seen, Stay};
use super::crash::Crash;
use super::gateway::SERVICE_CONNECTIONS;
use super::options::DelayRange;
use super::phase::{Now, Stage};

/// What a service is broken in on purpose, to see that it is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// Every hundredth answer carries the body of the call before it.
    OtherBody,
    /// Every hundredth answer is a 500.
    Fail,
    /// Every hundredth answer takes a second and a half longer.
    Stall,
}

/// What the service saw.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Calls {
    pub(crate) calls: u64,
    /// Calls with a key not seen before.
    pub(crate) side_effects: u64,
    pub(crate) again: Again,
    /// Calls whose `Idempotency-Key` is not that of their session and sequence.
    pub(crate) bad_keys: u64,
}

/// Calls with a key seen before, by when they came and had come first.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Again {
    /// Of requests that were in flight when a backend died or hung: allowed (P4).
    pub(crate) after_crashes: u64,
    /// After such an event, of requests that were not.
    pub(crate) not_in_flight: u64,
    /// During and after graceful events.
    pub(crate) in_graceful: u64,
    pub(crate) in_quiet: u64,
}

/// What a running service is made from.
pub(crate) struct Settings {
    pub(crate) delay: DelayRange,
    pub(crate) seed: u64,
    pub(crate) fault: Option<Fault>,
    pub(crate) now: Arc<Now>,
    /// The longest that a request is in flight.
    pub(crate) max_wait: Duration,
}

struct State {
    settings: Settings,
    inner: Mutex<Inner>,
}

struct Inner {
    book: Book,
    calls: Calls,
    delays: SmallRng,
    last_body: Bytes,
    crash: Crash,
}

/// A service on a port of its own, which runs until the process ends.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

impl Service {
    pub(crate) fn start(settings: Settings) -> Result<Self> {
        let inner = Inner {
            book: Book::default(),
            calls: Calls::default(),
            delays: SmallRng::seed_from_u64(settings.seed),
            last_body: Bytes::new(),
            crash: Crash::None,
        };
        let state = Arc::new(State {
            settings,
            inner: Mutex::new(inner),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = {
            let _its_own = runtime.enter();
            listen().context("the service's socket")?
        };
        let address = listener.local_addr().context("the service's socket")?;
        let serving = state.clone();
        std::thread::Builder::new()
            .name(THREAD.to_owned())
            .spawn(move || runtime.block_on(serve(listener, serving)))
            .context("the service's thread")?;
        Ok(Self { address, state })
    }

    /// From now on a backend may die or hang at any moment.
    pub(crate) fn crash_begins(&self) {
        self.state.lock().crash.begin(Instant::now());
    }

    /// From now on none does.
    pub(crate) fn crash_ends(&self) {
        self.state.lock().crash.end(Instant::now());
    }

    pub(crate) fn calls(&self) -> Calls {
        self.state.lock().calls.clone()
    }
}

fn listen() -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    socket.listen(BACKLOG)
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: some will be closed.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // A delayed acknowledgement would add to the latency; without it there is only that.
        let _ = stream.set_nodelay(true);
        let state = state.clone();
        let answer = service_fn(move |request| {
            let state = state.clone();
            async move { Ok::<_, Infallible>(state.answer(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), answer);
        // A connection that breaks is a backend that died.
        tokio::spawn(async move { drop(connection.await) });
    }
}

impl State {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body = match Limited::new(body, MAX_BODY_BYTES).collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => return status(StatusCode::BAD_REQUEST),
        };
        let (delay, body) = match self.note(&head.headers, body) {
            Ok(noted) => noted,
            Err(code) => return status(code),
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let mut response = Response::new(Full::new(body));
        let json = HeaderValue::from_static("application/json");
        let kind = head.headers.get(CONTENT_TYPE).cloned().unwrap_or(json);
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }

    /// Enters a call into the books; gives when and with what to answer it.
    fn note(&self, headers: &HeaderMap, body: Bytes) -> Result<(Duration, Bytes), StatusCode> {
        let text = |name: &str| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or("")
        };
        let call = Call {
            key: text("idempotency-key").trim_matches('"'),
            session: text("ce-hfsession"),
            sequence: text("ce-hfsequence").parse().unwrap_or_default(),
        };
        let mut inner = self.lock();
        inner.calls.calls += 1;
        let delay = inner.draw(&self.settings.delay);
        let came = Instant::now();
        let stay = Stay {
            came,
            left: came + delay,
        };
        match inner.book.handle_call(&call, stay) {
            Seen::First => inner.calls.side_effects += 1,
            Seen::BadKey => inner.calls.bad_keys += 1,
            Seen::Again(before) => {
                let met_it = |stay: Stay| inner.crash.was_met_by(&stay, self.settings.max_wait);
                let is_excused = before.is_some_and(met_it);
                inner.calls.again.add(self.settings.now.get().stage, is_excused);
            }
        }
        let before = std::mem::replace(&mut inner.last_body, body.clone());
        let is_hundredth = inner.calls.calls.is_multiple_of(100);
        match self.settings.fault {
            Some(Fault::OtherBody) if is_hundredth => Ok((delay, before)),
            Some(Fault::Fail) if is_hundredth => Err(StatusCode::INTERNAL_SERVER_ERROR),
            Some(Fault::Stall) if is_hundredth => Ok((delay + STALL, body)),
            _ => Ok((delay, body)),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn draw(&mut self, range: &DelayRange) -> Duration {
        let spread = range.most.saturating_sub(range.least);
        range.least + spread.mul_f64(self.delays.random::<f64>())
    }
}

impl Again {
    fn add(&mut self, stage: Stage, is_excused: bool) {
        match stage {
            Stage::During(kind) | Stage::After(kind) if kind.is_graceful() => self.in_graceful += 1,
            Stage::During(_) | Stage::After(_) if is_excused => self.after_crashes += 1,
            Stage::During(_) | Stage::After(_) => self.not_in_flight += 1,
            Stage::Warmup | Stage::Quiet => self.in_quiet += 1,
        }
    }
}

fn status(code: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::new()));
    *response.status_mut() = code;
    response
}

/// By which `/proc` tells the CPU time of this thread from the others'.
pub(crate) const THREAD: &str = "bench-service";
/// Above the longest payload that the command line allows.
const MAX_BODY_BYTES: usize = 1 << 20;
/// A backend that was started again connects as often as it may, at once: what the kernel drops then is tried again after
/// seconds, which devices would notice of the service, not of the gateway.
const BACKLOG: u32 = 2 * SERVICE_CONNECTIONS;
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
const STALL: Duration = Duration::from_millis(1500);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::phase::{Kind, Phase};

    fn state(fault: Option<Fault>) -> State {
        let delay = "3ms..9ms".parse().unwrap();
        let now = Arc::new(Now::new(Phase::FIRST));
        State {
            settings: Settings {
                delay,
                seed: 1,
                fault,
                now,
                max_wait: Duration::from_secs(5),
            },
            inner: Mutex::new(Inner {
                book: Book::default(),
                calls: Calls::default(),
                delays: SmallRng::seed_from_u64(1),
                last_body: Bytes::new(),
                crash: Crash::None,
            }),
        }
    }

    fn call(state: &State, sequence: u64) -> Result<(Duration, Bytes), StatusCode> {
        let mut headers = HeaderMap::new();
        headers.insert("idempotency-key", format!("\"s-{sequence}\"").parse().unwrap());
        headers.insert("ce-hfsession", "s".parse().unwrap());
        headers.insert("ce-hfsequence", sequence.into());
        state.note(&headers, Bytes::from(sequence.to_string()))
    }

    #[test]
    fn repeated_calls_count_by_what_went_on() {
        let state = state(None);
        let now = &state.settings.now;
        call(&state, 1).unwrap();
        call(&state, 1).unwrap();
        state.lock().crash.begin(Instant::now());
        for stage in [
            Stage::During(Kind::Kill),
            Stage::After(Kind::Hang),
            Stage::During(Kind::Rollback),
            Stage::During(Kind::Upgrade),
            Stage::After(Kind::Canary),
        ] {
            now.enter(stage);
            call(&state, 1).unwrap();
        }
        // The crash is long over when this request comes first.
        let long_ago = Instant::now() - Duration::from_secs(60);
        state.lock().crash = Crash::Ended {
            begun: long_ago,
            ended: long_ago,
        };
        now.enter(Stage::After(Kind::Kill));
        call(&state, 2).unwrap();
        call(&state, 2).unwrap();
        state.note(&HeaderMap::new(), Bytes::new()).unwrap();
        let expected = Calls {
            calls: 10,
            side_effects: 2,
            again: Again {
                after_crashes: 3,
                not_in_flight: 1,
                in_graceful: 2,
                in_quiet: 1,
            },
            bad_keys: 1,
        };
        assert_eq!(state.lock().calls, expected);
    }

    #[test]
    fn delays_are_within_their_range_and_bodies_come_back() {
        let state = state(None);
        for sequence in 1..=200 {
            let (delay, body) = call(&state, sequence).unwrap();
            assert!(
                (Duration::from_millis(3)..=Duration::from_millis(9)).contains(&delay),
                "{delay:?}"
            );
            assert_eq!(body, sequence.to_string());
        }
    }

    #[test]
    fn a_broken_service_is_broken() {
        let other = state(Some(Fault::OtherBody));
        let wrong = (1..=200)
            .filter(|n| call(&other, *n).unwrap().1 != n.to_string())
            .count();
        assert_eq!(wrong, 2);
        let stalling = state(Some(Fault::Stall));
        let stalled = (1..=200).filter(|n| call(&stalling, *n).unwrap().0 >= STALL);
        assert_eq!(stalled.count(), 2);
        let failing = state(Some(Fault::Fail));
        assert_eq!((1..=200).filter(|n| call(&failing, *n).is_err()).count(), 2);
    }
}
