//! The man in the middle changes the upgrade: the request with the device's credential, or its answer. Nobody gets in by it, no session
//! is touched, and the device comes back, whatever it was told.

use std::sync::Arc;

use holdfast_client::{Disturbance, Error};
use holdfast_tests::ChannelKind;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::service::Service;
use tokio::net::TcpListener;

use crate::middle::{Heads, Middle, Way};
use crate::victim::Victim;

const CLOSED: &str = "holdfast_frontend_closed_total";
const REFUSED: &str = "holdfast_frontend_refused_total";
const AUTHORIZATION: &str = "authorization: Holdfast ";

/// What a head is changed into.
type Change = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// The head that goes this way is changed, once.
fn changing(way: Way, change: Change) -> Heads {
    Box::new(move |this, head| {
        if this != way {
            return head;
        }
        change(std::str::from_utf8(&head).expect("a head is ASCII")).into_bytes()
    })
}

/// The place of the credential in a request.
fn credential(request: &str) -> std::ops::Range<usize> {
    let at = request
        .to_ascii_lowercase()
        .find(&AUTHORIZATION.to_ascii_lowercase());
    let start = at.expect("the device shows its credential") + AUTHORIZATION.len();
    let length = request[start..].find("\r\n").expect("the field ends");
    start..start + length
}

/// Another letter of base64url at this place of the credential.
fn flipped(request: &str, place: impl Fn(usize) -> usize) -> String {
    let range = credential(request);
    let at = range.start + place(range.len());
    let letter = if &request[at..=at] == "A" { "B" } else { "A" };
    let mut request = request.to_owned();
    request.replace_range(at..=at, letter);
    request
}

fn with_credential(request: &str, other: &str) -> String {
    let mut request = request.to_owned();
    request.replace_range(credential(&request), other);
    request
}

struct Scene {
    gateway: Gateway,
    bystander: Victim,
    ear: Middle,
}

impl Scene {
    async fn set(service: &Service) -> Self {
        let gateway = Gateway::start_over(ChannelKind::Ws, service).await;
        let ear = Middle::listening(gateway.ws()).await;
        let bystander = Victim::start(&gateway, "bystander", ear.address);
        bystander.online().await;
        Self {
            gateway,
            bystander,
            ear,
        }
    }

    /// What the victim's first connection ends with. Then all must be well.
    async fn loss(&mut self, way: Way, change: Change) -> Error {
        let logins = self.logins().await;
        let middle = Middle::before_heads(self.gateway.ws(), changing(way, change)).await;
        let mut victim = Victim::start(&self.gateway, "victim", middle.address);
        let loss = victim.loss().await;
        victim.online().await;
        victim.works().await;
        assert!(victim.undisturbed(), "{loss}: it was lost once");
        assert_eq!(self.logins().await, logins + 1.0, "{loss}: nobody else logged in");
        victim.device.close().await;
        self.bystander.works().await;
        assert!(self.bystander.undisturbed());
        loss
    }

