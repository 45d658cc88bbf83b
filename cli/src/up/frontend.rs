//! What the frontend says of the backends that it had.

use std::time::Duration;

use serde::Deserialize;

use crate::http_client::{Call, Http};
use crate::upgrade::losses::{Loss, Which};
use crate::upgrade::report::HandOver;

/// A frontend's admin listener.
#[derive(Clone)]
pub(super) struct Frontend {
    pub(super) http: Http,
    /// `http://` and where it listens.
    pub(super) admin: String,
}

/// How a backend's time on the frontend ended.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Ended {
    at_unix_ms: u64,
    backend: String,
    epoch: String,
    #[serde(flatten)]
    pub(super) hand_over: HandOver,
}

impl Frontend {
    /// Those that it remembers, the newest first; `None` when it does not say.
    pub(super) async fn hand_overs(&self) -> Option<Vec<Ended>> {
        #[derive(Deserialize)]
        struct Status {
            hand_overs: Vec<Ended>,
        }
        let url = format!("{}/status", self.admin);
        let call = Call {
            timeout: CALL_TIMEOUT,
            ..Call::get(&url)
        };
        let body = self.http.call(call).await.ok()?.success().ok()?;
        Some(serde_json::from_slice::<Status>(&body).ok()?.hand_overs)
    }

    /// How it saw this backend leave since then, once it has: it may learn of a death a little later than others do.
    pub(super) async fn farewell(&self, backend: &str, since: Duration) -> HandOver {
        let is_it =
            |ended: &Ended| ended.backend == backend && u128::from(ended.at_unix_ms) >= since.as_millis();
        loop {
            let ends = self.hand_overs().await.unwrap_or_default();
            if let Some(ended) = ends.into_iter().find(is_it) {
                return ended.hand_over;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Those of `ends` that were no graceful ones, of the two.
pub(super) fn losses(ends: &[Ended], old: &str, new: &str) -> Vec<Loss> {
    let loss = |ended: &Ended| {
        let which = match ended.backend.as_str() {
            name if name == old => Which::Old,
            name if name == new => Which::New,
            _ => return None,
        };
        (ended.hand_over.kind != GRACEFUL).then(|| Loss {
            which,
            epoch: ended.epoch.clone(),
        })
    };
    ends.iter().filter_map(loss).collect()
}

const GRACEFUL: &str = "graceful";
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    /// The wire format of the frontend's `/status`.
    #[test]
    fn only_the_two_count_and_only_when_they_were_lost() {
        let text = r#"[
            {"at_unix_ms":5,"kind":"hang","backend":"backend-2","epoch":"d","requests":3,"duration_ms":1},
            {"at_unix_ms":4,"kind":"graceful","backend":"backend-2","epoch":"c","requests":0,"duration_ms":1},
            {"at_unix_ms":3,"kind":"fenced","backend":"backend-1","epoch":"b","requests":0,"duration_ms":1},
            {"at_unix_ms":2,"kind":"crash","backend":"backend-7","epoch":"a","requests":0,"duration_ms":1}]"#;
        let ends: Vec<Ended> = serde_json::from_str(text).unwrap();
        let loss = |which, epoch: &str| Loss {
            which,
            epoch: epoch.into(),
        };
        assert_eq!(
            losses(&ends, "backend-1", "backend-2"),
            [loss(Which::New, "d"), loss(Which::Old, "b")]
        );
    }
}
