//! Records of a live session that are changed, doubled, lost, swapped, cut, made up or sent back: the end that gets them closes with
//! a code of its own, nothing of it reaches anybody, and the device comes back.

use holdfast_client::{Disturbance, Error};
use holdfast_tests::ChannelKind;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::service::{Log, Service};
use holdfast_tests::wire::{BINARY, CLOSE, TEXT};
use serde_json::json;

use crate::middle::{Frame, Middle, Tamper, Way};
use crate::victim::Victim;

/// What is done with two messages that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    FlipFirst,
    FlipMiddle,
    FlipLast,
    Replay,
    Drop,
    Swap,
    Truncate,
    Empty,
    Extend,
    Invent,
    /// A record of the other direction.
    Reflect,
    /// A text message of the WebSocket.
    Clear,
}

const DEEDS: [Deed; 12] = [
    Deed::FlipFirst,
    Deed::FlipMiddle,
    Deed::FlipLast,
    Deed::Replay,
    Deed::Drop,
    Deed::Swap,
    Deed::Truncate,
    Deed::Empty,
    Deed::Extend,
    Deed::Invent,
    Deed::Reflect,
    Deed::Clear,
];

/// Messages before the two: `@hello` one way, `@challenge` and `@welcome` the other.
fn first_of_two(way: Way) -> usize {
    match way {
        Way::ToServer => 1,
        Way::ToDevice => 2,
    }
}

fn tamper(way: Way, deed: Deed) -> Tamper {
    let (mut other_way, mut held) = (None, None);
    Box::new(move |this, n, frame| {
        if this != way {
            // The last record that came by the other way, for the deed that wants one.
            if frame.first & 0x0f == BINARY {
                other_way = Some(frame.clone());
            }
            return vec![frame];
        }
        match n.checked_sub(first_of_two(way)) {
            Some(0) => deed.first(frame, &mut held, other_way.as_ref()),
            Some(1) if deed == Deed::Swap => [Some(frame), held.take()].into_iter().flatten().collect(),
            _ => vec![frame],
        }
    })
}

