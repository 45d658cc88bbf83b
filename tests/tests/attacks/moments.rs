//! The man in the middle strikes at each moment of a `ws` session: at `@hello`, the challenge, a chunk of a long message, a ping, a
//! pong, a close, and beside what passes as well as in its place. Whatever it is costs at most the connection.

use holdfast_client::{Disturbance, Error};
use holdfast_tests::ChannelKind;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::service::{Log, Service};
use holdfast_tests::wire::{BINARY, CLOSE, TEXT};
use http::Method;

use crate::middle::{Frame, Middle, Tamper, Way};
use crate::victim::Victim;

/// What is done to a frame, or beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Flip,
    Drop,
    Double,
    /// A made-up record goes before it.
    Invent,
    /// A frame of another live session, of the same way and place, goes before it.
    Foreign,
    /// The last frame of the other way goes before it.
    Reflect,
    /// The wire is cut before it.
    Cut,
}

const DEEDS: [Deed; 7] = [
    Deed::Flip,
    Deed::Drop,
    Deed::Double,
    Deed::Invent,
    Deed::Foreign,
    Deed::Reflect,
    Deed::Cut,
];

/// Which frame is struck.
type Moment = fn(usize, &Frame) -> bool;

/// Bytes of a ping or pong record, and of that of the message `@ping`.
const PING_RECORD: usize = 1 + 1 + 16;
const PING_MESSAGE: usize = 1 + 5 + 16;
/// Three chunks.
const LONG: usize = 150_000;
/// A request's number of frames until its second chunk, behind `@hello`; a reply's behind challenge and `@welcome`.
const SECOND_CHUNK_UP: usize = 2;
const SECOND_CHUNK_DOWN: usize = 3;

impl Deed {
    fn on(self, mut frame: Frame, foreign: &Frame, other_way: Option<&Frame>) -> Vec<Frame> {
        match self {
            Self::Flip => {
                let at = frame.payload.len() / 2;
                frame.payload[at] ^= 1;
                vec![frame]
            }
            Self::Drop => Vec::new(),
            Self::Double => vec![frame.clone(), frame],
            Self::Invent => vec![record(vec![7; 40]), frame],
            Self::Foreign => vec![foreign.clone(), frame],
            Self::Reflect => vec![other_way.expect("something came the other way").clone(), frame],
            Self::Cut => vec![Frame::cut()],
        }
    }
}

fn record(payload: Vec<u8>) -> Frame {
    Frame {
        first: 0x80 | BINARY,
        payload,
    }
}

/// A close frame in the clear, with a code that keeps a device away.
fn forged_close(code: u16) -> Frame {
    let payload = [&code.to_be_bytes()[..], b"forged"].concat();
    Frame {
        first: 0x80 | CLOSE,
        payload,
    }
}

/// Strikes once, at the first frame of this way that the moment tells.
fn strike(way: Way, moment: Moment, deed: Deed, foreign: Frame) -> Tamper {
    let (mut other_way, mut done) = (None, false);
    Box::new(move |this, n, frame| {
        if this != way {
            other_way = Some(frame.clone());
            return vec![frame];
        }
        if done || !moment(n, &frame) {
            return vec![frame];
        }
        done = true;
        deed.on(frame, &foreign, other_way.as_ref())
    })
}

/// A gateway, and another device's live session through an eavesdropper.
struct Scene {
    service: Service,
    gateway: Gateway,
    bystander: Victim,
    ear: Middle,
}

impl Scene {
    async fn set(settings: &[(&str, &str)]) -> Self {
        let service = Service::start().await;
        let mut builder = Gateway::builder(&service).over(ChannelKind::Ws);
        for (path, value) in settings {
            builder = builder.frontend_set(path, *value);
        }
        let gateway = builder.start().await;
        let ear = Middle::listening(gateway.ws()).await;
        let bystander = Victim::start(&gateway, "bystander", ear.address);
        bystander.online().await;
        for _ in 0..3 {
            bystander.works().await;
        }
        Self {
            service,
            gateway,
            bystander,
            ear,
        }
    }

    /// The `n`th frame of the bystander's session.
    fn foreign(&self, way: Way, n: usize) -> Frame {
        let recording = self.ear.recording(0);
        match way {
            Way::ToServer => recording.to_server[n].clone(),
            Way::ToDevice => recording.to_device[n].clone(),
        }
    }

    /// A victim behind somebody who does `deed`; only online when nothing comes before that.
    async fn victim(&self, deed: Deed, tamper: Tamper) -> (Victim, Middle) {
        let middle = Middle::before(self.gateway.ws(), tamper).await;
        let id = format!("victim-{deed:?}");
        (Victim::start(&self.gateway, &id, middle.address), middle)
    }

