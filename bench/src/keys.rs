//! Keys, certificates and tokens for one run.

use anyhow::{Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::pkcs8::EncodePublicKey as _;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::{Signer as _, SigningKey};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// PEMs of a CA, of a certificate for `localhost` that it signed, and of that one's key.
pub(crate) struct Certificates {
    pub(crate) ca: String,
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Certificates {
    pub(crate) fn generate() -> Result<Self> {
        let mut ca = CertificateParams::new(Vec::<String>::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca_key = KeyPair::generate()?;
        let ca_pem = ca.self_signed(&ca_key)?.pem();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate()?;
        let server = CertificateParams::new(vec!["localhost".to_owned()])?.signed_by(&key, &issuer)?;
        Ok(Self {
            ca: ca_pem,
            certificate: server.pem(),
            key: key.serialize_pem(),
        })
    }
}

/// Signs device tokens.
pub(crate) struct TokenKey(SigningKey);

impl TokenKey {
    pub(crate) fn from_seed(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// The public half, SPKI PEM.
    pub(crate) fn public_pem(&self) -> Result<String> {
        self.0
            .verifying_key()
            .to_public_key_pem(LineEnding::LF)
            .map_err(|e| anyhow!("a token key: {e}"))
    }

    /// A token that outlives every run.
    pub(crate) fn token(&self, device: &str) -> String {
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA","typ":"JWT"}"#);
        let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"sub":"{device}","exp":{FAR_FUTURE}}}"#));
        let signed = format!("{header}.{claims}");
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(signed.as_bytes()).to_bytes());
        format!("{signed}.{signature}")
    }
}

/// The id of the one master key.
pub(crate) const MASTER_KEY_ID: &str = "k1";

/// The year 2100, in seconds since 1970.
const FAR_FUTURE: u64 = 4_102_444_800;

pub(crate) fn random_hex() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_three_parts_and_depend_on_the_key() {
        let (a, b) = (TokenKey::from_seed([1; 32]), TokenKey::from_seed([2; 32]));
        assert_eq!(a.token("d").split('.').count(), 3);
        assert_eq!(a.token("d"), a.token("d"));
        assert_ne!(a.token("d"), b.token("d"));
    }
}
