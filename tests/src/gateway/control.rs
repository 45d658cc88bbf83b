//! A backend's control socket.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::http::{Answer, request, send_unix};

/// A condition comes true within this, or the test fails.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

/// The socket of one backend; whether one answers there is another matter.
#[derive(Debug, Clone)]
pub struct Control {
    pub socket: PathBuf,
}

impl Control {
    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let body = body.map_or_else(Bytes::new, |b| Bytes::from(b.to_string()));
        let request = request(method, &format!("http://control{path}"), None, body);
        send_unix(&self.socket, request)
            .await
            .unwrap_or_else(|e| panic!("{}: {e}", self.socket.display()))
    }

    pub async fn status(&self) -> Value {
        self.call(Method::GET, "/status", None).await.json()
    }

    /// Requests of devices that it has answered.
    pub async fn answered(&self) -> u64 {
        self.status().await["requests"]["answered"]
            .as_u64()
            .expect("a number")
    }

    /// Sets the share, which must be taken, and gives the status that comes back.
    pub async fn share(&self, percent: f64) -> Value {
        let answer = self
            .call(Method::PUT, "/share", Some(json!({"percent": percent})))
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let status = answer.json();
        assert_eq!(status["share_percent"], percent, "{status}");
        status
    }

    /// Waits until the backend is attached to all its frontends.
    pub async fn wait_ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ready = request(Method::GET, "http://control/ready", None, Bytes::new());
            let answer = send_unix(&self.socket, ready).await;
            if answer.as_ref().is_ok_and(|a| a.status == 200) {
                return;
            }
            let place = self.socket.display();
            assert!(Instant::now() < deadline, "{place} is not ready: {answer:?}");
            sleep(POLL).await;
        }
    }
}