    async fn logins(&self) -> f64 {
        self.gateway.backends[0]
            .metric("holdfast_backend_logins_total", &[])
            .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_was_touched_is_refused_and_the_device_comes_back() {
    let service = Service::start().await;
    let mut scene = Scene::set(&service).await;
    let without: Change = Arc::new(|request| {
        let range = credential(request);
        let start = range.start - AUTHORIZATION.len();
        format!("{}{}", &request[..start], &request[range.end + 2..])
    });
    let cases: [(&str, Change, u16, &str); 5] = [
        ("its form", Arc::new(|r| flipped(r, |_| 0)), 400, "bad_credential"),
        (
            "its tag",
            Arc::new(|r| flipped(r, |length| length - 5)),
            401,
            "handshake_failed",
        ),
        ("none", without, 401, "credential_missing"),
        (
            "cut",
            Arc::new(|r| {
                let range = credential(r);
                with_credential(r, &r[range.start..range.end - 4])
            }),
            400,
            "bad_credential",
        ),
        (
            "a token",
            Arc::new(|r| r.replacen("Holdfast ", "Bearer ", 1)),
            400,
            "wrong_channel",
        ),
    ];
    let frontend_refuses = ["credential_missing", "wrong_channel"];
    for (what, change, status, code) in cases {
        let label = if frontend_refuses.contains(&code) {
            code
        } else {
            "denied"
        };
        let labels = [("reason", label)];
        let before = scene.gateway.frontends[0].metric(REFUSED, &labels).await;
        let loss = scene.loss(Way::ToServer, change).await;
        let Error::Refused(refusal) = &loss else {
            panic!("{what}: {loss}");
        };
        assert_eq!((refusal.status, refusal.code.as_str()), (status, code), "{what}");
        assert_eq!(
            refusal.retryable,
            Some(false),
            "{what}: and it came back all the same"
        );
        scene.gateway.frontends[0]
            .wait_for_series(REFUSED, &labels, |n| n == before + 1.0)
            .await;
    }
    service.assert_contract();
}

/// With another device's credential the gateway admits that one, which proves nothing to the device that is there.
#[tokio::test(flavor = "multi_thread")]
async fn another_s_credential_in_the_place_of_its_own_lets_neither_in() {
    let service = Service::start().await;
    let mut scene = Scene::set(&service).await;
    let recorded = String::from_utf8(scene.ear.recording(0).request).unwrap();
    let other = recorded[credential(&recorded)].to_owned();
    let change: Change = Arc::new(move |request| with_credential(request, &other));
    let loss = scene.loss(Way::ToServer, change).await;
    assert_eq!(loss, Error::Disturbed(Disturbance::Challenge));
    assert_lost(&scene, 1.0).await;
    service.assert_contract();
}

/// The device hung up on so many connections that the gateway had let in.
async fn assert_lost(scene: &Scene, count: f64) {
    let labels = [("reason", "connection_lost")];
    scene.gateway.frontends[0]
        .wait_for_series(CLOSED, &labels, |n| n == count)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_touched_keeps_no_device_away() {
    let service = Service::start().await;
    let mut scene = Scene::set(&service).await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = elsewhere.local_addr().unwrap();
    let fixed = |head: String| -> Change { Arc::new(move |_: &str| head.clone()) };
    let refusal = |status: &str, code: &str| {
        let body = format!(r#"{{"status":403,"title":"no","code":"{code}","retryable":false}}"#);
        fixed(format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    };
    let redirect = format!("HTTP/1.1 301 Moved\r\nLocation: ws://{to}/\r\nContent-Length: 0\r\n\r\n");
    let cases: [(&str, Change, &str); 7] = [
        (
            "another server's accept",
            Arc::new(|answer| {
                answer
                    .replacen("accept: ", "accept: A", 1)
                    .replacen("Accept: ", "Accept: A", 1)
            }),
            "connect_failed",
        ),
        (
            "a sub-protocol that was not offered",
            Arc::new(|answer| answer.replacen("\r\n", "\r\nSec-WebSocket-Protocol: holdfast.v1\r\n", 1)),
            "connect_failed",
        ),
        (
            "no HTTP",
            fixed("@goodbye {\"reconnect\":false}\r\n\r\n".to_owned()),
            "connect_failed",
        ),
        ("denied", refusal("403 Forbidden", "denied"), "denied"),
        (
            "key unknown",
            refusal("401 Unauthorized", "key_unknown"),
            "key_unknown",
        ),
        (
            "gone",
            fixed("HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n".to_owned()),
            "http_410",
        ),
        ("elsewhere", fixed(redirect), "http_301"),
    ];
    for (n, (what, change, label)) in (1..).zip(cases) {
        let loss = scene.loss(Way::ToDevice, change).await;
        assert_eq!(loss.label(), label, "{what}: {loss}");
        assert_lost(&scene, f64::from(n)).await;
    }
    let visit = std::future::poll_fn(|cx| std::task::Poll::Ready(elsewhere.poll_accept(cx).is_ready()));
    assert!(!visit.await, "the device went where a stranger sent it");
    service.assert_contract();
}
