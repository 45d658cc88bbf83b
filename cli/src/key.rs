//! `holdfast key`: the keys of devices on ws and udp.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use holdfast_proto::secure::{DeviceKey, Identity, MasterKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::args::{KeyArgs, KeyOf};
use crate::files;
use crate::layout::Layout;

pub(crate) fn run(dir: &Path, args: &KeyArgs) -> Result<ExitCode> {
    let path = match &args.master {
        Some(path) => path.clone(),
        None => Layout::new(dir)?.master_key(),
    };
    let (identity, key) = MasterKeys::open(&path)?.derive(&args.device, &args.of)?;
    let line = if args.json {
        render(&identity, &key)?
    } else {
        Zeroizing::new(key.to_text())
    };
    writeln!(std::io::stdout(), "{}", *line)?;
    Ok(ExitCode::SUCCESS)
}

/// A file of master keys, as the backend reads it.
pub(crate) struct MasterKeys {
    path: PathBuf,
    keys: BTreeMap<String, MasterKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    keys: BTreeMap<String, String>,
}

impl MasterKeys {
    /// No error quotes what stands in the file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = files::read_secret_if_there(path)?
            .ok_or_else(|| anyhow!("{shown} does not exist (`holdfast up` makes one under its --dir)"))?;
        let file: File = toml::from_str(&text)
            .map_err(|_| anyhow!("{shown} is not a TOML file with a table [keys] of key ids and keys"))?;
        let mut keys = BTreeMap::new();
        for (id, key) in file.keys {
            let key = Zeroizing::new(key);
            let key: MasterKey = key.parse().with_context(|| format!("{shown}: key {id:?}"))?;
            keys.insert(id, key);
        }
        if keys.is_empty() {
            return Err(anyhow!("{shown} holds no key"));
        }
        Ok(Self {
            path: path.to_owned(),
            keys,
        })
    }

    /// Who `device` is with these, and its key.
    pub(crate) fn derive(&self, device: &str, of: &KeyOf) -> Result<(Identity, DeviceKey)> {
        let (key_id, master) = self.find(of.key_id.as_deref())?;
        let identity = identity(device, key_id, of)?;
        let key = master.device_key(&identity);
        Ok((identity, key))
    }

    /// The named one, or the only one.
    fn find(&self, id: Option<&str>) -> Result<(&str, &MasterKey)> {
        let found = match id {
            Some(id) => self.keys.get_key_value(id),
            None => self.keys.iter().next().filter(|_| self.keys.len() == 1),
        };
        found.map(|(id, key)| (id.as_str(), key)).ok_or_else(|| {
            let all: Vec<&str> = self.keys.keys().map(String::as_str).collect();
            let (path, all) = (self.path.display(), all.join(", "));
            match id {
                Some(id) => anyhow!("{path} has no key {id:?}, but {all}"),
                None => anyhow!("{path} has several keys; choose one with --key-id: {all}"),
            }
        })
    }
}

/// What a device with this key id says of itself.
pub(crate) fn identity(device: &str, key_id: &str, of: &KeyOf) -> Result<Identity> {
    let identity = Identity {
        key_id: key_id.to_owned(),
        product: of.product.clone(),
        class: of.class.clone(),
        device: device.parse()?,
        key_version: of.key_version,
    };
    identity.check()?;
    Ok(identity)
}

/// What a device must be told.
#[derive(Serialize)]
struct Shown<'a> {
    device: &'a str,
    product: &'a str,
    class: &'a str,
    key_id: &'a str,
    key_version: u32,
    key: &'a str,
}

/// More than the longest identity and a key take, so that the text does not grow and leave a key where it was.
const SHOWN_BYTES: usize = 1024;

