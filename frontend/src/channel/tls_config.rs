//! The TLS server configuration from PEM files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_proto::config::check_secret_file;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::NoServerSessionStorage;
use rustls_pki_types::pem::{Error as PemError, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Why there is no TLS configuration; each names the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsConfigError {
    #[error("certificate {path}: {reason}", path = .path.display())]
    Certificate { path: PathBuf, reason: String },
    #[error("key {path}: {reason}", path = .path.display())]
    Key { path: PathBuf, reason: String },
    #[error("certificate {certificate} and key {key}: {reason}", certificate = .certificate.display(), key = .key.display())]
    Pair {
        certificate: PathBuf,
        key: PathBuf,
        reason: rustls::Error,
    },
}

/// Tickets per full TLS 1.3 handshake: a device comes back on one connection.
const TICKETS: usize = 1;

/// Reads a certificate chain (leaf first) and its private key (PKCS #8, PKCS #1 or SEC1).
///
/// TLS 1.3 and 1.2; no early data, which could be replayed. Sessions resume by tickets sealed with keys of this process
/// (rotated by rustls, valid for at most 12 hours), so resumption takes no memory per device.
///
/// # Errors
/// A file cannot be read or has no such item, others can write the key's, or the key is not the certificate's.
pub fn load_server_config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsConfigError> {
    let chain = load_chain(certificate)?;
    let private = load_key(key).map_err(|reason| TlsConfigError::Key {
        path: key.into(),
        reason,
    })?;
    let pair = |reason| TlsConfigError::Pair {
        certificate: certificate.into(),
        key: key.into(),
        reason,
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = ring::Ticketer::new().map_err(pair)?;
    config.send_tls13_tickets = TICKETS;
    Ok(Arc::new(config))
}

fn load_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let checked = std::fs::metadata(path).and_then(|file| check_secret_file(&file));
    if let Some(warning) = checked.map_err(|error| error.to_string())? {
        tracing::warn!(path = %path.display(), "{warning}");
    }
    PrivateKeyDer::from_pem_file(path).map_err(|error| explain(&error, "private key"))
}

fn load_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsConfigError> {
    let failed = |reason: String| TlsConfigError::Certificate {
        path: path.into(),
        reason,
    };
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| failed(explain(&error, "certificate")))?;
    if chain.is_empty() {
        return Err(failed("there is no certificate in it".into()));
    }
    Ok(chain)
}

fn explain(error: &PemError, item: &str) -> String {
    match error {
        PemError::NoItemsFound => format!("there is no {item} in it"),
        PemError::Io(error) => error.to_string(),
        other => format!("not readable as PEM: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Files {
        _dir: tempfile::TempDir,
        certificate: PathBuf,
        key: PathBuf,
    }

    fn files() -> Files {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        fs::write(&certificate, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        Files {
            _dir: dir,
            certificate,
            key,
        }
    }

    #[test]
    fn a_good_pair_loads() {
        let files = files();
        let config = load_server_config(&files.certificate, &files.key).unwrap();
        assert_eq!(config.max_early_data_size, 0);
        assert_eq!(config.alpn_protocols, [b"http/1.1".to_vec()]);
    }

    #[test]
    fn a_key_that_others_can_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let files = files();
        fs::set_permissions(&files.key, PermissionsExt::from_mode(0o606)).unwrap();
        let error = load_server_config(&files.certificate, &files.key).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("key.pem: it holds a secret and has mode 0606"),
            "{error}"
        );
    }

    #[test]
    fn errors_name_the_file_and_what_is_wrong() {
        let (files, other) = (files(), files());
        let says =
            |certificate: &Path, key: &Path| load_server_config(certificate, key).unwrap_err().to_string();
        let missing = Path::new("/nonexistent/x.pem");
        assert!(says(missing, &files.key).starts_with("certificate /nonexistent/x.pem: No such file"));
        assert!(says(&files.certificate, missing).starts_with("key /nonexistent/x.pem: No such file"));
        assert!(says(&files.key, &files.key).contains("there is no certificate in it"));
        assert!(says(&files.certificate, &files.certificate).contains("there is no private key in it"));
        assert!(matches!(
            load_server_config(&files.certificate, &other.key),
            Err(TlsConfigError::Pair {
                reason: rustls::Error::InconsistentKeys(_),
                ..
            })
        ));
    }
}
