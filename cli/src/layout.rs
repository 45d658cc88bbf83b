//! Which file is where under DIR.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::unix_http::socket_of;

/// DIR, absolute, and the names in it.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        let root = std::path::absolute(dir).with_context(|| format!("{}", dir.display()))?;
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("up.lock")
    }

    pub(crate) fn up_json(&self) -> PathBuf {
        self.root.join("up.json")
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.root.join("ca.pem")
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.root.join("cert.pem")
    }

    pub(crate) fn certificate_key(&self) -> PathBuf {
        self.root.join("key.pem")
    }

    /// The private key that signs device tokens.
    pub(crate) fn token_key(&self) -> PathBuf {
        self.root.join("token_key.pem")
    }

    /// The public keys that the backend accepts tokens from.
    pub(crate) fn token_keys(&self) -> PathBuf {
        self.root.join("token_keys.pem")
    }

    pub(crate) fn api_keys(&self) -> PathBuf {
        self.root.join("api_keys.toml")
    }

    pub(crate) fn signing_key(&self) -> PathBuf {
        self.root.join("signing.key")
    }

    pub(crate) fn key_dir(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// What the keys of devices on `ws` and `udp` are derived from.
    pub(crate) fn master_key(&self) -> PathBuf {
        self.key_dir().join("master.toml")
    }

    pub(crate) fn routes(&self) -> PathBuf {
        self.root.join("routes.toml")
    }

    pub(crate) fn frontend_config(&self) -> PathBuf {
        self.root.join("frontend.toml")
    }

    pub(crate) fn backend_config(&self) -> PathBuf {
        self.root.join("backend.toml")
    }

    pub(crate) fn frontend_data(&self) -> PathBuf {
        self.root.join("frontend")
    }

    pub(crate) fn link_dir(&self) -> PathBuf {
        self.root.join("link")
    }

    pub(crate) fn link_socket(&self) -> PathBuf {
        self.link_dir().join("frontend.sock")
    }

    /// Where `up` and its backends can be told what to do.
    pub(crate) fn control_dir(&self) -> PathBuf {
        self.root.join("control")
    }

    pub(crate) fn up_socket(&self) -> PathBuf {
        socket_of(&self.control_dir(), "up")
    }

    /// Second names of the programs that run.
    pub(crate) fn pins(&self) -> PathBuf {
        self.root.join("bin")
    }

    pub(crate) fn pinned(&self, name: &str) -> PathBuf {
        self.pins().join(name)
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }
}
