//! Waiting until a process answers that it is ready.

use std::time::Duration;

use anyhow::{Result, anyhow};
use http::StatusCode;

use crate::http_client::{Call, Http};

/// Polls `url` until it answers 200.
pub(super) async fn wait(http: &Http, url: &str) -> Result<()> {
    let poll = async {
        loop {
            let call = Call {
                timeout: CALL_TIMEOUT,
                ..Call::get(url)
            };
            if http
                .call(call)
                .await
                .is_ok_and(|answer| answer.status == StatusCode::OK)
            {
                return;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    };
    tokio::time::timeout(TIMEOUT, poll)
        .await
        .map_err(|_| anyhow!("{url} did not answer 200 within {TIMEOUT:?}"))
}

const INTERVAL: Duration = Duration::from_millis(50);
const CALL_TIMEOUT: Duration = Duration::from_millis(500);
const TIMEOUT: Duration = Duration::from_secs(20);