fn render(identity: &Identity, key: &DeviceKey) -> Result<Zeroizing<String>> {
    let key = Zeroizing::new(key.to_text());
    let shown = Shown {
        device: identity.device.as_str(),
        product: &identity.product,
        class: &identity.class,
        key_id: &identity.key_id,
        key_version: identity.key_version,
        key: &key,
    };
    let mut json = Zeroizing::new(Vec::with_capacity(SHOWN_BYTES));
    serde_json::to_writer(&mut *json, &shown)?;
    Ok(Zeroizing::new(String::from_utf8(std::mem::take(&mut *json))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Command};
    use clap::Parser;

    fn master(n: u8) -> String {
        MasterKey::from_bytes(&[n; 32]).unwrap().to_text()
    }

    /// What the arguments give with a file of this text.
    fn derived(text: &str, more: &[&str]) -> Result<(Identity, DeviceKey), String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.toml");
        std::fs::write(&path, text).unwrap();
        let args = Args::parse_from([&["holdfast", "key", "lamp"], more].concat());
        let Command::Key(args) = args.command else {
            panic!()
        };
        MasterKeys::open(&path)
            .and_then(|keys| keys.derive(&args.device, &args.of))
            .map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn the_key_is_that_which_the_backend_derives() {
        let file = format!("[keys]\nk1 = \"{}\"\nk2 = \"{}\"\n", master(1), master(2));
        let options = [
            "--key-id",
            "k2",
            "--product",
            "p",
            "--class",
            "c",
            "--key-version",
            "9",
        ];
        let (identity, key) = derived(&file, &options).unwrap();
        let wanted = Identity {
            key_id: "k2".into(),
            product: "p".into(),
            class: "c".into(),
            device: "lamp".parse().unwrap(),
            key_version: 9,
        };
        assert_eq!(identity, wanted);
        assert_eq!(key, MasterKey::from_bytes(&[2; 32]).unwrap().device_key(&wanted));
        let shown: serde_json::Value = serde_json::from_str(&render(&identity, &key).unwrap()).unwrap();
        assert_eq!(shown["key"], key.to_text());
        assert_eq!(
            (&shown["key_id"], &shown["key_version"]),
            (&"k2".into(), &9.into())
        );
    }

    #[test]
    fn a_file_that_others_can_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.toml");
        std::fs::write(&path, format!("[keys]\nk1 = \"{}\"\n", master(1))).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o646)).unwrap();
        let error = MasterKeys::open(&path).err().unwrap();
        let error = format!("{error:#}");
        assert!(
            error.contains("master.toml: it holds a secret and has mode 0646"),
            "{error}"
        );
    }

    #[test]
    fn the_longest_identity_is_shown_without_growing() {
        let longest = Identity {
            key_id: "k".repeat(32),
            product: "p".repeat(64),
            class: "c".repeat(64),
            device: "d".repeat(128).parse().unwrap(),
            key_version: u32::MAX,
        };
        longest.check().unwrap();
        let key = MasterKey::from_bytes(&[2; 32]).unwrap().device_key(&longest);
        assert_eq!(render(&longest, &key).unwrap().capacity(), SHOWN_BYTES);
    }

    #[test]
    fn the_only_key_needs_no_name() {
        let (identity, _) = derived(&format!("[keys]\nold = \"{}\"\n", master(1)), &[]).unwrap();
        assert_eq!((identity.key_id.as_str(), identity.key_version), ("old", 1));
        assert!(identity.product.is_empty() && identity.class.is_empty());
    }

    #[test]
    fn what_is_wrong_is_said_and_no_key_is_quoted() {
        let secret = master(7);
        let two = format!("[keys]\nk1 = \"{secret}\"\nk2 = \"{}\"\n", master(2));
        for (text, options, wanted) in [
            (two.as_str(), &[][..], "--key-id: k1, k2"),
            (&two, &["--key-id", "k3"], "has no key \"k3\", but k1, k2"),
            (&two, &["--key-id", "k1", "--product", "a b"], "a product has"),
            (
                &two,
                &["--key-id", "k1", "--class", &"c".repeat(65)],
                "a class has",
            ),
            ("[keys]\n", &[], "holds no key"),
            (&format!("[keys]\nk1 = {secret}"), &[], "is not a TOML file"),
            (
                &format!("[keys]\nk1 = \"{secret}x\""),
                &[],
                "key \"k1\": a key is 43",
            ),
        ] {
            let error = derived(text, options).unwrap_err();
            assert!(error.contains(wanted) && !error.contains(&secret), "{error}");
        }
        let error = MasterKeys::open(Path::new("/nowhere/master.toml")).err().unwrap();
        assert!(error.to_string().contains("/nowhere/master.toml does not exist"));
    }
}
