//! Master keys and denials change under connected devices: who is connected notices nothing, who comes is judged by what is in force.

use std::fs;
use std::path::PathBuf;

use holdfast_tests::Over;
use holdfast_tests::device::Device;
use holdfast_tests::dial::Dial;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::keys::DeviceKeys;
use holdfast_tests::service::Service;
use http::Method;
use serde_json::json;
use tempfile::TempDir;

mod ws {
    holdfast_tests::over_one_channel! { Ws: master_keys_rotate_under_connected_devices, a_denied_device_stays_until_it_is_closed }
}
mod udp {
    holdfast_tests::over_one_channel! { Udp: master_keys_rotate_under_connected_devices, a_denied_device_stays_until_it_is_closed }
}

const RELOADS: &str = "holdfast_backend_device_key_reloads_total";
const REFUSED: &str = "holdfast_backend_device_key_reloads_refused_total";
const ENTRIES: &str = "holdfast_backend_device_key_entries";
const ADMISSIONS: &str = "holdfast_backend_admissions_total";

/// A gateway whose key files the test changes.
struct Setup {
    gateway: Gateway,
    deny: PathBuf,
    _dir: TempDir,
}

impl Setup {
    async fn start(over: Over, service: &Service) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let deny = dir.path().join("deny");
        fs::write(&deny, "# nobody\n").unwrap();
        let gateway = Gateway::builder(service)
            .over(over)
            .backend_set("device_keys.deny", deny.display().to_string())
            .start()
            .await;
        Self {
            gateway,
            deny,
            _dir: dir,
        }
    }

    /// Master keys change in one step, as an operator should change them.
    async fn apply_keys(&self, keys: &[&DeviceKeys]) {
        let path = self.gateway.path("keys/master.toml");
        let new = path.with_extension("new");
        self.judged("master", RELOADS, || {
            fs::write(&new, DeviceKeys::master_toml(keys)).unwrap();
            fs::rename(&new, &path).unwrap();
        })
        .await;
        let file = [("file", "master")];
        let in_force = self.gateway.backends[0].metric(ENTRIES, &file).await;
        assert_eq!(in_force, keys.len() as f64);
    }

    /// Waits until the backend has judged what `change` did to a file, and counted it there.
    async fn judged(&self, file: &str, counter: &str, change: impl FnOnce()) {
        let (backend, labels) = (&self.gateway.backends[0], [("file", file)]);
        let [reloads, refused] = [RELOADS, REFUSED].map(|counter| backend.metric(counter, &labels));
        let (reloads, refused) = (reloads.await, refused.await);
        change();
        let before = if counter == RELOADS { reloads } else { refused };
        backend.wait_for_series(counter, &labels, |n| n > before).await;
        let after = backend.metric(RELOADS, &labels).await + backend.metric(REFUSED, &labels).await;
        assert_eq!(after, reloads + refused + 1.0, "{file} was judged once");
    }

    /// A way for `id` with its key under this master key.
    fn dial(&self, keys: &DeviceKeys, id: &str) -> Dial {
        let identity = keys.identity(id);
        let key = keys.device_key(&identity);
        self.gateway.dial_as(id).key(identity, key)
    }

    async fn gets_in(&self, keys: &DeviceKeys, id: &str) -> Device {
        let mut device = self.dial(keys, id).connect().await.unwrap();
        device.hello().await;
        self.serves(&mut device, id).await;
        device
    }

    /// Requests are answered, and pushes arrive.
    async fn serves(&self, device: &mut Device, id: &str) {
        device.request(("Demo", "Echo"), "r", &json!({"of": id})).await;
        assert_eq!(device.next_reply().await.reply_to, "r", "{id}");
        let answer = self.gateway.push(json!({"device": id}), json!(id)).await;
        assert_eq!(answer["results"].as_array().map(Vec::len), Some(1), "{answer}");
        assert_eq!(device.next_push().await.json(), json!(id));
    }

    async fn outcomes(&self, outcome: &str) -> f64 {
        let labels = [("outcome", outcome)];
        self.gateway.backends[0].metric(ADMISSIONS, &labels).await
    }
}

