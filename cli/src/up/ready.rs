//! Waiting until a process answers that it is ready.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow};
use http::StatusCode;

use crate::http_client::{Call, Http};
use crate::unix_http::UnixCall;

/// Who answers 200 when it is ready.
#[derive(Debug, Clone)]
pub(super) enum Probe {
    Url(String),
    /// `/ready` on a control socket.
    Socket(PathBuf),
}

/// Polls until it is ready, for a limited time.
pub(super) async fn wait(http: &Http, probe: &Probe) -> Result<()> {
    tokio::time::timeout(TIMEOUT, wait_long(http, probe))
        .await
        .map_err(|_| match probe {
            Probe::Url(url) => anyhow!("{url} did not answer 200 within {TIMEOUT:?}"),
            Probe::Socket(path) => anyhow!(
                "/ready on {} did not answer 200 within {TIMEOUT:?}",
                path.display()
            ),
        })
}

/// Polls until it is ready.
pub(super) async fn wait_long(http: &Http, probe: &Probe) {
    while !is_ready(http, probe).await {
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Asks once.
pub(super) async fn is_ready(http: &Http, probe: &Probe) -> bool {
    let answer = match probe {
        Probe::Url(url) => {
            let call = Call {
                timeout: CALL_TIMEOUT,
                ..Call::get(url)
            };
            http.call(call).await
        }
        Probe::Socket(path) => UnixCall::get(path, "/ready").send(CALL_TIMEOUT).await,
    };
    answer.is_ok_and(|answer| answer.status == StatusCode::OK)
}

const INTERVAL: Duration = Duration::from_millis(50);
const CALL_TIMEOUT: Duration = Duration::from_millis(500);
const TIMEOUT: Duration = Duration::from_secs(20);
