//! The task of one device: dial, run the connection, wait, again.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use crate::builder::{Builder, Credentials, Target};
use crate::connection::{Connection, End, LastLoss};
use crate::dial::dial;
use crate::outbox::Outbox;
use crate::state::Counters;
use crate::{Backoff, Error, Push, Refusal, State, Welcome};

/// Ready for ever once the owner wants the device closed, or has dropped it.
pub(crate) struct CloseSignal(Option<oneshot::Receiver<()>>);

impl CloseSignal {
    pub(crate) fn new(receiver: oneshot::Receiver<()>) -> Self {
        Self(Some(receiver))
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(receiver) = &mut self.0 {
            if Pin::new(receiver).poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.0 = None;
        }
        Poll::Ready(())
    }

    async fn wait(&mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }
}

/// Tells the owner what happens.
pub(crate) struct Observer {
    settings: Arc<Builder>,
    state: watch::Sender<State>,
    pub(crate) counters: Arc<Counters>,
}

impl Observer {
    pub(crate) fn handle_push(&self, push: Push) {
        Counters::add(&self.counters.pushes);
        if let Some(queue) = &self.settings.push_queue
            && queue.try_send(push.clone()).is_err()
        {
            Counters::add(&self.counters.pushes_dropped);
        }
        if let Some(handler) = &self.settings.on_push {
            handler(push);
        }
    }

    pub(crate) fn handle_online(&self, welcome: Welcome) {
        Counters::add(&self.counters.connects);
        self.set(State::Online(welcome));
    }

    fn set(&self, state: State) {
        if let Some(handler) = &self.settings.on_state {
            handler(&state);
        }
        self.state.send_replace(state);
    }
}

pub(crate) struct Driver {
    settings: Arc<Builder>,
    target: Target,
    outbox: Outbox,
    closing: CloseSignal,
    observer: Observer,
    backoff: Backoff,
    /// Whether a first attempt that fails is the end.
    first_must_succeed: bool,
}

/// The device's ends of the driver's channels.
pub(crate) struct Ends {
    pub(crate) outbox: Outbox,
    pub(crate) closing: CloseSignal,
    pub(crate) state: watch::Sender<State>,
    pub(crate) counters: Arc<Counters>,
}

impl Driver {
    pub(crate) fn new(settings: Builder, ends: Ends, first_must_succeed: bool) -> Result<Self, Error> {
        let target = settings.target()?;
        let backoff = Backoff::new(settings.seed.unwrap_or_else(rand::random));
        let settings = Arc::new(settings);
        let Ends {
            outbox,
            closing,
            state,
            counters,
        } = ends;
        let observer = Observer {
            settings: settings.clone(),
            state,
            counters,
        };
        Ok(Self {
            settings,
            target,
            outbox,
            closing,
            observer,
            backoff,
            first_must_succeed,
        })
    }

    pub(crate) async fn run(mut self) {
        let mut last_loss = LastLoss::default();
        let error = loop {
            let (end, online_for) = self.connect_once(&mut last_loss).await;
            tracing::debug!(error = %end.error, ?online_for, "disconnected");
            if matches!(end.error, Error::Disturbed(_)) {
                Counters::add(&self.observer.counters.disturbed);
            }
            self.backoff.handle_online_for(online_for);
            let failed_first = self.first_must_succeed && self.observer.counters.connects() == 0;
            if !end.may_reconnect || !self.settings.reconnect || failed_first {
                break end.error;
            }
            let delay = self.backoff.next_delay(end.hint);
            if !self.wait(end.error, delay).await {
                break Error::Closed;
            }
        };
        self.outbox.close(&error);
        self.observer.set(State::Closed(error));
    }

    async fn connect_once(&mut self, last_loss: &mut LastLoss) -> (End, Duration) {
        self.observer.set(State::Connecting);
        let dialled = tokio::select! {
            biased;
            () = self.closing.wait() => Err(Error::Closed),
            dialled = dial(&self.settings, &self.target) => dialled,
        };
        match dialled {
            Ok(channel) => {
                let connection = Connection::new(
                    &self.settings,
                    &self.observer,
                    &mut self.outbox,
                    &mut self.closing,
                    channel,
                );
                connection.run(last_loss).await
            }
            Err(error) => {
                let mut end = failed_dial(error, &self.settings.credentials);
                last_loss.judge(&mut end, Instant::now());
                (end, Duration::ZERO)
            }
        }
    }

