//! Backends on other machines: through the tunnel every promise holds as it does on the local socket, and nobody without the key
//! gets through.

mod cost;
mod faults;
mod keys;
mod strangers;

use std::net::SocketAddr;

use holdfast_proto::secure::DeviceKey;
use holdfast_tests::address::{free_port, own_address};
use holdfast_tests::gateway::{Builder, Gateway};
use holdfast_tests::service::Service;
use tempfile::TempDir;
use toml::Value;

const ECHO: (&str, &str) = ("Demo", "Echo");
const OPEN: &str = "holdfast_tunnel_open";

/// Where a gateway's tunnel listens, and its key.
struct Place {
    listen: SocketAddr,
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            listen: free_port(own_address()),
            directory: tempfile::tempdir().expect("a temporary directory"),
        };
        place.write_key("link.key", 1);
        place
    }

    /// Writes a link key and gives its path.
    fn write_key(&self, name: &str, byte: u8) -> String {
        self.write_keys(name, &[byte])
    }

    /// The same with one key a line.
    fn write_keys(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.directory.path().join(name);
        let keys = bytes.iter().map(|byte| link_key(*byte).to_text());
        let text = keys.collect::<Vec<_>>().join("\n");
        std::fs::write(&path, text).expect("a file in our own directory");
        path.display().to_string()
    }

    /// A gateway whose backends all come through the tunnel at `through`: its own address, or that of somebody between.
    fn gateway<'a>(&self, service: &'a Service, through: SocketAddr) -> Builder<'a> {
        let key = self.directory.path().join("link.key").display().to_string();
        let frontends = Value::Array(vec![format!("tcp://{through}").into()]);
        Gateway::builder(service)
            .frontend_set("tunnel.listen", self.listen.to_string())
            .frontend_set("tunnel.key", key.clone())
            .backend_set("frontends", frontends)
            .backend_set("link_key", key)
    }
}

fn link_key(byte: u8) -> DeviceKey {
    DeviceKey::from_bytes(&[byte; 32]).expect("32 bytes")
}
