//! The configuration files of frontend, backend and routes: made where missing. Those that are there are kept, also what
//! was changed in them, but for the keys that follow from DIR and the ports.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use holdfast_proto::config::Interval;
use serde::Deserialize;
use toml::{Table, Value};

use super::Ports;
use crate::files::{self, Access};
use crate::layout::Layout;

pub(super) fn ensure(layout: &Layout, ports: &Ports) -> Result<()> {
    ensure_table(
        &layout.frontend_config(),
        FRONTEND_HEAD,
        &frontend_keys(layout, ports)?,
    )?;
    ensure_table(
        &layout.backend_config(),
        BACKEND_HEAD,
        &backend_keys(layout, ports)?,
    )?;
    ensure_routes(&layout.routes(), ports)
}

/// What backends are given to finish their work, as they would read it; a value that is none is theirs to refuse.
pub(super) fn drain_grace(layout: &Layout) -> Duration {
    #[derive(Deserialize)]
    struct Grace {
        drain_grace: Interval,
    }
    let text = std::fs::read_to_string(layout.backend_config()).unwrap_or_default();
    toml::from_str::<Grace>(&text).map_or(DEFAULT_DRAIN_GRACE, |grace| grace.drain_grace.get())
}

/// A dotted key, and its value.
type Setting = (&'static str, Value);

fn frontend_keys(layout: &Layout, ports: &Ports) -> Result<Vec<Setting>> {
    Ok(vec![
        ("frontend_id", Value::Integer(1)),
        ("data_dir", text(&layout.frontend_data())?),
        ("link", Value::String(link(layout)?)),
        ("admin", Value::String(format!("127.0.0.1:{}", ports.admin))),
        ("ws.listen", Value::String(format!("127.0.0.1:{}", ports.ws))),
        ("udp.listen", Value::String(format!("127.0.0.1:{}", ports.udp))),
        ("wss.listen", Value::String(format!("127.0.0.1:{}", ports.wss))),
        ("wss.certificate", text(&layout.certificate())?),
        ("wss.key", text(&layout.certificate_key())?),
    ])
}

fn backend_keys(layout: &Layout, ports: &Ports) -> Result<Vec<Setting>> {
    Ok(vec![
        ("name", Value::String("backend".into())),
        ("frontends", Value::Array(vec![Value::String(link(layout)?)])),
        ("control_dir", text(&layout.control_dir())?),
        ("api", Value::String(format!("127.0.0.1:{}", ports.api))),
        ("api_keys", text(&layout.api_keys())?),
        ("token_keys", text(&layout.token_keys())?),
        ("routes", text(&layout.routes())?),
        ("device_keys.master", text(&layout.master_key())?),
        ("signing.key", text(&layout.signing_key())?),
    ])
}

fn link(layout: &Layout) -> Result<String> {
    let path = layout.link_socket();
    let path = utf8(&path)?;
    if path.len() > MAX_SOCKET_PATH_BYTES {
        let root = layout.root().display();
        return Err(anyhow!(
            "the path {root} is too long for a Unix socket in it; choose a shorter --dir"
        ));
    }
    Ok(format!("ipc://{path}"))
}

fn text(path: &Path) -> Result<Value> {
    Ok(Value::String(utf8(path)?.to_owned()))
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str()
        .ok_or_else(|| anyhow!("the path {} is not UTF-8", path.display()))
}

fn ensure_table(path: &Path, head: &str, settings: &[Setting]) -> Result<()> {
    let there = files::read_if_there(path)?;
    let mut table: Table = match &there {
        Some(text) => toml::from_str(text).map_err(|e| anyhow!("{}: {}", path.display(), e.message()))?,
        None => Table::new(),
    };
    let mut changed = there.is_none();
    for (key, value) in settings {
        changed |= set(&mut table, key, value).with_context(|| format!("{}", path.display()))?;
    }
    if !changed {
        return Ok(());
    }
    let body = toml::to_string(&table).with_context(|| format!("{}", path.display()))?;
    files::write(path, format!("{head}{body}").as_bytes(), Access::Public)
}

/// Gives whether the table was changed.
fn set(table: &mut Table, key: &str, value: &Value) -> Result<bool> {
    let Some((section, key)) = key.split_once('.') else {
        return Ok(table.insert(key.to_owned(), value.clone()).as_ref() != Some(value));
    };
    let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
    let section = section
        .as_table_mut()
        .ok_or_else(|| anyhow!("{key} is not in a table"))?;
    set(section, key, value)
}

/// Routes are the user's to edit; only the demo service's port is followed.
fn ensure_routes(path: &Path, ports: &Ports) -> Result<()> {
    let Some(text) = files::read_if_there(path)? else {
        let text = ROUTES.replace("{port}", &ports.demo.to_string());
        return files::write(path, text.as_bytes(), Access::Public);
    };
    let moved = move_demo(&text, ports.demo);
    if moved == text {
        Ok(())
    } else {
        files::write(path, moved.as_bytes(), Access::Public)
    }
}

/// Points each `http://127.0.0.1:<port>/demo` to the demo service's present port.
fn move_demo(text: &str, port: u16) -> String {
    let mut moved = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(DEMO_HOST) {
        let (before, after) = rest.split_at(start + DEMO_HOST.len());
        let digits = after.bytes().take_while(u8::is_ascii_digit).count();
        moved.push_str(before);
        let is_demo = digits > 0 && after[digits..].starts_with("/demo\"");
        moved.push_str(&if is_demo {
            port.to_string()
        } else {
            after[..digits].to_owned()
        });
        rest = &after[digits..];
    }
    moved.push_str(rest);
    moved
}

/// The backend's own default.
const DEFAULT_DRAIN_GRACE: Duration = Duration::from_secs(30);

const DEMO_HOST: &str = "http://127.0.0.1:";

/// `sun_path` has 108 bytes; the frontend binds a temporary name beside the final one first, and `control/backend-9999.sock`
/// is longer than the link's `link/frontend.sock`.
const MAX_SOCKET_PATH_BYTES: usize = 90;

const FRONTEND_HEAD: &str =
    "# Made by `holdfast up`, which sets these keys again at each start; others may be added.\n";
const BACKEND_HEAD: &str = FRONTEND_HEAD;

const ROUTES: &str = r#"# Which service answers which request. Watched: a change takes effect without a restart.
# `namespace` and `name` are exact or "*"; the most specific route wins.

[[route]]
namespace = "Demo"
name = "*"
url = "http://127.0.0.1:{port}/demo"
timeout = "5s"

# Slow may take up to a minute.
[[route]]
namespace = "Demo"
name = "Slow"
url = "http://127.0.0.1:{port}/demo"
timeout = "65s"
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_made_then_kept_but_for_ports() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path()).unwrap();
        ensure(&layout, &Ports::from_base(7400)).unwrap();
        let made = std::fs::read_to_string(layout.frontend_config()).unwrap();
        ensure(&layout, &Ports::from_base(7400)).unwrap();
        assert_eq!(std::fs::read_to_string(layout.frontend_config()).unwrap(), made);

        std::fs::write(layout.frontend_config(), format!("{made}handshake = \"9s\"\n")).unwrap();
        ensure(&layout, &Ports::from_base(7500)).unwrap();
        let table: Table =
            toml::from_str(&std::fs::read_to_string(layout.frontend_config()).unwrap()).unwrap();
        assert_eq!(table["wss"]["listen"].as_str(), Some("127.0.0.1:7500"));
        assert_eq!(table["ws"]["listen"].as_str(), Some("127.0.0.1:7504"));
        assert_eq!(table["udp"]["listen"].as_str(), Some("127.0.0.1:7504"));
        assert_eq!(
            table["wss"]["handshake"].as_str(),
            Some("9s"),
            "what was added stays"
        );
        let backend: Table =
            toml::from_str(&std::fs::read_to_string(layout.backend_config()).unwrap()).unwrap();
        assert_eq!(backend["api"].as_str(), Some("127.0.0.1:7501"));
        assert!(
            backend["signing"]["key"]
                .as_str()
                .unwrap()
                .ends_with("signing.key")
        );
        let master = backend["device_keys"]["master"].as_str().unwrap();
        assert!(master.ends_with("keys/master.toml"));
        let routes = std::fs::read_to_string(layout.routes()).unwrap();
        assert_eq!(routes.matches("127.0.0.1:7503/demo").count(), 2);
    }

    #[test]
    fn the_grace_is_the_backend_s_own() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path()).unwrap();
        assert_eq!(drain_grace(&layout), DEFAULT_DRAIN_GRACE);
        for (text, grace) in [
            ("name = \"b\"\ndrain_grace = \"1m 30s\"", Duration::from_secs(90)),
            ("drain_grace = 5", DEFAULT_DRAIN_GRACE),
        ] {
            std::fs::write(layout.backend_config(), text).unwrap();
            assert_eq!(drain_grace(&layout), grace);
        }
    }

    #[test]
    fn only_the_demo_url_moves() {
        let text = r#"url = "http://127.0.0.1:7403/demo"
url = "http://127.0.0.1:9000/mine" # http://127.0.0.1:"#;
        assert_eq!(move_demo(text, 1), text.replace("7403", "1"));
    }

    #[test]
    fn a_directory_too_deep_for_a_socket_is_refused() {
        let layout = Layout::new(Path::new(&format!("/tmp/{}", "d".repeat(90)))).unwrap();
        assert!(link(&layout).unwrap_err().to_string().contains("shorter"));
    }
}
