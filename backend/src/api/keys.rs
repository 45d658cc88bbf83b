//! API keys: who may call what.
//!
//! Secrets are compared by their SHA-256 digests in constant time, and every key is looked at, so that the time of an
//! answer says nothing about them. Nothing here prints one.

use std::path::Path;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{AUTHORIZATION, HeaderMap};
use axum::middleware::Next;
use axum::response::Response;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::Problem;
use crate::config::{ConfigError, line_number, secrets};

/// Shortest secret, in characters.
pub const MIN_SECRET_CHARS: usize = 32;
/// Most keys in a file: each costs a comparison per request.
pub const MAX_API_KEYS: usize = 1024;
const MAX_SECRET_CHARS: usize = 512;
const MAX_ID_BYTES: usize = 64;

/// What a key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Sending messages.
    Push,
    /// Presence and statistics.
    Read,
    /// Closing sessions.
    Admin,
}

impl Scope {
    fn label(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }
}

/// All keys. Has no `Debug`.
pub struct ApiKeys {
    keys: Vec<Key>,
}

struct Key {
    digest: [u8; 32],
    scopes: Vec<Scope>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    key: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: String,
    secret: String,
    scopes: Vec<Scope>,
}

impl ApiKeys {
    /// Reads `[[key]] id, secret, scopes` from a TOML file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = secrets::read_secret(path)?;
        Self::parse(&text).map_err(|message| ConfigError::Parse {
            path: path.to_owned(),
            message,
        })
    }

    /// Reads the text of a key file. The error is one line that quotes no secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_number(text, span.start));
            format!("line {line}: wanted are [[key]] tables of id, secret and scopes (push, read, admin)")
        })?;
        if file.key.is_empty() || file.key.len() > MAX_API_KEYS {
            return Err(format!(
                "{} keys: allowed are 1 to {MAX_API_KEYS}",
                file.key.len()
            ));
        }
        let mut keys: Vec<Key> = Vec::with_capacity(file.key.len());
        for (i, entry) in file.key.iter().enumerate() {
            let wrong = |what: &str| format!("key {} ({:?}): {what}", i + 1, entry.id);
            entry.check().map_err(|what| wrong(&what))?;
            if file.key[..i].iter().any(|earlier| earlier.id == entry.id) {
                return Err(wrong("the id is there twice"));
            }
            let digest = Sha256::digest(entry.secret.as_bytes()).into();
            if keys.iter().any(|earlier| earlier.digest == digest) {
                return Err(wrong("another key has the same secret"));
            }
            keys.push(Key {
                digest,
                scopes: entry.scopes.clone(),
            });
        }
        Ok(Self { keys })
    }

    /// The scopes of the key whose secret this is.
    fn find(&self, secret: &[u8]) -> Option<&[Scope]> {
        let digest: [u8; 32] = Sha256::digest(secret).into();
        let (mut found, mut place) = (Choice::from(0), 0u32);
        for (i, key) in self.keys.iter().enumerate() {
            let same = key.digest.ct_eq(&digest);
            place.conditional_assign(&(i as u32), same);
            found |= same;
        }
        if bool::from(found) {
            self.keys.get(place as usize).map(|key| key.scopes.as_slice())
        } else {
            None
        }
    }

    fn check(&self, headers: &HeaderMap, scope: Scope) -> Result<(), Problem> {
        let secret = bearer(headers).ok_or_else(|| {
            Problem::unauthorized("api_key_missing", "Authorization: Bearer <API key> is required")
        })?;
        let scopes = self
            .find(secret)
            .ok_or_else(|| Problem::unauthorized("api_key_invalid", "the API key is not known"))?;
        if scopes.contains(&scope) {
            return Ok(());
        }
        let detail = format!("the API key lacks the scope {}", scope.label());
        Err(Problem::new(StatusCode::FORBIDDEN, "scope_missing", detail))
    }
}

