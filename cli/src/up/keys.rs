//! Keys and certificates under DIR: made where missing, kept where they are, and refused with a clear line where they are
//! there but cannot be used.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey, KeypairBytes};
use holdfast_proto::secure::{KEY_BYTES, MasterKey};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::files::{self, Access};
use crate::key::MasterKeys;
use crate::layout::Layout;

/// Makes what is missing; gives the API key that the other commands use.
pub(super) fn ensure(layout: &Layout) -> Result<String> {
    ensure_certificate(layout)?;
    ensure_token_keys(layout)?;
    ensure_signing_key(layout)?;
    ensure_master_key(layout)?;
    ensure_api_key(layout)
}

/// The CA, the server's certificate and its key belong together: one missing makes all anew. The CA's own key is thrown
/// away, so that nobody can sign with it later.
fn ensure_certificate(layout: &Layout) -> Result<()> {
    let paths = [layout.ca(), layout.certificate(), layout.certificate_key()];
    if paths.iter().all(|path| path.exists()) {
        for path in &paths[..2] {
            CertificateDer::from_pem_file(path).map_err(|e| unusable(path, &e))?;
        }
        PrivateKeyDer::from_pem_file(&paths[2]).map_err(|e| unusable(&paths[2], &e))?;
        return files::make_private(&paths[2]);
    }
    let (ca, certificate, key) = make_certificate().context("cannot make a certificate")?;
    files::write(&paths[2], key.as_bytes(), Access::Private)?;
    files::write(&paths[1], certificate.as_bytes(), Access::Public)?;
    files::write(&paths[0], ca.as_bytes(), Access::Public)
}

/// PEMs of a CA, of a certificate for this machine's own names that it signed, and of that one's key.
fn make_certificate() -> Result<(String, String, String), rcgen::Error> {
    let mut ca = CertificateParams::new(Vec::<String>::new())?;
    ca.distinguished_name
        .push(DnType::CommonName, "Holdfast development CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_key = KeyPair::generate()?;
    let ca_certificate = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);

    let names = SERVER_NAMES.map(str::to_owned).to_vec();
    let mut server = CertificateParams::new(names)?;
    server.distinguished_name.push(DnType::CommonName, "localhost");
    let key = KeyPair::generate()?;
    let certificate = server.signed_by(&key, &issuer)?;
    Ok((ca_certificate.pem(), certificate.pem(), key.serialize_pem()))
}

/// The public keys always contain that of our private key; others that were added stay.
fn ensure_token_keys(layout: &Layout) -> Result<()> {
    let path = layout.token_key();
    let key = match files::read_if_there(&path)? {
        Some(pem) => {
            files::make_private(&path)?;
            SigningKey::from_pkcs8_pem(&pem).map_err(|e| unusable(&path, &e))?
        }
        None => {
            let key = SigningKey::from_bytes(&rand::random());
            files::write(&path, private_pem(&key)?.as_bytes(), Access::Private)?;
            key
        }
    };
    let public = key
        .verifying_key()
        .to_public_key_pem(LineEnding::LF)
        .map_err(|e| anyhow!("token key: {e}"))?;
    let path = layout.token_keys();
    let known = files::read_if_there(&path)?.unwrap_or_default();
    if known.contains(public.trim()) {
        return Ok(());
    }
    files::write(&path, format!("{public}{known}").as_bytes(), Access::Public)
}

/// PKCS #8 version 1: without the public key, which many readers of such files do not expect.
fn private_pem(key: &SigningKey) -> Result<String> {
    let bytes = KeypairBytes {
        secret_key: key.to_bytes(),
        public_key: None,
    };
    let pem = bytes
        .to_pkcs8_pem(LineEnding::LF)
        .map_err(|e| anyhow!("token key: {e}"))?;
    Ok(pem.to_string())
}

fn ensure_signing_key(layout: &Layout) -> Result<()> {
    let path = layout.signing_key();
    match files::read_if_there(&path)? {
        None => files::write(&path, format!("{}\n", random_hex()).as_bytes(), Access::Private),
        Some(text) => {
            let text = text.trim();
            if text.len() < 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                bail!(
                    "{} is not a key of at least 32 bytes in hex; remove it to get a new one",
                    path.display()
                );
            }
            files::make_private(&path)
        }
    }
}

