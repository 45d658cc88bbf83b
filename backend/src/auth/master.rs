//! The master keys that devices' keys are derived from.

use std::collections::BTreeMap;
use std::path::Path;

use holdfast_proto::secure::{DeviceKey, Identity, MAX_KEY_ID_BYTES, MasterKey};
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use crate::config::{ConfigError, line_number};

/// Most keys in the file. Two are enough to change from one to the next; more are of use where each production run has its own.
pub const MAX_MASTER_KEYS: usize = 16;

/// Master keys by their ids. Has no `Debug`.
#[derive(Default)]
pub struct MasterKeys {
    keys: BTreeMap<String, MasterKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    keys: BTreeMap<String, Secret>,
}

/// A value that is wiped when it is dropped.
struct Secret(Zeroizing<String>);

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

impl MasterKeys {
    /// Reads the text of a file: a table `[keys]` of ids and keys. The error is one line that quotes no key; `path` names the
    /// file in it.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::parse_text(text).map_err(|message| ConfigError::Parse {
            path: path.to_owned(),
            message,
        })
    }

    fn parse_text(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_number(text, span.start));
            format!("line {line}: wanted is a table [keys] of key ids, once each, and keys")
        })?;
        if !(1..=MAX_MASTER_KEYS).contains(&file.keys.len()) {
            return Err(format!(
                "{} keys: allowed are 1 to {MAX_MASTER_KEYS}",
                file.keys.len()
            ));
        }
        let mut keys: BTreeMap<String, MasterKey> = BTreeMap::new();
        for (id, Secret(text)) in file.keys {
            if !is_key_id(&id) {
                return Err(format!(
                    "key id {id:?}: allowed are 1 to {MAX_KEY_ID_BYTES} letters, digits and . _ -"
                ));
            }
            let key: MasterKey = text.parse().map_err(|error| format!("key {id:?}: {error}"))?;
            if let Some((twin, _)) = keys.iter().find(|(_, other)| **other == key) {
                return Err(format!(
                    "key {id:?} is the same as {twin:?}: a new id needs a new key"
                ));
            }
            keys.insert(id, key);
        }
        Ok(Self { keys })
    }

    /// `None` when the master key that the identity names is not there.
    pub fn device_key(&self, identity: &Identity) -> Option<DeviceKey> {
        let master = self.keys.get(&identity.key_id)?;
        Some(master.device_key(identity))
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

pub(crate) fn is_key_id(id: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=MAX_KEY_ID_BYTES).contains(&id.len()) && id.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> String {
        MasterKey::from_bytes(&[n; 32]).unwrap().to_text()
    }

    fn file(keys: impl IntoIterator<Item = (String, String)>) -> String {
        let lines: String = keys
            .into_iter()
            .map(|(id, key)| format!("{id:?} = {key:?}\n"))
            .collect();
        format!("[keys]\n{lines}")
    }

    fn parse(text: &str) -> Result<MasterKeys, String> {
        MasterKeys::parse(Path::new("master.toml"), text).map_err(|error| error.to_string())
    }

    fn numbered(n: usize) -> String {
        file((0..n).map(|i| (format!("k{i}"), key(i as u8 + 1))))
    }

    #[test]
    fn keys_are_found_by_their_ids() {
        let keys = parse(&numbered(MAX_MASTER_KEYS)).unwrap();
        assert_eq!((keys.len(), keys.is_empty()), (MAX_MASTER_KEYS, false));
        let mut identity = Identity {
            key_id: "k1".into(),
            product: String::new(),
            class: String::new(),
            device: "lamp".parse().unwrap(),
            key_version: 1,
        };
        let wanted = MasterKey::from_bytes(&[2; 32]).unwrap().device_key(&identity);
        assert_eq!(keys.device_key(&identity), Some(wanted));
        identity.key_id = "k99".into();
        assert_eq!(keys.device_key(&identity), None);
    }

    #[test]
    fn what_is_wrong_is_said_and_no_key_is_quoted() {
        let secret = key(7);
        let long = "k".repeat(33);
        let pair = |id: &str, key: &str| (id.to_owned(), key.to_owned());
        for (text, wanted) in [
            (String::new(), "line 1: wanted is a table [keys]"),
            ("[keys]\n".to_owned(), "0 keys: allowed are 1 to 16"),
            (numbered(17), "17 keys: allowed are 1 to 16"),
            (file([pair(&long, &secret)]), "key id \"kkk"),
            (file([pair("a b", &secret)]), "key id \"a b\""),
            (file([pair("", &secret)]), "key id \"\""),
            (
                file([pair("k1", &secret[1..])]),
                "key \"k1\": a key is 43 characters",
            ),
            (
                file([pair("k1", &secret), pair("k2", &secret)]),
                "key \"k2\" is the same as \"k1\"",
            ),
            (file([pair("k1", &secret), pair("k1", &key(8))]), "line 3: wanted"),
            (format!("[keys]\nk1 = {secret}\n"), "line 2: wanted"),
            (format!("[keys]\nk1 = 7\nk2 = \"{secret}\""), "line 2: wanted"),
            (format!("key = \"{secret}\""), "line 1: wanted"),
        ] {
            let error = parse(&text).err().unwrap();
            assert!(
                error.starts_with(&format!("master.toml: {wanted}")),
                "{text}: {error}"
            );
            assert!(!error.contains(&secret[1..]) && !error.contains('\n'), "{error}");
        }
    }
}
