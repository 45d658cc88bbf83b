//! Bearer tokens: JWTs (RFC 7519) signed with Ed25519 (RFC 8037).
//!
//! The algorithm is fixed here; what the token's header claims is only compared with it. Times are judged against the `now`
//! that is passed in, not the library's clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holdfast_proto::DeviceId;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, TokenData, Validation};
use serde::Deserialize;

use super::keys::{TokenKey, TokenKeys};
use super::principal::{MAX_TOKEN_ID_BYTES, Principal};
use super::{Denied, Grant};

/// Longest token, in bytes: fits a header line, and bounds what an unknown peer can have us hash.
pub const MAX_TOKEN_BYTES: usize = 4096;

/// How far the issuer's clock may be ahead of ours. There is none for expiry: a token lives as long as it says.
const NOT_BEFORE_LEEWAY: Duration = Duration::from_secs(60);

/// Checks tokens against a set of public keys.
pub struct JwtAuthenticator {
    keys: TokenKeys,
    validation: Validation,
}

/// The claims that count; others are ignored. Times are NumericDate: seconds since 1970, maybe with a fraction.
#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    exp: Option<f64>,
    nbf: Option<f64>,
    jti: Option<String>,
}

impl JwtAuthenticator {
    pub fn new(keys: TokenKeys) -> Self {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        Self { keys, validation }
    }

    /// `credential` is the bare token, without `Bearer`.
    pub fn authenticate(&self, credential: &[u8], now: SystemTime) -> Result<Grant, Denied> {
        if credential.is_empty() {
            return Err(Denied::missing());
        }
        if credential.len() > MAX_TOKEN_BYTES {
            return Err(Denied::invalid("the token is longer than 4096 bytes"));
        }
        let claims = self.verify(credential)?;
        let expires_at = check_times(&claims, now)?;
        let subject = claims
            .sub
            .ok_or_else(|| Denied::invalid("the token has no sub"))?;
        let device = DeviceId::from_bytes(subject.into())
            .map_err(|_| Denied::invalid("the token's sub is not a device id"))?;
        let token_id = claims.jti.filter(|id| !id.is_empty());
        if token_id.as_ref().is_some_and(|id| id.len() > MAX_TOKEN_ID_BYTES) {
            return Err(Denied::invalid("the token's jti is longer than 256 bytes"));
        }
        Ok(Grant {
            device,
            principal: Principal::Token { expires_at, token_id }.encode(),
            challenge: None,
        })
    }

    fn verify(&self, token: &[u8]) -> Result<Claims, Denied> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| Denied::invalid("not a JWT"))?;
        if header.alg != Algorithm::EdDSA {
            return Err(Denied::invalid("the token's algorithm is not EdDSA"));
        }
        if header.crit.is_some() {
            return Err(Denied::invalid(
                "the token needs an extension that is not known here",
            ));
        }
        let named = self
            .keys
            .keys
            .iter()
            .find(|key| header.kid.as_deref() == Some(&key.id));
        match named {
            Some(key) => self.verify_with(token, std::slice::from_ref(key)),
            None => self.verify_with(token, &self.keys.keys),
        }
    }

    fn verify_with(&self, token: &[u8], keys: &[TokenKey]) -> Result<Claims, Denied> {
        for key in keys {
            match jsonwebtoken::decode(token, &key.key, &self.validation) {
                Ok(TokenData { claims, .. }) => return Ok(claims),
                Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => {}
                Err(_) => return Err(Denied::invalid("the token cannot be read")),
            }
        }
        Err(Denied::invalid("the token's signature is not by a known key"))
    }
}

