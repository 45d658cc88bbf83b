//! Whom to trust.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::Error;

/// A TLS client configuration (1.3 and 1.2). Cheap to clone: share one among all devices of a process.
#[derive(Clone)]
pub struct Tls(pub(crate) Arc<ClientConfig>);

impl Tls {
    /// Trusts the certificates in `pem` and nothing else.
    pub fn from_ca_pem(pem: &[u8]) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|e| Error::Config(format!("the CA is not PEM: {e}")))?;
            roots
                .add(certificate)
                .map_err(|e| Error::Config(format!("the CA cannot be used: {e}")))?;
        }
        if roots.is_empty() {
            return Err(Error::Config("the CA has no certificate".into()));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::Config(format!("TLS: {e}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }

    /// Takes a configuration made elsewhere (client certificates, other roots).
    pub fn from_config(config: Arc<ClientConfig>) -> Self {
        Self(config)
    }
}
