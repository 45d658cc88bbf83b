//! Devices with keys of their own, admitted by the real binary over a real link.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::StatusCode;
use bytes::Bytes;
use holdfast_proto::link::Command;
use holdfast_proto::link::frames::{Admitted, Bind, Bound, Channel, Denied, bound};
use holdfast_proto::secure::{
    DeviceKey, Identity, Initiator, MESSAGE_2_BYTES, MasterKey, PARAMETER_BYTES, SecureChannel, TrafficKeys,
    parse_challenge,
};
use holdfast_proto::{FrontendEpoch, FrontendId, Generation, SessionId, SessionParts, ShardId, Slot};
use serde_json::{Value, json};

use super::frontend::Frontend;
use super::{Backend, Fixture, PATIENCE, axum_serve, path, run};

fn master(n: u8) -> MasterKey {
    MasterKey::from_bytes(&[n; 32]).unwrap()
}

fn identity(device: &str, key_id: &str) -> Identity {
    Identity {
        key_id: key_id.into(),
        product: "lamp".into(),
        class: "home".into(),
        device: device.parse().unwrap(),
        key_version: 2,
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

impl Fixture {
    fn write(&self, name: &str, text: &str) {
        // By a rename, as an operator's tool does it.
        let (path, new) = (self.path(name), self.path("new"));
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    fn write_master(&self, keys: &[(&str, u8)]) {
        let lines = keys
            .iter()
            .map(|(id, n)| format!("{id} = \"{}\"\n", master(*n).to_text()));
        self.write("master.toml", &format!("[keys]\n{}", lines.collect::<String>()));
    }

    /// Adds the section, with a file of the master key `k1` and an empty list of denied devices.
    fn device_keys(&self, more: &str) {
        self.write_master(&[("k1", 1)]);
        self.write("denied", "# nobody\n");
        let (master, deny) = (self.path("master.toml"), self.path("denied"));
        let section = format!("[device_keys]\nmaster = {master:?}\ndeny = {deny:?}\n{more}\n");
        let config = std::fs::read_to_string(self.path("backend.toml")).unwrap();
        self.write("backend.toml", &(config + &section));
    }
}

/// A backend attached to a frontend, and sessions' numbers.
struct World {
    frontend: Frontend,
    backend: Backend,
    last_slot: u32,
}

impl World {
    async fn start(fixture: &Fixture) -> Self {
        let mut frontend = Frontend::bind(&fixture.path("frontend.sock")).await;
        let backend = fixture.start();
        frontend.until(|c| matches!(c, Command::Ready(_))).await;
        Self {
            frontend,
            backend,
            last_slot: 0,
        }
    }

    async fn bind(&mut self, channel: Channel, credential: &[u8]) -> bound::Result {
        self.last_slot += 1;
        let id = SessionId::mint(SessionParts {
            frontend: FrontendId(1),
            epoch: FrontendEpoch(1),
            shard: ShardId(0),
            slot: Slot(self.last_slot),
            generation: Generation(1),
        });
        let id = Some(id.unwrap().into());
        let bind = Bind {
            id,
            channel: channel.into(),
            credential: Bytes::copy_from_slice(credential),
            ..Default::default()
        };
        self.frontend.send(Command::Bind(bind)).await;
        let mut answer = None;
        self.frontend
            .until(|command| {
                if let Command::Bound(Bound { id: of, result }) = command
                    && *of == id
                {
                    answer.clone_from(result);
                }
                answer.is_some()
            })
            .await;
        answer.unwrap()
    }

    async fn admitted(&mut self, credential: &str) -> Admitted {
        match self.bind(Channel::Ws, credential.as_bytes()).await {
            bound::Result::Admitted(admitted) => admitted,
            bound::Result::Denied(denied) => panic!("{denied:?}"),
        }
    }

    async fn denied(&mut self, credential: &str) -> Denied {
        match self.bind(Channel::Ws, credential.as_bytes()).await {
            bound::Result::Denied(denied) => denied,
            bound::Result::Admitted(_) => panic!("it was admitted"),
        }
    }

    async fn refused(&mut self, credential: &str, status: u32, code: &str) {
        let denied = self.denied(credential).await;
        assert_eq!((denied.status, denied.code.as_str()), (status, code));
        assert_eq!(denied.retryable, status >= 429);
        assert_eq!(denied.retry_after_ms > 0, denied.retryable);
    }

    /// Tries with new claims until the answer has this code; `admitted` for none.
    async fn until_code(&mut self, identity: &Identity, n: u8, wanted: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            let (_, credential) = claim(identity, n, unix_ms());
            let code = match self.bind(Channel::Ws, credential.as_bytes()).await {
                bound::Result::Admitted(_) => "admitted".to_owned(),
                bound::Result::Denied(denied) => denied.code,
            };
            if code == wanted {
                return;
            }
            assert!(Instant::now() < until, "{code} does not become {wanted}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    fn counts(&self, outcome: &str) -> bool {
        self.counts_on("ws", outcome)
    }

    fn counts_on(&self, channel: &str, outcome: &str) -> bool {
        let wanted =
            format!("holdfast_backend_admissions_total{{channel=\"{channel}\",outcome=\"{outcome}\"}} ");
        self.backend.text("/metrics").contains(&wanted)
    }

    /// Ends the backend and gives what it logged.
    async fn end(mut self) -> String {
        self.backend.signal("-KILL");
        tokio::task::spawn_blocking(move || {
            self.backend.wait();
            let mut log = String::new();
            self.backend.log.read_to_string(&mut log).unwrap();
            log
        })
        .await
        .unwrap()
    }
}

fn claim_with(identity: &Identity, key: &DeviceKey, time: Option<u64>) -> (Initiator, String) {
    Initiator::new(SecureChannel::Ws, identity, key, time).unwrap()
}

fn claim(identity: &Identity, n: u8, time: u64) -> (Initiator, String) {
    claim_with(identity, &master(n).device_key(identity), Some(time))
}

/// The device's and the frontend's keys are the same.
fn finish(device: Initiator, admitted: &Admitted) {
    let challenge = admitted.challenge.as_ref().unwrap();
    let message = parse_challenge(std::str::from_utf8(&challenge.message).unwrap()).unwrap();
    let TrafficKeys { to_server, to_device } = device.finish(&message).unwrap();
    assert_eq!(challenge.to_server, to_server.as_bytes()[..]);
    assert_eq!(challenge.to_device, to_device.as_bytes()[..]);
    assert_ne!(to_server, to_device);
}

#[tokio::test]
async fn a_device_with_its_key_gets_a_challenge_that_it_can_finish() {
    let fixture = Fixture::new("");
    fixture.device_keys("");
    let mut world = World::start(&fixture).await;
    let lamp = identity("lamp-1", "k1");
    let (device, credential) = claim(&lamp, 1, unix_ms());
    let admitted = world.admitted(&credential).await;
    assert_eq!(admitted.device, "lamp-1");
    assert_eq!(admitted.principal, b"\x02\0\0\0\x02\x02k1\x04lamp\x04home"[..]);
    finish(device, &admitted);

    let (device, clockless) = claim_with(&lamp, &master(1).device_key(&lamp), None);
    finish(device, &world.admitted(&clockless).await);
    assert!(world.counts("admitted"));

    let keys = [master(1).to_text(), master(1).device_key(&lamp).to_text()];
    let log = world.end().await;
    assert!(keys.iter().all(|key| !log.contains(key)), "{log}");
}

#[tokio::test]
async fn who_is_not_admitted_is_told_why_as_far_as_that_is_its_business() {
    let fixture = Fixture::new("");
    fixture.device_keys("max_clock_skew = \"10s\"\nattempts_per_minute = 1\nattempts_burst = 2");
    fixture.write("denied", "stolen\nleaked <= 2\n");
    let mut world = World::start(&fixture).await;
    let now = unix_ms();
    let of = |device: &str, n: u8, time: u64| claim(&identity(device, "k1"), n, time).1;

    world.refused("", 401, "credential_missing").await;
    world.refused("AQ", 400, "bad_credential").await;
    world.refused("a.b.c", 400, "wrong_channel").await;
    world
        .refused(&claim(&identity("lamp", "k9"), 1, now).1, 401, "key_unknown")
        .await;
    for device in ["lamp", "nobody", "stolen", "leaked"] {
        world.refused(&of(device, 9, now), 401, "handshake_failed").await;
    }
    world.refused(&of("stolen", 1, now), 403, "denied").await;
    world.refused(&of("leaked", 1, now), 403, "denied").await;
    for time in [0, now - 60_000, now + 60_000] {
        world.refused(&of("lamp", 1, time), 401, "clock_skew").await;
    }
    for _ in 0..2 {
        world.admitted(&of("lamp", 1, unix_ms())).await;
    }
    world
        .refused(&of("lamp", 1, unix_ms()), 429, "too_many_attempts")
        .await;
    world.admitted(&of("tv", 1, unix_ms())).await;
    for outcome in [
        "admitted",
        "denied",
        "clock_skew",
        "too_many_attempts",
        "handshake_failed",
    ] {
        assert!(world.counts(outcome), "{outcome}");
    }
}

const PARAMETERS: [u8; PARAMETER_BYTES] = *b"\0\0\0\0\0\0\0\x09\x04\xb0\0\x01\0\0\0\x20";

/// What a frontend passes on of a HELLO datagram.
fn datagram(identity: &Identity, n: u8, time: u64) -> (Initiator, Vec<u8>) {
    let key = master(n).device_key(identity);
    let (device, claim) = Initiator::for_datagrams(&PARAMETERS, identity, &key, Some(time)).unwrap();
    (device, [&PARAMETERS[..], &claim].concat())
}

#[tokio::test]
async fn over_udp_devices_are_judged_as_over_ws_and_challenged_in_bytes() {
    let fixture = Fixture::new("");
    fixture.device_keys("max_clock_skew = \"10s\"\nattempts_per_minute = 1\nattempts_burst = 2");
    fixture.write("denied", "stolen\n");
    let mut world = World::start(&fixture).await;
    let now = unix_ms();
    let of = |device: &str, key_id: &str, n: u8, time: u64| datagram(&identity(device, key_id), n, time).1;
    let mut changed = of("lamp", "k1", 1, now);
    changed[9] ^= 1;
    let ws = claim(&identity("lamp", "k1"), 1, now).1;
    let cases = [
        (Vec::new(), 401, "credential_missing"),
        (b"AQ".to_vec(), 400, "bad_credential"),
        (b"a.b.c".to_vec(), 400, "bad_credential"),
        (ws.into_bytes(), 400, "bad_credential"),
        (of("lamp", "k9", 1, now), 401, "key_unknown"),
        (of("lamp", "k1", 9, now), 401, "handshake_failed"),
        (changed, 401, "handshake_failed"),
        (of("stolen", "k1", 1, now), 403, "denied"),
        (of("lamp", "k1", 1, now - 60_000), 401, "clock_skew"),
    ];
    for (credential, status, code) in cases {
        let bound::Result::Denied(denied) = world.bind(Channel::Udp, &credential).await else {
            panic!("it was admitted and not {code}")
        };
        assert_eq!((denied.status, denied.code.as_str()), (status, code));
        assert!(world.counts_on("udp", code), "{code}");
    }
    for _ in 0..2 {
        let (device, credential) = datagram(&identity("lamp", "k1"), 1, unix_ms());
        let bound::Result::Admitted(admitted) = world.bind(Channel::Udp, &credential).await else {
            panic!("it was not admitted")
        };
        let challenge = admitted.challenge.unwrap();
        assert_eq!(challenge.message.len(), MESSAGE_2_BYTES);
        let keys = device.finish(&challenge.message).unwrap();
        assert_eq!(challenge.to_server, keys.to_server.as_bytes()[..]);
        assert_eq!(challenge.to_device, keys.to_device.as_bytes()[..]);
    }
    // The attempts of a device are counted over both channels.
    world
        .refused(
            &claim(&identity("lamp", "k1"), 1, unix_ms()).1,
            429,
            "too_many_attempts",
        )
        .await;
    assert!(world.counts_on("udp", "admitted"));
}

#[tokio::test]
async fn master_keys_and_denied_devices_change_without_a_restart() {
    let fixture = Fixture::new("");
    fixture.device_keys("attempts_burst = 10000");
    let mut world = World::start(&fixture).await;
    let (old, new) = (identity("lamp", "k1"), identity("lamp", "k2"));
    world.until_code(&old, 1, "admitted").await;
    world.until_code(&new, 2, "key_unknown").await;
    fixture.write_master(&[("k1", 1), ("k2", 2)]);
    world.until_code(&new, 2, "admitted").await;
    world.until_code(&old, 1, "admitted").await;

    // A file that cannot be used changes nothing; the list of denied devices beside it still counts.
    fixture.write("master.toml", "[keys]\nk1 = \"oops\"\n");
    fixture.write("denied", "other\n");
    world.until_code(&identity("other", "k2"), 2, "denied").await;
    let until = Instant::now() + PATIENCE;
    let refused = "holdfast_backend_device_key_reloads_refused_total{file=\"master\"} 1\n";
    while !world.backend.text("/metrics").contains(refused) {
        assert!(Instant::now() < until);
    }
    world.until_code(&old, 1, "admitted").await;

    fixture.write_master(&[("k2", 2)]);
    world.until_code(&old, 1, "key_unknown").await;
    world.until_code(&new, 2, "admitted").await;
}

#[tokio::test]
async fn without_the_section_nobody_is_admitted_on_ws_and_the_log_says_so_once() {
    let fixture = Fixture::new("");
    let mut world = World::start(&fixture).await;
    for _ in 0..3 {
        let (_, credential) = claim(&identity("lamp", "k1"), 1, unix_ms());
        world.refused(&credential, 503, "no_device_keys").await;
    }
    world.refused("a.b.c", 400, "wrong_channel").await;
    let log = world.end().await;
    assert_eq!(log.matches("without [device_keys]").count(), 1, "{log}");
}

/// What the endpoint says depends on the device.
async fn answer(State(asked): State<Arc<tokio::sync::Semaphore>>, body: Bytes) -> (StatusCode, String) {
    asked.add_permits(1);
    let fields: Value = serde_json::from_slice(&body).unwrap();
    let device = fields["device"].as_str().unwrap();
    let key = master(5).device_key(&identity(device, "cloud")).to_text();
    let good = json!({"key": key}).to_string();
    match device {
        "known" => (StatusCode::OK, good),
        "unknown" => (StatusCode::NOT_FOUND, good),
        "broken" => (StatusCode::INTERNAL_SERVER_ERROR, good),
        "garbage" => (StatusCode::OK, "<html>".into()),
        "huge" => (StatusCode::OK, good + &" ".repeat(5000)),
        _ => std::future::pending().await,
    }
}

#[tokio::test]
async fn the_operator_s_endpoint_is_asked_for_keys_that_the_file_does_not_have() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let asked = Arc::new(tokio::sync::Semaphore::new(0));
    let app = axum::Router::new()
        .route("/keys", axum::routing::post(answer))
        .with_state(asked.clone());
    tokio::spawn(axum_serve(listener, app));
    let fixture = Fixture::new("");
    // Only the one that hangs may take so long.
    fixture.device_keys(&format!("endpoint = \"{url}\"\nendpoint_timeout = \"3s\""));
    let mut world = World::start(&fixture).await;
    let of = |device: &str, n: u8| claim(&identity(device, "cloud"), n, unix_ms());

    let (device, credential) = of("known", 5);
    finish(device, &world.admitted(&credential).await);
    // A wrong key, and a device that is not known: nobody can tell which.
    let wrong = world.denied(&of("known", 6).1).await;
    let unknown = world.denied(&of("unknown", 5).1).await;
    assert_eq!(wrong, unknown);
    assert_eq!((wrong.status, wrong.code.as_str()), (401, "key_unknown"));
    for device in ["broken", "garbage", "huge", "hangs"] {
        world.refused(&of(device, 5).1, 503, "unavailable").await;
    }
    assert_eq!(asked.available_permits(), 7);
    world
        .refused(
            &claim(&identity("lamp", "k1"), 9, unix_ms()).1,
            401,
            "handshake_failed",
        )
        .await;
    assert_eq!(asked.available_permits(), 7, "what the file has is not asked for");

    let metrics = world.backend.text("/metrics");
    for (outcome, number) in [
        ("found", 2),
        ("not_found", 1),
        ("status", 1),
        ("bad_answer", 2),
        ("timeout", 1),
    ] {
        let line =
            format!("holdfast_backend_key_endpoint_questions_total{{outcome=\"{outcome}\"}} {number}\n");
        assert!(metrics.contains(&line), "{metrics}");
    }
    let log = world.end().await;
    assert_eq!(
        log.matches("the key endpoint gives no answer").count(),
        1,
        "{log}"
    );
}

#[test]
fn bad_key_files_are_one_line_that_quotes_no_key() {
    let fixture = Fixture::new("");
    fixture.device_keys("");
    let config = fixture.path("backend.toml");
    assert!(run(&["--check", "--config", path(&config)]).status.success());
    let expect = |wanted: &str| {
        let output = run(&["--check", "--config", path(&config)]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(
            text.contains(wanted) && text.trim().lines().count() == 1,
            "{text}"
        );
        text
    };
    let secret = master(1).to_text();
    fixture.write("master.toml", &format!("[keys]\nk1 = {secret}\n"));
    assert!(!expect("master.toml: line 2").contains(&secret));
    fixture.write_master(&[("k1", 1)]);
    fixture.write("denied", "lamp\nlamp <= x\n");
    expect("denied: line 2: \"x\" is not a key version");
}