impl Deed {
    fn first(self, frame: Frame, held: &mut Option<Frame>, other_way: Option<&Frame>) -> Vec<Frame> {
        let changed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = frame.clone();
            change(&mut frame.payload);
            vec![frame]
        };
        let flip = |at: usize| changed(&|payload| payload[at] ^= 0x10);
        let last = frame.payload.len() - 1;
        match self {
            Self::FlipFirst => flip(0),
            Self::FlipMiddle => flip(last / 2),
            Self::FlipLast => flip(last),
            Self::Truncate => changed(&|payload| payload.truncate(last)),
            Self::Empty => changed(&Vec::clear),
            Self::Extend => changed(&|payload| payload.push(0)),
            Self::Invent => changed(&|payload| payload.fill(7)),
            Self::Replay => vec![frame.clone(), frame],
            Self::Drop => Vec::new(),
            Self::Swap => {
                *held = Some(frame);
                Vec::new()
            }
            Self::Reflect => vec![other_way.expect("something came the other way").clone()],
            Self::Clear => {
                let event = json!({"header": {"namespace": "Demo", "name": "Echo", "id": "evil", "seq": 1}, "payload": 1});
                let payload = event.to_string().into_bytes();
                vec![
                    Frame {
                        first: 0x80 | TEXT,
                        payload,
                    },
                    frame,
                ]
            }
        }
    }

    /// The close's reason, which is also its label in the metrics.
    fn reason(self) -> &'static str {
        match self {
            Self::Clear => "clear_text",
            _ => "record_rejected",
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_to_a_device_s_records_ends_its_connection_and_nothing_more() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(ChannelKind::Ws, &service).await;
    let frontend = &gateway.frontends[0];
    let mut bystander = gateway.device("bystander").await;
    for (n, deed) in (1..).zip(DEEDS) {
        let id = format!("victim-{n}");
        let middle = Middle::before(gateway.ws(), tamper(Way::ToServer, deed)).await;
        let mut victim = Victim::start(&gateway, &id, middle.address);
        victim.online().await;
        let closed = closed(&gateway, deed.reason()).await;
        let pending = victim.ask(&["one", "two"]);
        let loss = victim.loss().await;
        let code = match &loss {
            Error::ClosedByServer { reason, .. } => reason.as_str(),
            _ => loss.label(),
        };
        assert_eq!(code, deed.reason(), "{deed:?}: {loss}");
        drop(pending);
        victim.online().await;
        victim.works().await;
        assert_eq!(
            self::closed(&gateway, deed.reason()).await,
            closed + 1.0,
            "{deed:?} is counted"
        );
        let calls = service.log(|log| log.calls.iter().filter(|call| call.is_from(&id)).count());
        let before_the_deed = usize::from(deed == Deed::Replay);
        assert!(calls <= before_the_deed + 1, "{deed:?}: {calls} calls");
        assert_eq!(victim.device.counters().connects(), 2, "{deed:?}");
        victim.device.close().await;
        bystander.request(("Demo", "Echo"), "x", &json!({})).await;
        assert_eq!(bystander.next_reply().await.reply_to, "x");
    }
    assert_eq!(service.log(Log::inconsistent_keys), 0);
    service.assert_contract();
    frontend
        .wait_for_metric("holdfast_frontend_sessions", |n| n == 1.0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_to_the_gateway_s_records_is_noticed_by_the_device() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(ChannelKind::Ws, &service).await;
    for (n, deed) in (1..).zip(DEEDS) {
        let id = format!("victim-{n}");
        let middle = Middle::before(gateway.ws(), tamper(Way::ToDevice, deed)).await;
        let mut victim = Victim::start(&gateway, &id, middle.address);
        victim.online().await;
        let mut pending = victim.ask(&["one", "two"]);
        let expected = match deed {
            Deed::Clear => Disturbance::ClearText,
            _ => Disturbance::Record,
        };
        assert_eq!(victim.loss().await, Error::Disturbed(expected), "{deed:?}");
        let (two, one) = (pending.remove(1).await, pending.remove(0).await);
        assert_eq!(two, Err(Error::Disconnected), "{deed:?}");
        if deed != Deed::Replay {
            assert_eq!(one, Err(Error::Disconnected), "{deed:?}");
        }
        victim.online().await;
        victim.works().await;
        let counters = victim.device.counters();
        assert_eq!((counters.disturbed(), counters.connects()), (1, 2), "{deed:?}");
        assert_eq!((counters.violations(), counters.pushes()), (0, 0), "{deed:?}");
        victim.device.close().await;
    }
    // The device said why it closed, so that the operator sees it too.
    for (reason, expected) in [("record_rejected", DEEDS.len() - 1), ("clear_text", 1)] {
        let labels = [("reason", reason)];
        gateway.frontends[0]
            .wait_for_series("holdfast_frontend_device_closes_total", &labels, |n| {
                n == expected as f64
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_or_welcome_that_was_touched_lets_nobody_in() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(ChannelKind::Ws, &service).await;
    for (touched, expected) in [(0, Disturbance::Challenge), (1, Disturbance::Record)] {
        let middle = Middle::before(
            gateway.ws(),
            Box::new(move |way, n, mut frame| {
                if (way, n) == (Way::ToDevice, touched) {
                    let at = frame.payload.len() / 2;
                    // Another letter of base64url, or another bit of a record.
                    frame.payload[at] = if frame.payload[at] == b'A' { b'B' } else { b'A' };
                }
                vec![frame]
            }),
        )
        .await;
        let mut victim = Victim::start(&gateway, "victim", middle.address);
        assert_eq!(victim.loss().await, Error::Disturbed(expected));
        victim.online().await;
        victim.works().await;
        assert_eq!(victim.device.counters().disturbed(), 1);
        victim.device.close().await;
    }
}

/// Anybody can send a close frame. It costs the connection, as cutting the wire would, and says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_close_is_a_lost_connection() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(ChannelKind::Ws, &service).await;
    for way in [Way::ToServer, Way::ToDevice] {
        let middle = Middle::before(
            gateway.ws(),
            Box::new(move |this, n, frame| {
                if this == way && n == first_of_two(way) {
                    // 4000: replaced, do not come back.
                    let payload = [&[0x0f, 0xa0][..], b"replaced"].concat();
                    return vec![Frame {
                        first: 0x80 | CLOSE,
                        payload,
                    }];
                }
                vec![frame]
            }),
        )
        .await;
        let mut victim = Victim::start(&gateway, "victim", middle.address);
        victim.online().await;
        let (lost, by_device) = (
            closed(&gateway, "connection_lost").await,
            closed(&gateway, "closed_by_device").await,
        );
        let pending = victim.ask(&["one"]);
        let loss = victim.loss().await;
        drop(pending);
        assert!(matches!(loss, Error::Connect(_)), "{way:?}: {loss}");
        victim.online().await;
        victim.works().await;
        if way == Way::ToServer {
            assert_eq!(closed(&gateway, "connection_lost").await, lost + 1.0);
        }
        assert_eq!(closed(&gateway, "closed_by_device").await, by_device, "{way:?}");
        victim.device.close().await;
    }
}

/// Sessions that the frontend has closed for this reason.
async fn closed(gateway: &Gateway, reason: &str) -> f64 {
    gateway.frontends[0]
        .metric("holdfast_frontend_closed_total", &[("reason", reason)])
        .await
}