/// Returns the expiry in whole seconds since 1970.
fn check_times(claims: &Claims, now: SystemTime) -> Result<u64, Denied> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let expires = claims
        .exp
        .ok_or_else(|| Denied::invalid("the token has no exp"))?;
    if expires <= now {
        return Err(Denied::expired());
    }
    if claims
        .nbf
        .is_some_and(|nbf| nbf > now + NOT_BEFORE_LEEWAY.as_secs_f64())
    {
        return Err(Denied::invalid("the token is not valid yet"));
    }
    Ok(expires as u64)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use ed25519_dalek::{Signer, SigningKey};
    use hmac::{Hmac, KeyInit, Mac};
    use serde_json::{Value, json};
    use sha2::Sha256;

    const NOW: u64 = 1_800_000_000;

    pub(in crate::auth) fn signing_key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    pub(in crate::auth) fn public_pem(key: &SigningKey) -> String {
        let mut der = vec![
            0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
        ];
        der.extend_from_slice(key.verifying_key().as_bytes());
        format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            STANDARD.encode(der)
        )
    }

    fn encoded(header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}", part(header), part(claims))
    }

    fn token(key: &SigningKey, header: &Value, claims: &Value) -> String {
        let message = encoded(header, claims);
        let signature = key.sign(message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
    }

    fn eddsa() -> Value {
        json!({"alg": "EdDSA", "typ": "JWT"})
    }

    fn claims() -> Value {
        json!({"sub": "speaker-1", "exp": NOW + 60, "iat": NOW, "jti": "t-1", "other": [1]})
    }

    fn check(token: &str) -> Result<Grant, Denied> {
        let pem = format!("{}{}", public_pem(&signing_key(1)), public_pem(&signing_key(2)));
        let authenticator = JwtAuthenticator::new(TokenKeys::from_pem(&pem).unwrap());
        authenticator.authenticate(token.as_bytes(), UNIX_EPOCH + Duration::from_secs(NOW))
    }

    fn denied(token: &str, code: &str) -> String {
        let denied = check(token).unwrap_err();
        assert_eq!((denied.status, denied.code), (401, code), "{denied}");
        let secret = token.rsplit('.').next().unwrap();
        assert!(
            secret.is_empty() || !denied.to_string().contains(secret),
            "{denied}"
        );
        denied.message
    }

    fn with(name: &str, value: Value) -> String {
        let mut claims = claims();
        claims[name] = value;
        token(&signing_key(1), &eddsa(), &claims)
    }

    #[test]
    fn a_good_token_of_any_key_is_taken() {
        for seed in [1, 2] {
            let grant = check(&token(&signing_key(seed), &eddsa(), &claims())).unwrap();
            assert_eq!(grant.device.as_str(), "speaker-1");
            let principal = Principal::decode(&grant.principal).unwrap();
            assert_eq!(
                principal,
                Principal::Token {
                    expires_at: NOW + 60,
                    token_id: Some("t-1".to_owned())
                }
            );
        }
    }

    #[test]
    fn a_key_id_picks_its_key_and_an_unknown_one_tries_all() {
        let kid = |seed: u8| super::super::key_id(signing_key(seed).verifying_key().as_bytes());
        let header = |kid: &str| json!({"alg": "EdDSA", "kid": kid});
        assert!(check(&token(&signing_key(2), &header(&kid(2)), &claims())).is_ok());
        assert!(check(&token(&signing_key(2), &header("unknown"), &claims())).is_ok());
        denied(
            &token(&signing_key(2), &header(&kid(1)), &claims()),
            "token_invalid",
        );
    }

    #[test]
    fn expiry_has_no_leeway_and_not_before_has_sixty_seconds() {
        assert!(check(&with("exp", json!(NOW as f64 + 0.5))).is_ok());
        denied(&with("exp", json!(NOW)), "token_expired");
        assert!(check(&with("nbf", json!(NOW + 60))).is_ok());
        assert!(denied(&with("nbf", json!(NOW + 61)), "token_invalid").contains("not valid yet"));
    }

    #[test]
    fn claims_are_required_and_of_their_types() {
        for (name, value) in [
            ("sub", Value::Null),
            ("sub", json!("")),
            ("sub", json!("a b")),
            ("sub", json!(7)),
            ("sub", json!("x".repeat(129))),
            ("exp", Value::Null),
            ("exp", json!("tomorrow")),
            ("jti", json!("x".repeat(257))),
        ] {
            denied(&with(name, value), "token_invalid");
        }
    }

    #[test]
    fn an_unknown_key_is_refused() {
        denied(&token(&signing_key(3), &eddsa(), &claims()), "token_invalid");
    }

    #[test]
    fn the_token_does_not_choose_the_algorithm() {
        for alg in ["none", "None", "HS256", "RS256", "ES256"] {
            let unsigned = format!("{}.", encoded(&json!({"alg": alg}), &claims()));
            denied(&unsigned, "token_invalid");
            denied(
                &token(&signing_key(1), &json!({"alg": alg}), &claims()),
                "token_invalid",
            );
        }
        let message = encoded(&json!({"alg": "HS256", "typ": "JWT"}), &claims());
        let public = signing_key(1).verifying_key();
        for secret in [
            public.as_bytes().to_vec(),
            public_pem(&signing_key(1)).into_bytes(),
        ] {
            let mut mac = Hmac::<Sha256>::new_from_slice(&secret).unwrap();
            mac.update(message.as_bytes());
            let signature = URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
            denied(&format!("{message}.{signature}"), "token_invalid");
        }
    }

    #[test]
    fn critical_extensions_are_refused() {
        let header = json!({"alg": "EdDSA", "crit": ["x"], "x": 1});
        assert!(denied(&token(&signing_key(1), &header, &claims()), "token_invalid").contains("extension"));
    }

    #[test]
    fn garbage_and_tampering_are_refused() {
        denied("", "token_missing");
        for garbage in ["x", "..", "a.b.c", "\u{0}", "eyJ.eyJ.eyJ"] {
            denied(garbage, "token_invalid");
        }
        denied(&"x".repeat(MAX_TOKEN_BYTES + 1), "token_invalid");
        let good = token(&signing_key(1), &eddsa(), &claims());
        let (message, signature) = good.rsplit_once('.').unwrap();
        let (header, _) = message.split_once('.').unwrap();
        let mut other = claims();
        other["sub"] = json!("speaker-2");
        let swapped = format!(
            "{header}.{}.{signature}",
            URL_SAFE_NO_PAD.encode(other.to_string())
        );
        denied(&swapped, "token_invalid");
        denied(&good[..good.len() - 4], "token_invalid");
    }
}