/// Keys that were added stay, and so does a file from which the first one was taken away.
fn ensure_master_key(layout: &Layout) -> Result<()> {
    let path = layout.master_key();
    if files::read_if_there(&path)?.is_some() {
        files::make_private(&path)?;
        MasterKeys::open(&path)?;
        return Ok(());
    }
    let bytes = Zeroizing::new(rand::random::<[u8; KEY_BYTES]>());
    let key = MasterKey::from_bytes(&*bytes).context("a master key")?;
    let text = Zeroizing::new(format!("{MASTER_HEAD}[keys]\nk1 = \"{}\"\n", key.to_text()));
    files::private_dir(&layout.key_dir())?;
    files::write(&path, text.as_bytes(), Access::Private)
}

const MASTER_HEAD: &str = "\
# Whoever has a master key can be every device. Watched: a change takes effect without a restart, and connected devices stay.
# `holdfast key DEVICE` prints the key that is derived for a device.
";

#[derive(Deserialize)]
struct ApiKeys {
    #[serde(default)]
    key: Vec<ApiKey>,
}

#[derive(Deserialize)]
struct ApiKey {
    secret: String,
    #[serde(default)]
    scopes: Vec<String>,
}

fn ensure_api_key(layout: &Layout) -> Result<String> {
    let path = layout.api_keys();
    let Some(text) = files::read_if_there(&path)? else {
        let secret = format!("hf_{}", random_hex());
        let text = format!(
            "[[key]]\nid = \"ops\"\nsecret = \"{secret}\"\nscopes = [\"push\", \"read\", \"admin\"]\n"
        );
        files::write(&path, text.as_bytes(), Access::Private)?;
        return Ok(secret);
    };
    files::make_private(&path)?;
    let keys: ApiKeys = toml::from_str(&text).map_err(|e| unusable(&path, &e.message()))?;
    let wanted = ["push", "read"];
    let usable = |key: &&ApiKey| wanted.iter().all(|scope| key.scopes.iter().any(|s| s == scope));
    let key = keys.key.iter().find(usable);
    let key = key.ok_or_else(|| anyhow!("{} has no key with the scopes push and read", path.display()))?;
    Ok(key.secret.clone())
}

fn random_hex() -> String {
    rand::random::<[u8; 32]>()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> anyhow::Error {
    anyhow!(
        "{} cannot be used ({error}); remove it to get a new one",
        path.display()
    )
}

const SERVER_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Signer;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    fn layout() -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path()).unwrap();
        (dir, layout)
    }

    #[test]
    fn keys_are_made_once_and_kept() {
        let (_dir, layout) = layout();
        let secret = ensure(&layout).unwrap();
        assert!(secret.starts_with("hf_") && secret.len() >= 32);
        let all = [
            layout.ca(),
            layout.certificate(),
            layout.token_key(),
            layout.token_keys(),
            layout.signing_key(),
            layout.master_key(),
        ];
        let before: Vec<_> = all.iter().map(|path| std::fs::read(path).unwrap()).collect();
        assert_eq!(ensure(&layout).unwrap(), secret);
        let after: Vec<_> = all.iter().map(|path| std::fs::read(path).unwrap()).collect();
        assert_eq!(before, after);
        for private in [
            layout.certificate_key(),
            layout.token_key(),
            layout.api_keys(),
            layout.signing_key(),
            layout.master_key(),
        ] {
            assert_eq!(
                std::fs::metadata(&private).unwrap().permissions().mode() & 0o777,
                0o600,
                "{private:?}"
            );
        }
        let token = Signer::open(&layout.token_key())
            .unwrap()
            .sign("tv", Duration::from_secs(60))
            .unwrap();
        assert_eq!(token.split('.').count(), 3);
    }

    #[test]
    fn a_missing_part_of_the_certificate_makes_all_anew() {
        let (_dir, layout) = layout();
        ensure(&layout).unwrap();
        let before = std::fs::read(layout.ca()).unwrap();
        std::fs::remove_file(layout.certificate_key()).unwrap();
        ensure(&layout).unwrap();
        assert_ne!(std::fs::read(layout.ca()).unwrap(), before);
    }

    #[test]
    fn added_public_keys_stay() {
        let (_dir, layout) = layout();
        std::fs::write(
            layout.token_keys(),
            "-----BEGIN PUBLIC KEY-----\nother\n-----END PUBLIC KEY-----\n",
        )
        .unwrap();
        ensure(&layout).unwrap();
        let keys = std::fs::read_to_string(layout.token_keys()).unwrap();
        assert_eq!(keys.matches("BEGIN PUBLIC KEY").count(), 2);
        assert!(keys.contains("other"));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for name in [
            "token_key.pem",
            "signing.key",
            "api_keys.toml",
            "ca.pem",
            "keys/master.toml",
        ] {
            let (dir, layout) = layout();
            ensure(&layout).unwrap();
            std::fs::write(dir.path().join(name), "half a fi").unwrap();
            let error = ensure(&layout).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