    /// Waits for the next attempt; false if the owner wants no more.
    async fn wait(&mut self, error: Error, delay: Duration) -> bool {
        self.observer.set(State::Waiting { error, delay });
        tokio::select! {
            biased;
            () = self.closing.wait() => false,
            () = tokio::time::sleep(delay) => true,
        }
    }
}

/// Whether another attempt may mend it: the same token refused is not mended by asking again, an overload is.
fn failed_dial(error: Error, credentials: &Credentials) -> End {
    let (hint, may_reconnect) = match &error {
        Error::Refused(refusal) => (refusal.retry_after, may_mend(refusal, credentials)),
        Error::Config(_) | Error::Closed => (None, false),
        _ => (None, true),
    };
    End {
        hint,
        may_reconnect,
        ..End::broken(error)
    }
}

fn may_mend(refusal: &Refusal, credentials: &Credentials) -> bool {
    match credentials {
        // Without a problem document it may be a proxy's passing trouble, which must not silence a device for good.
        Credentials::Token { renews, .. } => {
            let another_token = refusal.status == UNAUTHORIZED && *renews;
            another_token || refusal.retryable != Some(false)
        }
        // Nobody has proved to be our server: anybody on the way could silence the device.
        Credentials::Key(_) => true,
    }
}

/// HTTP's status for a token that is not taken.
const UNAUTHORIZED: u16 = 401;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::DeviceIdentity;

    fn token(renews: bool) -> Credentials {
        Credentials::Token {
            provider: Arc::new(|| Ok("t".into())),
            renews,
        }
    }

    fn key() -> Credentials {
        Credentials::Key(Arc::new(DeviceIdentity {
            identity: holdfast_proto::secure::Identity {
                key_id: "k1".into(),
                product: String::new(),
                class: String::new(),
                device: "d".parse().unwrap(),
                key_version: 1,
            },
            key: holdfast_proto::secure::DeviceKey::from_bytes(&[7; 32]).unwrap(),
        }))
    }

    #[test]
    fn a_refused_token_is_final_and_an_overload_is_not() {
        let refused = |status, retryable| {
            Error::Refused(Refusal {
                status,
                code: "x".into(),
                detail: String::new(),
                retry_after: Some(Duration::from_secs(2)),
                retryable,
            })
        };
        for (status, retryable, token_renews, may) in [
            (400, Some(false), false, false),
            (401, Some(false), false, false),
            (401, Some(false), true, true),
            (403, Some(false), true, false),
            (403, None, false, true),
            (404, None, false, true),
            (429, Some(true), false, true),
            (500, None, false, true),
            (503, Some(true), false, true),
        ] {
            let end = failed_dial(refused(status, retryable), &token(token_renews));
            assert_eq!(end.may_reconnect, may, "{status} {retryable:?} {token_renews}");
            let end = failed_dial(refused(status, retryable), &key());
            assert!(
                end.may_reconnect,
                "whoever said {status} to a key has proved nothing"
            );
            assert_eq!(end.hint, Some(Duration::from_secs(2)));
        }
        assert_eq!(
            failed_dial(refused(503, None), &token(false)).hint,
            Some(Duration::from_secs(2))
        );
        assert!(failed_dial(Error::Connect("refused".into()), &token(false)).may_reconnect);
        assert!(!failed_dial(Error::Config("bad".into()), &token(false)).may_reconnect);
        assert!(!failed_dial(Error::Config("bad".into()), &key()).may_reconnect);
    }

    #[tokio::test]
    async fn a_device_costs_one_small_task() {
        let (_commands, receiver) = tokio::sync::mpsc::channel(1);
        let (_close, closing) = oneshot::channel();
        let counters = Arc::new(Counters::default());
        let ends = Ends {
            outbox: Outbox::new(receiver, counters.clone()),
            closing: CloseSignal::new(closing),
            state: watch::channel(State::Connecting).0,
            counters,
        };
        let settings = crate::Device::builder("wss://localhost", "t").tls(crate::Tls::from_config(Arc::new(
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth(),
        )));
        let run = Driver::new(settings, ends, false).unwrap().run();
        let bytes = size_of_val(&run);
        assert!(
            bytes <= 4096,
            "a load test holds 15,000 of these: {bytes} bytes each"
        );
    }
}