    /// The victim is back, all is well, and no request of its came twice or changed.
    async fn all_is_well(&mut self, mut victim: Victim, deed: Deed) {
        victim.online().await;
        victim.works().await;
        self.bystander.works().await;
        assert!(self.bystander.undisturbed(), "{deed:?}");
        let counters = victim.device.counters();
        assert_eq!((counters.violations(), counters.pushes()), (0, 0), "{deed:?}");
        assert!(victim.undisturbed(), "{deed:?}: it was lost once");
        victim.device.close().await;
        assert_eq!(self.service.log(Log::inconsistent_keys), 0, "{deed:?}");
        self.service.assert_contract();
    }

    /// Sessions that the frontend has closed for this reason.
    async fn closed(&self, reason: &str) -> f64 {
        let reason = [("reason", reason)];
        self.gateway.frontends[0].metric(CLOSED, &reason).await
    }

    /// Waits until one more is closed for this reason than `before`.
    async fn one_more(&self, reason: &str, before: f64) {
        let labels = [("reason", reason)];
        let frontend = &self.gateway.frontends[0];
        let now = frontend.wait_for_series(CLOSED, &labels, |n| n > before).await;
        assert_eq!(now, before + 1.0, "{reason}");
    }

    async fn logins(&self) -> f64 {
        self.gateway.backends[0]
            .metric("holdfast_backend_logins_total", &[])
            .await
    }

    fn calls_of(&self, deed: Deed) -> usize {
        let id = format!("victim-{deed:?}");
        self.service
            .log(|log| log.calls.iter().filter(|call| call.is_from(&id)).count())
    }
}

const CLOSED: &str = "holdfast_frontend_closed_total";

