//! The handle of a device.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::secure::{DeviceKey, Identity};
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Sleep;

use crate::builder::{Builder, Credentials, DeviceIdentity, TokenError};
use crate::driver::{CloseSignal, Driver, Ends};
use crate::outbox::{Outbox, Outgoing, Waiter};
use crate::state::Counters;
use crate::{Error, Reply, Request, State};

/// One device. Clones are handles of the same device; when the last is dropped the connection is closed.
#[derive(Clone)]
pub struct Device(Arc<Handle>);

struct Handle {
    commands: mpsc::Sender<Box<Outgoing>>,
    in_flight: Arc<Semaphore>,
    state: watch::Receiver<State>,
    counters: Arc<Counters>,
    request_timeout: Duration,
    /// Dropping it tells the driver to close.
    close: Mutex<Option<oneshot::Sender<()>>>,
}

impl Device {
    /// A device on `wss` that shows one token, which must outlive its reconnects.
    pub fn builder(url: impl Into<String>, token: impl Into<String>) -> Builder {
        let token = token.into();
        let credentials = Credentials::Token {
            provider: Arc::new(move || Ok(token.clone())),
            renews: false,
        };
        Builder::new(url, credentials)
    }

    /// A device on `wss` that asks for a token before each attempt, so that it can be renewed. The provider must not block; what it
    /// fails with is shown in [`State::Waiting`], and it is asked again later, as it is when the server refuses its token (401).
    pub fn builder_with_token_provider(
        url: impl Into<String>,
        provider: impl Fn() -> Result<String, TokenError> + Send + Sync + 'static,
    ) -> Builder {
        let credentials = Credentials::Token {
            provider: Arc::new(provider),
            renews: true,
        };
        Builder::new(url, credentials)
    }

    /// A device on `ws` or `udp` that proves who it is with its key, as the server must prove to it. The URL decides:
    /// `ws://host:port` or `udp://host:port`.
    ///
    /// On `udp` a change of this machine's addresses does not end the connection, nor does a network that is away for a while: requests
    /// wait until the connection is given up, which takes as long as two of its server's heartbeats and a half.
    pub fn builder_with_key(url: impl Into<String>, identity: Identity, key: DeviceKey) -> Builder {
        let credentials = Credentials::Key(Arc::new(DeviceIdentity { identity, key }));
        Builder::new(url, credentials)
    }

    pub(crate) fn start(settings: Builder, first_must_succeed: bool) -> Result<Self, Error> {
        let max_in_flight = settings.max_in_flight;
        let (commands, receiver) = mpsc::channel(max_in_flight);
        let (close, closing) = oneshot::channel();
        let (state_sender, state) = watch::channel(State::Connecting);
        let counters = Arc::new(Counters::default());
        let handle = Handle {
            commands,
            in_flight: Arc::new(Semaphore::new(max_in_flight)),
            state,
            counters: counters.clone(),
            request_timeout: settings.request_timeout,
            close: Mutex::new(Some(close)),
        };
        let ends = Ends {
            outbox: Outbox::new(receiver, counters.clone()),
            closing: CloseSignal::new(closing),
            state: state_sender,
            counters,
        };
        tokio::spawn(Driver::new(settings, ends, first_must_succeed)?.run());
        Ok(Self(Arc::new(handle)))
    }

    /// Sends a JSON request and waits for its reply. Waits first while as many requests are in flight as allowed. Before
    /// the device is online, requests wait.
    pub async fn request(&self, namespace: &str, name: &str, payload: &RawValue) -> Result<Reply, Error> {
        self.call(Request::json(namespace, name, payload.to_owned()))
            .await
    }

    /// The same with bytes.
    pub async fn request_binary(&self, namespace: &str, name: &str, payload: Bytes) -> Result<Reply, Error> {
        self.call(Request::binary(namespace, name, payload)).await
    }

    /// Sends `request` and waits for its reply, as [`Self::request`] does.
    pub async fn call(&self, request: Request) -> Result<Reply, Error> {
        let permit = self
            .0
            .in_flight
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| Error::Closed)?;
        self.send_with(request, permit)?.await
    }

    /// Queues `request` and returns at once; [`Error::Busy`] if as many are in flight as allowed. Requests go out in the
    /// order of these calls.
    pub fn send(&self, request: Request) -> Result<PendingReply, Error> {
        let permit = self
            .0
            .in_flight
            .clone()
            .try_acquire_owned()
            .map_err(|_| Error::Busy)?;
        self.send_with(request, permit)
    }

    /// Sends a one-way request: returns when the connection has taken it. An error that the server answers is not seen.
    pub async fn send_one_way(&self, request: Request) -> Result<(), Error> {
        let _permit = self
            .0
            .in_flight
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| Error::Closed)?;
        let (sender, receiver) = oneshot::channel();
        self.queue(Outgoing {
            request,
            waiter: Waiter::Sent(sender),
        })?;
        match tokio::time::timeout(self.0.request_timeout, receiver).await {
            Ok(result) => result.unwrap_or_else(|_| Err(self.closed())),
            Err(_) => Err(Error::Timeout),
        }
    }

    /// The present state.
    pub fn state(&self) -> State {
        self.0.state.borrow().clone()
    }

    /// A receiver that sees changes of state (the newest; some between may be missed).
    pub fn watch_state(&self) -> watch::Receiver<State> {
        self.0.state.clone()
    }

    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// Waits until the device is online, or closed with the error returned.
    pub async fn wait_online(&self) -> Result<(), Error> {
        let mut state = self.watch_state();
        let seen = state
            .wait_for(|state| matches!(state, State::Online(_) | State::Closed(_)))
            .await;
        match seen.as_deref() {
            Ok(State::Closed(error)) => Err(error.clone()),
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Closed),
        }
    }

    /// Closes the connection (code 1000) and waits until it is: about 2 s at most. Requests in flight fail with
    /// [`Error::Disconnected`].
    pub async fn close(&self) {
        self.0.close.lock().unwrap_or_else(PoisonError::into_inner).take();
        // An error means that the driver is gone, which is what is waited for.
        let _ = self
            .watch_state()
            .wait_for(|state| matches!(state, State::Closed(_)))
            .await;
    }

    fn send_with(&self, request: Request, permit: OwnedSemaphorePermit) -> Result<PendingReply, Error> {
        let (sender, receiver) = oneshot::channel();
        self.queue(Outgoing {
            request,
            waiter: Waiter::Reply(sender),
        })?;
        let timeout = Box::pin(tokio::time::sleep(self.0.request_timeout));
        Ok(PendingReply {
            receiver,
            timeout,
            _permit: permit,
        })
    }

    /// Requests whose callers have gone still hold a place here until the connection skips them: hence `Busy`.
    fn queue(&self, outgoing: Outgoing) -> Result<(), Error> {
        self.0
            .commands
            .try_send(Box::new(outgoing))
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => Error::Busy,
                mpsc::error::TrySendError::Closed(_) => self.closed(),
            })
    }

    fn closed(&self) -> Error {
        match &*self.0.state.borrow() {
            State::Closed(error) => error.clone(),
            _ => Error::Closed,
        }
    }
}

/// A reply to come. Dropping it gives up on the reply, and its place among the requests in flight.
pub struct PendingReply {
    receiver: oneshot::Receiver<Result<Reply, Error>>,
    timeout: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl Future for PendingReply {
    type Output = Result<Reply, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(result) = Pin::new(&mut self.receiver).poll(cx) {
            return Poll::Ready(result.unwrap_or(Err(Error::Closed)));
        }
        self.timeout.as_mut().poll(cx).map(|()| Err(Error::Timeout))
    }
}