impl Entry {
    fn check(&self) -> Result<(), String> {
        if !(1..=MAX_ID_BYTES).contains(&self.id.len()) {
            return Err(format!("id: allowed are 1 to {MAX_ID_BYTES} bytes"));
        }
        let visible = self.secret.bytes().all(|b| b.is_ascii_graphic());
        if !visible || !(MIN_SECRET_CHARS..=MAX_SECRET_CHARS).contains(&self.secret.len()) {
            let bounds = format!("{MIN_SECRET_CHARS} to {MAX_SECRET_CHARS}");
            return Err(format!("secret: allowed are {bounds} visible ASCII characters"));
        }
        if self.scopes.is_empty() {
            Err("scopes: at least one of push, read, admin".to_owned())
        } else {
            Ok(())
        }
    }
}

/// The credential of `Authorization: Bearer` (RFC 6750 section 2.1; the scheme's case does not matter).
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, secret) = value.split_at_checked(7)?;
    let secret = secret.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !secret.is_empty()).then_some(secret)
}

/// What a route asks for.
#[derive(Clone)]
pub(super) struct Guard {
    pub(super) keys: Arc<ApiKeys>,
    pub(super) scope: Scope,
}

/// Lets a request pass if its key has the scope; nothing of its body was read by then.
pub(super) async fn require(
    State(guard): State<Guard>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    guard.keys.check(request.headers(), guard.scope)?;
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "hf_0123456789012345678901234567890";

    fn key(id: &str, secret: &str, scopes: &str) -> String {
        format!("[[key]]\nid = {id:?}\nsecret = {secret:?}\nscopes = [{scopes}]\n")
    }

    #[test]
    fn keys_are_found_by_their_whole_secret() {
        let text = key("a", SECRET, "\"push\"") + &key("b", &SECRET.to_uppercase(), "\"read\", \"admin\"");
        let keys = ApiKeys::parse(&text).unwrap();
        assert_eq!(keys.find(SECRET.as_bytes()), Some(&[Scope::Push][..]));
        assert_eq!(
            keys.find(SECRET.to_uppercase().as_bytes()),
            Some(&[Scope::Read, Scope::Admin][..])
        );
        assert_eq!(keys.find(&SECRET.as_bytes()[1..]), None);
        assert_eq!(keys.find(b""), None);
    }

    #[test]
    fn files_are_checked_and_secrets_never_quoted() {
        for (text, wanted) in [
            (String::new(), "0 keys"),
            (
                key("a", "hf_short", "\"push\""),
                "key 1 (\"a\"): secret: allowed are 32 to 512",
            ),
            (key("a", &SECRET.replace('_', " "), "\"push\""), "visible ASCII"),
            (key("a", SECRET, ""), "scopes: at least one"),
            (key("a", SECRET, "\"root\""), "line 4: wanted are"),
            (key("", SECRET, "\"push\""), "id: allowed"),
            (
                key("a", SECRET, "\"push\"") + &key("a", &SECRET.to_uppercase(), "\"push\""),
                "the id is there twice",
            ),
            (
                key("a", SECRET, "\"push\"") + &key("b", SECRET, "\"push\""),
                "the same secret",
            ),
            (
                format!("[[key]]\nid = \"a\"\nsecret = 5\nscopes = \"{SECRET}\""),
                "line",
            ),
        ] {
            let error = ApiKeys::parse(&text).err().unwrap();
            assert!(
                error.contains(wanted) && !error.contains("hf_") && !error.contains('\n'),
                "{error}"
            );
        }
    }

    #[test]
    fn only_bearer_credentials_count() {
        let with = |value: &str| HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]);
        assert_eq!(bearer(&with("bEaReR  x ")), Some(&b"x"[..]));
        for other in ["Bearer", "Bearer ", "Basic eDp4", "x", ""] {
            assert_eq!(bearer(&with(other)), None);
        }
    }
}
