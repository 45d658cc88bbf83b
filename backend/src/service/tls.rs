//! Whom we trust when a route's url is `https`.

use std::path::Path;
use std::sync::Arc;

use hyper_rustls::ConfigBuilderExt;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::config::{ConfigError, secrets};

/// TLS 1.2 and 1.3, trusting the authorities of the PEM file, or without one those of Mozilla's list.
pub fn client_tls(authorities: Option<&Path>) -> Result<ClientConfig, ConfigError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the cipher suites of the default versions");
    let builder = match authorities {
        Some(path) => builder.with_root_certificates(read_roots(path)?),
        None => builder.with_webpki_roots(),
    };
    Ok(builder.with_no_client_auth())
}

fn read_roots(path: &Path) -> Result<RootCertStore, ConfigError> {
    let bad = |message: String| ConfigError::Parse {
        path: path.to_owned(),
        message,
    };
    let pem = secrets::read_text(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| bad(error.to_string()))?;
        roots.add(certificate).map_err(|error| bad(error.to_string()))?;
    }
    if roots.is_empty() {
        Err(bad("holds no CERTIFICATE in PEM".to_owned()))
    } else {
        Ok(roots)
    }
}
