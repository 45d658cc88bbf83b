//! The files that a test gateway runs on.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use toml::{Table, Value};

use crate::keys::{Certificates, DeviceKeys, TokenKey};

/// Secret of the API key with every scope, and of one that may only read.
pub const API_KEY: &str = "hf_test_operator_0123456789abcdef0123456789";
pub const READ_KEY: &str = "hf_test_reader_0123456789abcdef0123456789";

/// Where `holdfast up` has its master keys too.
const MASTER_KEYS: &str = "keys/master.toml";

/// One `[[route]]`. Fields that are `None` take the backend's defaults.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Route {
    pub namespace: String,
    pub name: String,
    pub url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_reply_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub one_way: Option<bool>,
}

impl Route {
    pub fn new(namespace: &str, url: String) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: "*".to_owned(),
            url,
            ..Self::default()
        }
    }

    pub fn timeout(mut self, timeout: &str) -> Self {
        self.timeout = Some(timeout.to_owned());
        self
    }

    pub fn order(mut self, order: &str) -> Self {
        self.order = Some(order.to_owned());
        self
    }
}

/// Settings beyond the generated ones, by dotted path.
pub(super) type Settings = Vec<(String, Value)>;

/// Where a frontend listens.
pub(super) struct Listen {
    pub(super) wss: SocketAddr,
    pub(super) ws: SocketAddr,
    pub(super) udp: SocketAddr,
    pub(super) admin: SocketAddr,
}

/// A gateway's directory.
pub(super) struct Layout {
    pub(super) dir: PathBuf,
}

impl Layout {
    /// Writes what all processes share.
    pub(super) fn write_shared(
        &self,
        certificates: &Certificates,
        tokens: &TokenKey,
        keys: &DeviceKeys,
        signing_key: &[u8],
    ) {
        self.write("ca.pem", &certificates.ca_pem);
        self.write("cert.pem", &certificates.chain_pem);
        self.write("key.pem", &certificates.key_pem);
        self.write("token_keys.pem", &tokens.public_pem());
        fs::create_dir_all(self.dir.join("keys")).expect("a directory in our own directory");
        self.write(MASTER_KEYS, &DeviceKeys::master_toml(&[keys]));
        self.write_key("signing.key", signing_key);
        let keys = format!(
            "[[key]]\nid = \"ops\"\nsecret = \"{API_KEY}\"\nscopes = [\"push\", \"read\", \"admin\"]\n\n\
             [[key]]\nid = \"reader\"\nsecret = \"{READ_KEY}\"\nscopes = [\"read\"]\n"
        );
        self.write("api_keys.toml", &keys);
    }

    /// Writes a key in hex and gives its path.
    pub(super) fn write_key(&self, name: &str, key: &[u8]) -> String {
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        self.write(name, &hex);
        self.dir.join(name).display().to_string()
    }

    /// Replaces the routes in one step, as an operator should.
    pub(super) fn write_routes(&self, routes: &[Route]) {
        self.write_routes_as("routes.toml", routes);
    }

