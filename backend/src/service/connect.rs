//! A bound on connecting as a whole: resolving the name, TCP and TLS.
//!
//! The call's own timeout does not reach a connection that another call's reusable one made superfluous: the pool finishes
//! such a connection in the background, and a service that never answers its TLS handshake would keep it for ever.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use tokio::time::timeout;
use tower_service::Service;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A connector that gives up after a limit.
#[derive(Debug, Clone)]
pub(super) struct Bounded<C> {
    connector: C,
    limit: Duration,
}

impl<C> Bounded<C> {
    pub(super) fn new(connector: C, limit: Duration) -> Self {
        Self { connector, limit }
    }
}

impl<C> Service<Uri> for Bounded<C>
where
    C: Service<Uri, Future: Send + 'static, Error: Into<BoxError>>,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connector.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = timeout(self.limit, self.connector.call(uri));
        Box::pin(async {
            let connected = connecting
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
            connected.map_err(Into::into)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connects never, or at once.
    struct Fake {
        hangs: bool,
    }

    impl Service<Uri> for Fake {
        type Response = ();
        type Error = io::Error;
        type Future = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Uri) -> Self::Future {
            if self.hangs {
                Box::pin(std::future::pending())
            } else {
                Box::pin(std::future::ready(Ok(())))
            }
        }
    }

    async fn connect(hangs: bool, limit: Duration) -> Result<(), BoxError> {
        Bounded::new(Fake { hangs }, limit)
            .call(Uri::from_static("https://h/"))
            .await
    }

    #[tokio::test]
    async fn what_hangs_is_given_up() {
        let error = connect(true, Duration::from_millis(10)).await.unwrap_err();
        let error = error.downcast::<io::Error>().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(connect(false, Duration::from_secs(3600)).await.is_ok());
    }
}
