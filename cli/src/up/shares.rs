//! Giving a backend its share, and making sure that it has it.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::Share;
use http::Method;
use serde::Deserialize;
use serde_json::json;

use crate::http_client::Answer;
use crate::unix_http::UnixCall;

/// Tells the backend with this control socket until it has it, for so long at most: it may be told as often as one likes. The
/// error says why it has not.
pub(super) async fn set(socket: &Path, share: Share, patience: Duration) -> Result<(), String> {
    let until = Instant::now() + patience;
    loop {
        let refusal = match attempt(socket, share).await {
            Ok(()) => return Ok(()),
            Err(refusal) => refusal,
        };
        if refusal.is_final || Instant::now() >= until {
            return Err(refusal.why);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Why a share was not taken.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    why: String,
    /// Saying it again would not help.
    is_final: bool,
}

async fn attempt(socket: &Path, share: Share) -> Result<(), Refusal> {
    let call = UnixCall {
        method: Method::PUT,
        json: Some(Bytes::from(json!({ "percent": share.percent() }).to_string())),
        ..UnixCall::get(socket, "/share")
    };
    let answer = call.send(CALL_TIMEOUT).await.map_err(|error| Refusal {
        why: format!("{error:#}"),
        is_final: false,
    })?;
    judge(answer, share)
}

/// A backend answers with its status. It may have been lost by its frontend at this very moment: then it has the share, and
/// nobody gives it anything.
fn judge(answer: Answer, share: Share) -> Result<(), Refusal> {
    #[derive(Deserialize)]
    struct Status {
        share_percent: f64,
        #[serde(default)]
        frontends: Vec<Frontend>,
    }
    #[derive(Deserialize)]
    struct Frontend {
        address: String,
        state: String,
    }
    let is_final = answer.status.is_client_error();
    let refusal = |why| Refusal { why, is_final };
    let body = answer.success().map_err(|error| refusal(format!("{error:#}")))?;
    let status: Status = serde_json::from_slice(&body)
        .map_err(|error| refusal(format!("its answer is not readable: {error}")))?;
    if Share::from_percent(status.share_percent) != Ok(share) {
        return Err(refusal(format!(
            "it has {} % instead of {share}",
            status.share_percent
        )));
    }
    match status.frontends.iter().find(|frontend| frontend.state != ACTIVE) {
        Some(Frontend { address, state }) => Err(refusal(format!("it is {state} on {address}"))),
        None => Ok(()),
    }
}

/// Attached, and READY was said.
const ACTIVE: &str = "active";
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    fn judged(status: StatusCode, body: &str) -> Result<(), Refusal> {
        let body = Bytes::copy_from_slice(body.as_bytes());
        judge(Answer { status, body }, Share::FULL)
    }

    #[test]
    fn only_one_that_has_it_on_all_its_frontends_has_it() {
        let active = r#"{"share_percent":100,"frontends":[{"address":"ipc:///a","state":"active"}]}"#;
        assert_eq!(judged(StatusCode::OK, active), Ok(()));
        for (body, why) in [
            (active.replace("active", "lost"), "it is lost on ipc:///a"),
            (active.replace("active", "standby"), "it is standby on ipc:///a"),
            (active.replace("100", "5"), "it has 5 % instead of 100%"),
            ("{}".to_owned(), "not readable"),
        ] {
            let refusal = judged(StatusCode::OK, &body).unwrap_err();
            assert!(refusal.why.contains(why) && !refusal.is_final, "{refusal:?}");
        }
    }

    #[test]
    fn only_what_asking_again_would_not_mend_is_final() {
        for (status, is_final) in [
            (StatusCode::CONFLICT, true),
            (StatusCode::UNPROCESSABLE_ENTITY, true),
            (StatusCode::INTERNAL_SERVER_ERROR, false),
            (StatusCode::SERVICE_UNAVAILABLE, false),
        ] {
            assert_eq!(judged(status, "{}").unwrap_err().is_final, is_final, "{status}");
        }
    }

    /// Its first answers may be lost, as on a machine that stood still.
    #[tokio::test]
    async fn it_is_said_again_until_it_is_taken_or_the_time_is_over() {
        use axum::routing::put;
        use std::sync::atomic::{AtomicU32, Ordering};

        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("b.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let calls = std::sync::Arc::new(AtomicU32::new(0));
        let seen = calls.clone();
        let answer = move || {
            let call = seen.fetch_add(1, Ordering::Relaxed);
            async move {
                match call {
                    0 => (StatusCode::INTERNAL_SERVER_ERROR, "{}"),
                    1 => (
                        StatusCode::OK,
                        r#"{"share_percent":100,"frontends":[{"address":"a","state":"lost"}]}"#,
                    ),
                    2 => (StatusCode::OK, r#"{"share_percent":100}"#),
                    _ => (StatusCode::CONFLICT, "{}"),
                }
            }
        };
        let router = axum::Router::new().route("/share", put(answer));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await });
        let long = Duration::from_secs(60);
        assert_eq!(set(&socket, Share::FULL, long).await, Ok(()));
        assert_eq!(calls.load(Ordering::Relaxed), 3);
        assert!(set(&socket, Share::FULL, long).await.is_err());
        assert_eq!(calls.load(Ordering::Relaxed), 4, "a conflict is an answer");
        serving.abort();
        let _ = serving.await;
        assert!(set(&socket, Share::FULL, Duration::ZERO).await.is_err());
    }
}
