//! Keys, certificates and tokens of a test gateway, made by hand so that bad ones can be made as easily as good ones.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::pkcs8::EncodePublicKey as _;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::{Signer as _, SigningKey};
use holdfast_proto::secure::{DeviceKey, Identity, KEY_BYTES, MasterKey};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};

/// A certificate authority and one server certificate for `localhost` and `127.0.0.1`.
pub struct Certificates {
    pub ca_pem: String,
    /// The chain without the root.
    pub chain_pem: String,
    pub key_pem: String,
    ca: CertificateDer<'static>,
}

impl Certificates {
    pub fn generate() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names, none invalid");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "Holdfast test root");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca_key = KeyPair::generate().expect("a key pair");
        let ca = params.self_signed(&ca_key).expect("a root certificate");
        let issuer = Issuer::new(params, ca_key);
        let mut params = CertificateParams::new(["localhost".to_owned()]).expect("a valid name");
        params
            .subject_alt_names
            .push(SanType::IpAddress([127, 0, 0, 1].into()));
        let key = KeyPair::generate().expect("a key pair");
        let certificate = params.signed_by(&key, &issuer).expect("a server certificate");
        Self {
            ca_pem: ca.pem(),
            chain_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            ca: ca.der().clone(),
        }
    }

    /// A client that trusts this authority alone.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone()).expect("our own root parses");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring speaks TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    }
}

/// Signs device tokens.
pub struct TokenKey(SigningKey);

impl TokenKey {
    pub fn generate() -> Self {
        Self(SigningKey::from_bytes(&rand::random()))
    }

    /// The public half, SPKI PEM.
    pub fn public_pem(&self) -> String {
        self.0
            .verifying_key()
            .to_public_key_pem(LineEnding::LF)
            .expect("a key encodes")
    }

    /// A token that lets `device` in for an hour.
    pub fn token(&self, device: &str) -> String {
        self.sign(json!({"sub": device, "iat": now(), "exp": now() + 3600}))
    }

    /// A properly signed token with any claims.
    pub fn sign(&self, claims: Value) -> String {
        self.sign_with_header(json!({"alg": "EdDSA", "typ": "JWT"}), claims)
    }

    /// An Ed25519 signature under any header, also one that names another algorithm.
    pub fn sign_with_header(&self, header: Value, claims: Value) -> String {
        let input = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let signature = self.0.sign(input.as_bytes());
        format!("{input}.{}", encode(signature.to_bytes()))
    }

    /// A token signed by HMAC with the public key's PEM as the secret: the classic confusion of algorithms.
    pub fn confused(&self, device: &str) -> String {
        use hmac::{Hmac, KeyInit as _, Mac as _};
        let claims = json!({"sub": device, "exp": now() + 3600});
        let input = format!(
            "{}.{}",
            encode(r#"{"alg":"HS256","typ":"JWT"}"#),
            encode(claims.to_string())
        );
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(self.public_pem().as_bytes()).expect("any length");
        mac.update(input.as_bytes());
        format!("{input}.{}", encode(mac.finalize().into_bytes()))
    }
}

/// A master key of a gateway's devices on `ws` and `udp`, and what comes of it.
pub struct DeviceKeys {
    id: String,
    master: MasterKey,
}

impl DeviceKeys {
    /// The one that a gateway has from its start.
    pub fn generate() -> Self {
        Self::generate_as("k1")
    }

    /// One under another key id.
    pub fn generate_as(id: &str) -> Self {
        let bytes: [u8; KEY_BYTES] = rand::random();
        Self {
            id: id.to_owned(),
            master: MasterKey::from_bytes(&bytes).expect("the right length"),
        }
    }

    /// Who `device` says it is.
    pub fn identity(&self, device: &str) -> Identity {
        Identity {
            key_id: self.id.clone(),
            product: "speaker".to_owned(),
            class: "test".to_owned(),
            device: device.parse().expect("a device id"),
            key_version: 1,
        }
    }

    pub fn device_key(&self, identity: &Identity) -> DeviceKey {
        self.master.device_key(identity)
    }

    /// A backend's file of these master keys.
    pub fn master_toml(keys: &[&Self]) -> String {
        let line = |keys: &&Self| format!("{} = \"{}\"\n", keys.id, keys.master.to_text());
        format!("[keys]\n{}", keys.iter().map(line).collect::<String>())
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