/// What the device hears of it when one of its own records was struck: the server's word, or nothing.
fn assert_told(loss: &Error, reason: &str, deed: Deed) {
    match loss {
        Error::ClosedByServer { reason: told, .. } => assert_eq!(told, reason, "{deed:?}"),
        Error::Connect(_) => assert_eq!(reason, "connection_lost", "{deed:?}: {loss}"),
        // The server says it in a record, where only the challenge may be.
        Error::Disturbed(Disturbance::Challenge) => assert_eq!(reason, "challenge_failed", "{deed:?}"),
        _ => panic!("{deed:?}: {loss}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_that_is_struck_logs_nobody_in() {
    // A device whose `@hello` does not come is given up after it.
    let mut scene = Scene::set(&[("times.challenge", "5s")]).await;
    for deed in DEEDS {
        let reason = match deed {
            Deed::Drop => "challenge_failed",
            // What came the other way is the challenge, in the clear.
            Deed::Reflect => "clear_text",
            Deed::Cut => "connection_lost",
            _ => "record_rejected",
        };
        let (before, logins) = (scene.closed(reason).await, scene.logins().await);
        let tamper = strike(
            Way::ToServer,
            |n, _| n == 0,
            deed,
            scene.foreign(Way::ToServer, 0),
        );
        let (mut victim, _middle) = scene.victim(deed, tamper).await;
        assert_told(&victim.loss().await, reason, deed);
        scene.one_more(reason, before).await;
        scene.all_is_well(victim, deed).await;
        assert_eq!(scene.calls_of(deed), 1);
        // The first of two is as good as ever.
        let struck = scene.logins().await - logins - 1.0;
        assert!(struck == 0.0 || deed == Deed::Double, "{deed:?}: {struck} logins");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_that_is_struck_is_believed_by_nobody() {
    let mut scene = Scene::set(&[("times.challenge", "5s")]).await;
    // Nothing came the other way yet.
    for deed in DEEDS.into_iter().filter(|deed| *deed != Deed::Reflect) {
        let reason = match deed {
            Deed::Drop => "challenge_failed",
            Deed::Double => "closed_by_device",
            _ => "connection_lost",
        };
        let expected = match deed {
            Deed::Double => Some(Disturbance::ClearText),
            Deed::Cut => None,
            _ => Some(Disturbance::Challenge),
        };
        let (before, logins) = (scene.closed(reason).await, scene.logins().await);
        let tamper = strike(
            Way::ToDevice,
            |n, _| n == 0,
            deed,
            scene.foreign(Way::ToDevice, 0),
        );
        let (mut victim, _middle) = scene.victim(deed, tamper).await;
        let loss = victim.loss().await;
        match expected {
            Some(expected) => assert_eq!(loss, Error::Disturbed(expected), "{deed:?}"),
            None => assert!(matches!(loss, Error::Connect(_)), "{deed:?}: {loss}"),
        }
        scene.one_more(reason, before).await;
        scene.all_is_well(victim, deed).await;
        assert_eq!(scene.calls_of(deed), 1);
        let struck = scene.logins().await - logins - 1.0;
        assert!(struck == 0.0 || deed == Deed::Double, "{deed:?}: {struck} logins");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_request_with_a_chunk_struck_reaches_no_service() {
    let mut scene = Scene::set(&[]).await;
    for deed in DEEDS {
        let reason = match deed {
            Deed::Cut => "connection_lost",
            _ => "record_rejected",
        };
        let before = scene.closed(reason).await;
        let foreign = scene.foreign(Way::ToServer, SECOND_CHUNK_UP);
        let tamper = strike(Way::ToServer, |n, _| n == SECOND_CHUNK_UP, deed, foreign);
        let (mut victim, _middle) = scene.victim(deed, tamper).await;
        victim.online().await;
        let long = victim.ask_long("long", LONG);
        assert_told(&victim.loss().await, reason, deed);
        assert_eq!(long.await, Err(Error::Disconnected), "{deed:?}");
        scene.one_more(reason, before).await;
        assert_eq!(scene.calls_of(deed), 0, "{deed:?}");
        scene.all_is_well(victim, deed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_reply_with_a_chunk_struck_is_not_believed() {
    let mut scene = Scene::set(&[]).await;
    for deed in DEEDS {
        let foreign = scene.foreign(Way::ToDevice, SECOND_CHUNK_DOWN);
        let tamper = strike(Way::ToDevice, |n, _| n == SECOND_CHUNK_DOWN, deed, foreign);
        let (mut victim, _middle) = scene.victim(deed, tamper).await;
        victim.online().await;
        let long = victim.ask_long("long", LONG);
        assert_disturbed(&scene, &mut victim, deed).await;
        assert_eq!(long.await, Err(Error::Disconnected), "{deed:?}");
        assert_eq!(scene.calls_of(deed), 1, "{deed:?}");
        scene.all_is_well(victim, deed).await;
    }
}

/// A record to the device was struck: it says so to the server, unless the wire was cut.
async fn assert_disturbed(scene: &Scene, victim: &mut Victim, deed: Deed) {
    let loss = victim.loss().await;
    if deed == Deed::Cut {
        assert!(matches!(loss, Error::Connect(_)), "{deed:?}: {loss}");
        assert_eq!(victim.device.counters().disturbed(), 0);
        return;
    }
    assert_eq!(loss, Error::Disturbed(Disturbance::Record), "{deed:?}");
    assert_eq!(victim.device.counters().disturbed(), 1, "{deed:?}");
    let told = DEEDS
        .iter()
        .position(|other| *other == deed)
        .expect("one of them")
        + 1;
    let labels = [("reason", "record_rejected")];
    scene.gateway.frontends[0]
        .wait_for_series("holdfast_frontend_device_closes_total", &labels, |n| {
            n == told as f64
        })
        .await;
}

/// The device's own `@ping` is held back until the server, which hears nothing, has pinged and was answered.
fn strike_heartbeat(way: Way, deed: Deed, foreign: Frame) -> Tamper {
    let is_ping: Moment = |_, frame| frame.opcode() == BINARY && frame.payload.len() == PING_RECORD;
    let mut held = Vec::new();
    let mut strike = strike(way, is_ping, deed, foreign);
    let mut released = false;
    Box::new(move |this, n, frame| {
        if this == Way::ToServer && frame.payload.len() == PING_MESSAGE && held.is_empty() && !released {
            held.push(frame);
            return Vec::new();
        }
        let mut out = Vec::new();
        if this == Way::ToServer {
            released |= !held.is_empty();
            out.append(&mut held);
        }
        out.extend(strike(this, n, frame));
        out
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ping_or_pong_that_is_struck_costs_the_connection() {
    for way in [Way::ToDevice, Way::ToServer] {
        let mut scene = Scene::set(&[("times.ping_after", "2s"), ("times.close_after", "40s")]).await;
        for deed in DEEDS {
            let reason = match deed {
                Deed::Cut => "connection_lost",
                _ => "record_rejected",
            };
            let before = scene.closed(reason).await;
            let tamper = strike_heartbeat(way, deed, scene.foreign(way, 2));
            let (mut victim, _middle) = scene.victim(deed, tamper).await;
            victim.online().await;
            match way {
                Way::ToDevice => assert_disturbed(&scene, &mut victim, deed).await,
                Way::ToServer => {
                    assert_told(&victim.loss().await, reason, deed);
                    scene.one_more(reason, before).await;
                }
            }
            scene.all_is_well(victim, deed).await;
            assert_eq!(scene.calls_of(deed), 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_s_close_that_is_struck_is_not_taken_for_its_word() {
    let scene = Scene::set(&[]).await;
    for deed in DEEDS {
        let reason = match deed {
            // What follows a close is nobody's word.
            Deed::Double => "closed_by_device",
            Deed::Drop | Deed::Cut => "connection_lost",
            _ => "record_rejected",
        };
        let (before, by_device) = (scene.closed(reason).await, scene.closed("closed_by_device").await);
        let tamper = strike(
            Way::ToServer,
            |n, _| n == 1,
            deed,
            scene.foreign(Way::ToServer, 1),
        );
        let (victim, _middle) = scene.victim(deed, tamper).await;
        victim.online().await;
        victim.device.close().await;
        scene.one_more(reason, before).await;
        let own = f64::from(u8::from(deed == Deed::Double));
        assert_eq!(
            scene.closed("closed_by_device").await,
            by_device + own,
            "{deed:?}"
        );
    }
}

/// The server's word that a device shall stay away counts when it came whole, and only then.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_s_close_that_is_struck_is_the_server_s_word_or_nothing() {
    // `@goodbye`, then the close.
    for (n, is_moment) in [(2, (|n, _| n == 2) as Moment), (3, |n, _| n == 3)] {
        let mut scene = Scene::set(&[]).await;
        for deed in DEEDS {
            let tamper = strike(Way::ToDevice, is_moment, deed, scene.foreign(Way::ToDevice, n));
            let (mut victim, _middle) = scene.victim(deed, tamper).await;
            victim.online().await;
            let path = format!("/v1/devices/victim-{deed:?}");
            let closed = scene.gateway.api(Method::DELETE, &path, None).await;
            assert_eq!(closed.status, 204);
            let loss = victim.loss().await;
            let goodbye_came = n == 3 || deed == Deed::Double;
            match &loss {
                Error::ClosedByServer { code, reason } => {
                    assert!(n == 3 && [4001, 1006].contains(code), "{n} {deed:?}: {loss}");
                    assert_eq!(reason, "closed_by_operator");
                }
                Error::Disturbed(Disturbance::Record) => assert_ne!(deed, Deed::Cut),
                Error::Connect(_) => assert_eq!(deed, Deed::Cut),
                _ => panic!("{n} {deed:?}: {loss}"),
            }
            if goodbye_came {
                // It said so in a record: nothing that is done after that brings the device back, either.
                assert!(victim.stays_away().await, "{n} {deed:?}: {loss}");
            } else {
                scene.all_is_well(victim, deed).await;
            }
        }
    }
}

/// Whoever forges a close in the clear, with each code that keeps a device away, at each time.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_close_keeps_no_device_away_at_any_time() {
    let mut scene = Scene::set(&[]).await;
    for at in 0..3 {
        for code in [1000, 4000, 4001, 4004] {
            let middle = Middle::before(
                scene.gateway.ws(),
                Box::new(move |way, n, frame| match (way, n == at) {
                    (Way::ToDevice, true) => vec![forged_close(code), frame],
                    _ => vec![frame],
                }),
            )
            .await;
            let mut victim = Victim::start(&scene.gateway, &format!("victim-{at}-{code}"), middle.address);
            let pending = (at == 2).then(|| victim.ask(&["one"]));
            let loss = victim.loss().await;
            assert!(matches!(loss, Error::Connect(_)), "{at} {code}: {loss}");
            assert_eq!(victim.device.counters().disturbed(), 0);
            drop(pending);
            scene.all_is_well(victim, Deed::Flip).await;
        }
    }
    // Nor does one that pretends to come from the service.
    let event = Frame {
        first: 0x80 | TEXT,
        payload: br#"@goodbye {"code":"replaced","reconnect":false}"#.to_vec(),
    };
    let middle = Middle::before(
        scene.gateway.ws(),
        Box::new(move |way, n, frame| match (way, n) {
            (Way::ToDevice, 1) => vec![event.clone(), frame],
            _ => vec![frame],
        }),
    )
    .await;
    let mut victim = Victim::start(&scene.gateway, "victim-Flip", middle.address);
    assert_eq!(victim.loss().await, Error::Disturbed(Disturbance::ClearText));
    scene.all_is_well(victim, Deed::Flip).await;
}