async fn master_keys_rotate_under_connected_devices(over: Over) {
    let service = Service::start().await;
    let setup = Setup::start(over, &service).await;
    let (k1, k2) = (&setup.gateway.keys, &DeviceKeys::generate_as("k2"));
    let mut old = setup.gets_in(k1, "old").await;
    setup
        .dial(k2, "early")
        .refusal()
        .await
        .expect_problem(401, "key_unknown");

    // Both are in force while devices are moved from one to the other.
    setup.apply_keys(&[k1, k2]).await;
    let mut late = setup.gets_in(k1, "late").await;
    let mut moved = setup.gets_in(k2, "moved").await;

    setup.apply_keys(&[k2]).await;
    setup
        .dial(k1, "too-late")
        .refusal()
        .await
        .expect_problem(401, "key_unknown");
    let mut new = setup.gets_in(k2, "new").await;
    for (device, id) in [(&mut old, "old"), (&mut late, "late"), (&mut moved, "moved")] {
        setup.serves(device, id).await;
    }
    assert_eq!(setup.outcomes("key_unknown").await, 2.0);

    // Nothing that cannot be used takes the place of what is in force: half a file, a bad key, none at all.
    let master = setup.gateway.path("keys/master.toml");
    let good = DeviceKeys::master_toml(&[k1, k2]);
    let half = &good[..good.len() - 20];
    for bad in [
        Some(half),
        Some("[keys]\nk2 = \"short\"\n"),
        Some("[keys]\n"),
        None,
    ] {
        setup
            .judged("master", REFUSED, || match bad {
                Some(text) => fs::write(&master, text).unwrap(),
                None => fs::remove_file(&master).unwrap(),
            })
            .await;
        setup
            .dial(k1, "too-late")
            .refusal()
            .await
            .expect_problem(401, "key_unknown");
        setup.serves(&mut old, "old").await;
    }
    setup.gets_in(k2, "newest").await;
    // And the whole of it does.
    setup.apply_keys(&[k1, k2]).await;
    setup.gets_in(k1, "welcome").await;
    setup.serves(&mut new, "new").await;
    setup.serves(&mut old, "old").await;
}

async fn a_denied_device_stays_until_it_is_closed(over: Over) {
    let service = Service::start().await;
    let setup = Setup::start(over, &service).await;
    let (gateway, k1) = (&setup.gateway, &setup.gateway.keys);
    let mut stolen = setup.gets_in(k1, "stolen").await;
    let mut honest = setup.gets_in(k1, "honest").await;
    let deny = |text: &'static str| {
        let path = setup.deny.clone();
        move || fs::write(path, text).unwrap()
    };
    setup.judged("deny", RELOADS, deny("stolen <= 1\nother\n")).await;
    // What is denied is to come in, and nobody is thrown out by a file.
    for (device, id) in [(&mut stolen, "stolen"), (&mut honest, "honest")] {
        setup.serves(device, id).await;
    }
    let closed = gateway.api(Method::DELETE, "/v1/devices/stolen", None).await;
    assert_eq!(closed.status, 204);
    assert_eq!(stolen.until_closed().await.1, 4001);
    let problem = setup
        .dial(k1, "stolen")
        .refusal()
        .await
        .expect_problem(403, "denied");
    assert_eq!(problem["retryable"], false, "{problem}");
    assert_eq!(setup.outcomes("denied").await, 1.0);

    // A line that cannot be read lets nobody back in and locks nobody out.
    setup.judged("deny", REFUSED, deny("honest\nsto len\n")).await;
    setup
        .dial(k1, "stolen")
        .refusal()
        .await
        .expect_problem(403, "denied");
    setup.serves(&mut honest, "honest").await;
    let mut honest = setup.gets_in(k1, "honest").await;

    // A new version of its key is another key.
    let mut identity = k1.identity("stolen");
    identity.key_version = 2;
    let key = k1.device_key(&identity);
    let again = gateway.dial_as("stolen").key(identity, key).connect().await;
    again.unwrap().hello().await;
    setup.judged("deny", RELOADS, deny("# nobody\n")).await;
    setup.gets_in(k1, "stolen").await;
    setup.serves(&mut honest, "honest").await;
}
