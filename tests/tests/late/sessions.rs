//! Frames for a session that is gone, and blob writes that come too late.

use holdfast_proto::link::Command;
use holdfast_proto::link::frames::{Bind, ControlReply, Login, SessionId, Update};
use holdfast_tests::ChannelKind;
use holdfast_tests::device::Incoming;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::peer::{Answers, Peer, bound, closed, logged_out, reply, updated, welcomed};
use holdfast_tests::service::Service;
use serde_json::json;

use super::{ECHO, TODAY};

const LATE: &str = "holdfast_frontend_late_frames_total";
const SESSIONS: &str = "holdfast_frontend_sessions";
const CONFLICTS: &str = "holdfast_frontend_blob_conflicts_total";
const CLOSED_BY_OPERATOR: u16 = 4001;

async fn bind(peer: &mut Peer) -> Bind {
    peer.until("BIND", |command| match command {
        Command::Bind(bind) => Some(bind),
        _ => None,
    })
    .await
}

async fn login(peer: &mut Peer) -> Login {
    peer.until("LOGIN", |command| match command {
        Command::Login(login) => Some(login),
        _ => None,
    })
    .await
}

async fn update(peer: &mut Peer) -> (Option<SessionId>, Update) {
    peer.until("UPDATE", |command| match command {
        Command::Update(update) => Some((update.session.as_ref().and_then(|s| s.id), update)),
        _ => None,
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_for_a_session_that_is_gone_touches_no_other() {
    let service = Service::start().await;
    // One shard, so that the next session is in the same place.
    let gateway = Gateway::builder(&service)
        .over(ChannelKind::Wss)
        .frontend_set("shards", 1)
        .backends(0)
        .start()
        .await;
    let mut peer = Peer::attach(&gateway.link(), "peer", TODAY, Answers::Admission).await;
    let mut gone = gateway.device("gone").await;
    let (bind, login) = (bind(&mut peer).await, login(&mut peer).await);
    gone.request(ECHO, "q", &json!({})).await;
    let request = peer.request().await;
    gone.send_text("@update {\"attributes\":{}}").await;
    let (id, update) = update(&mut peer).await;
    gone.close().await;
    gateway.frontends[0].wait_for_metric(SESSIONS, |n| n == 0.0).await;

    let mut here = gateway.device("here").await;
    here.request(ECHO, "q", &json!({})).await;
    let own = peer.request().await;
    let own_id = own.session.as_ref().and_then(|s| s.id).unwrap();
    // The lower half of the uuid ends with the generation: the place is the same, its session another.
    assert_eq!(id.unwrap().low >> 32, own_id.low >> 32, "{id:?} {own_id:?}");
    let late = [
        bound(&bind),
        welcomed(&login),
        reply(&request),
        updated(id, update.number, Some(("late", 0))),
        Command::ControlReply(ControlReply {
            id,
            number: update.number,
            reply: "@late".into(),
        }),
        closed(id.unwrap(), CLOSED_BY_OPERATOR),
        logged_out(id),
    ];
    let count = late.len() as f64;
    for command in late {
        peer.say(command);
    }
    gateway.frontends[0].wait_for_metric(LATE, |n| n == count).await;
    peer.say(reply(&own));
    assert_eq!(here.next_reply().await.seq, 1, "and nothing before it");
    here.request(ECHO, "next", &json!({})).await;
    let next = peer.request().await;
    let session = next.session.as_ref().unwrap();
    assert!(
        session.blob.is_empty() && session.blob_version == 0,
        "{session:?}"
    );
    peer.say(reply(&next));
    assert_eq!(here.next_reply().await.reply_to, "next");
    assert_eq!(gateway.frontends[0].metric(SESSIONS, &[]).await, 1.0);
}

/// A write that was made from another state than the session's is not kept: the update is asked for again. One that comes
/// twice is kept once.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_write_on_another_state_is_not_kept() {
    let service = Service::start().await;
    let gateway = Gateway::builder(&service)
        .over(ChannelKind::Wss)
        .backends(0)
        .start()
        .await;
    let mut peer = Peer::attach(&gateway.link(), "peer", TODAY, Answers::Admission).await;
    let mut device = gateway.device("d").await;
    device.send_text("@update {\"attributes\":{\"n\":1}}").await;
    let (id, first) = update(&mut peer).await;
    peer.say(updated(id, first.number, Some(("of another state", 7))));
    let (_, again) = update(&mut peer).await;
    assert_eq!((again.number, again.text), (first.number, first.text));
    let session = again.session.unwrap();
    assert!(
        session.blob.is_empty() && session.blob_version == 0,
        "{session:?}"
    );
    assert_eq!(gateway.frontends[0].metric(CONFLICTS, &[]).await, 1.0);
    for blob in ["kept", "twice"] {
        peer.say(updated(id, first.number, Some((blob, 0))));
    }
    let word = match device.next().await {
        Incoming::Control { word, .. } => word,
        other => panic!("{other:?}"),
    };
    assert_eq!(word, "@updated");
    gateway.frontends[0].wait_for_metric(LATE, |n| n >= 1.0).await;
    device.request(ECHO, "q", &json!({})).await;
    let request = peer.request().await;
    let session = request.session.as_ref().unwrap();
    assert_eq!((&session.blob[..], session.blob_version), (&b"kept"[..], 1));
    peer.say(reply(&request));
    assert_eq!(
        device.next_reply().await.reply_to,
        "q",
        "no second @updated came in between"
    );
}
