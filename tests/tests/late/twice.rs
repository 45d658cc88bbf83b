//! Two backends, or one twice, answer the same request.

use holdfast_proto::link::Command;
use holdfast_tests::ChannelKind;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::peer::{Answers, Peer, reply};
use holdfast_tests::service::Service;
use serde_json::json;

use super::{ECHO, NOTICED, TODAY};

const LATE: &str = "holdfast_frontend_late_frames_total";
const DUPLICATE: &str = "holdfast_frontend_duplicate_replies_total";
const STALE: &str = "holdfast_link_stale_epoch_total";
const FENCED: &str = "holdfast_link_fenced_total";

#[tokio::test(flavor = "multi_thread")]
async fn only_the_backend_that_has_a_request_is_heard_and_only_once() {
    let service = Service::start().await;
    let gateway = Gateway::builder(&service)
        .over(ChannelKind::Wss)
        .backends(0)
        .start()
        .await;
    let mut asked = Peer::attach(&gateway.link(), "asked", TODAY, Answers::Admission).await;
    let mut device = gateway.device("d").await;
    device.request(ECHO, "q", &json!({"from": "asked"})).await;
    let request = asked.request().await;
    let mut other = Peer::attach(&gateway.link(), "other", TODAY, Answers::Test).await;
    other.attached().await;
    let mut forged = request.clone();
    forged.payload = request_text("q", "other").into();
    other.say(reply(&forged));
    gateway.frontends[0].wait_for_metric(LATE, |n| n >= 1.0).await;
    asked.say(reply(&request));
    assert_eq!(device.next_reply().await.json(), json!({"from": "asked"}));
    asked.say(reply(&request));
    gateway.frontends[0]
        .wait_for_metric(DUPLICATE, |n| n >= 1.0)
        .await;
    device.request(ECHO, "next", &json!({"from": "asked"})).await;
    // Whichever of the two gets it.
    let next = tokio::select! {
        request = asked.request() => { asked.say(reply(&request)); request }
        request = other.request() => { other.say(reply(&request)); request }
    };
    assert_eq!(next.sequence, 2);
    assert_eq!(
        device.next_reply().await.reply_to,
        "next",
        "no second answer came in between"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_was_given_up_answers_beside_its_successor() {
    let service = Service::start().await;
    let mut gateway = Gateway::builder(&service)
        .over(ChannelKind::Wss)
        .backends(0)
        .link_timeout(NOTICED)
        .start()
        .await;
    let mut lost = Peer::attach(&gateway.link(), "lost", TODAY, Answers::Admission).await;
    let mut device = gateway.device("d").await;
    device.request(ECHO, "q", &json!({"hold": true})).await;
    let request = lost.request().await;
    lost.hang();
    gateway.frontends[0].wait_for_metric(FENCED, |n| n >= 1.0).await;
    gateway.add_backend().await;
    service.wait_for_calls(1).await;
    lost.say(reply(&request));
    lost.wake();
    lost.until("FENCED", |command| {
        matches!(command, Command::Fenced(_)).then_some(())
    })
    .await;
    gateway.frontends[0].wait_for_metric(STALE, |n| n >= 1.0).await;
    assert!(
        device.next_within(std::time::Duration::ZERO).await.is_none(),
        "the answer of the lost one is none"
    );
    service.release();
    assert_eq!(device.next_reply().await.reply_to, "q");
    device.request(ECHO, "next", &json!({})).await;
    assert_eq!(device.next_reply().await.reply_to, "next");
    assert_eq!(service.calls()[0].attempt, 2);
    service.assert_contract();
}

fn request_text(id: &str, from: &str) -> String {
    json!({"header": {"namespace": "Demo", "name": "Echo", "id": id}, "payload": {"from": from}}).to_string()
}