    pub(super) fn write_routes_as(&self, name: &str, routes: &[Route]) -> String {
        #[derive(Serialize)]
        struct Routes<'a> {
            route: &'a [Route],
        }
        let text = toml::to_string(&Routes { route: routes }).expect("routes serialise");
        let (new, path) = (format!("{name}.new"), self.dir.join(name));
        self.write(&new, &text);
        fs::rename(self.dir.join(new), &path).expect("a rename");
        path.display().to_string()
    }

    pub(super) fn write_frontend(&self, number: usize, listen: &Listen, settings: &Settings) -> PathBuf {
        let data = self.dir.join(format!("frontend{number}"));
        fs::create_dir_all(&data).expect("a directory in our own directory");
        let mut config = Table::new();
        set(&mut config, "frontend_id", (number as i64).into());
        set(&mut config, "data_dir", text(&data));
        set(&mut config, "link", self.link(number).into());
        set(&mut config, "admin", listen.admin.to_string().into());
        set(&mut config, "ws.listen", listen.ws.to_string().into());
        set(&mut config, "udp.listen", listen.udp.to_string().into());
        set(&mut config, "wss.listen", listen.wss.to_string().into());
        set(&mut config, "wss.certificate", text(&self.dir.join("cert.pem")));
        set(&mut config, "wss.key", text(&self.dir.join("key.pem")));
        self.write_config(&format!("frontend{number}.toml"), config, settings)
    }

    /// A backend attached to frontends 1 to `frontends`.
    pub(super) fn write_backend(
        &self,
        name: &str,
        frontends: usize,
        api: SocketAddr,
        settings: &Settings,
    ) -> PathBuf {
        let links: Vec<Value> = (1..=frontends).map(|n| self.link(n).into()).collect();
        let mut config = Table::new();
        set(&mut config, "name", name.into());
        set(&mut config, "control_dir", text(&self.control_dir()));
        set(&mut config, "frontends", links.into());
        set(&mut config, "api", api.to_string().into());
        set(&mut config, "api_keys", text(&self.dir.join("api_keys.toml")));
        set(&mut config, "token_keys", text(&self.dir.join("token_keys.pem")));
        set(
            &mut config,
            "device_keys.master",
            text(&self.dir.join(MASTER_KEYS)),
        );
        set(&mut config, "routes", text(&self.dir.join("routes.toml")));
        set(&mut config, "signing.key", text(&self.dir.join("signing.key")));
        self.write_config(&format!("{name}.toml"), config, settings)
    }

    /// Where the backends' control sockets are.
    pub(super) fn control_dir(&self) -> PathBuf {
        self.dir.join("control")
    }

    fn write_config(&self, name: &str, mut config: Table, settings: &Settings) -> PathBuf {
        for (path, value) in settings {
            set(&mut config, path, value.clone());
        }
        self.write(name, &config.to_string());
        self.dir.join(name)
    }

    pub(super) fn link(&self, frontend: usize) -> String {
        format!(
            "ipc://{}",
            self.dir.join(format!("link{frontend}/frontend.sock")).display()
        )
    }

    fn write(&self, name: &str, contents: &str) {
        let path = self.dir.join(name);
        fs::write(&path, contents).expect("a file in our own directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("our own file");
    }
}

fn text(path: &Path) -> Value {
    Value::String(path.display().to_string())
}

fn set(table: &mut Table, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            table.insert(path.to_owned(), value);
        }
        Some((head, rest)) => {
            let inner = table.entry(head).or_insert_with(|| Value::Table(Table::new()));
            set(
                inner.as_table_mut().expect("a section of the generated config"),
                rest,
                value,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_reach_into_sections() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout {
            dir: dir.path().to_owned(),
        };
        let any: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let listen = Listen {
            wss: any,
            ws: any,
            udp: any,
            admin: any,
        };
        let settings = vec![
            ("wss.key".to_owned(), "k".into()),
            ("limits.window".to_owned(), 3.into()),
        ];
        let path = layout.write_frontend(7, &listen, &settings);
        let config: Table = fs::read_to_string(path).unwrap().parse().unwrap();
        assert_eq!(config["frontend_id"].as_integer(), Some(7));
        assert_eq!(config["wss"]["key"].as_str(), Some("k"));
        assert_eq!(config["wss"]["listen"].as_str(), Some("127.0.0.1:1"));
        assert_eq!(config["limits"]["window"].as_integer(), Some(3));
    }

    #[test]
    fn routes_leave_defaults_to_the_backend() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout {
            dir: dir.path().to_owned(),
        };
        layout.write_routes(&[Route::new("Demo", "http://x/".into()).timeout("1s")]);
        let text = fs::read_to_string(dir.path().join("routes.toml")).unwrap();
        let routes: Table = text.parse().unwrap();
        assert_eq!(routes["route"][0]["timeout"].as_str(), Some("1s"));
        assert!(routes["route"][0].get("queue").is_none(), "{text}");
    }
}
