//! `DIR/up.json`: where a running gateway is.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::files::{self, Access};
use crate::layout::Layout;

/// What `holdfast up` writes when all is ready, and again after each restart.
#[cfg_attr(test, derive(Default))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UpJson {
    pub(crate) wss: String,
    #[serde(default)]
    pub(crate) ws: String,
    #[serde(default)]
    pub(crate) udp: String,
    pub(crate) api: String,
    pub(crate) api_key: String,
    /// PEM file of the CA that signed the certificate of `wss`.
    pub(crate) ca: PathBuf,
    pub(crate) frontend_admin: String,
    pub(crate) frontend_pid: u32,
    pub(crate) backend_pid: u32,
    /// The backend that serves; an upgrade puts another in its place.
    pub(crate) backend_name: String,
    pub(crate) backend_bin: PathBuf,
    /// Where `up` and its backends can be told what to do.
    pub(crate) control_dir: PathBuf,
    pub(crate) routes: PathBuf,
    /// PEM file of the private key that signs device tokens.
    pub(crate) token_key: PathBuf,
    /// TOML file of the master keys that devices' keys are derived from.
    #[serde(default)]
    pub(crate) master_key: PathBuf,
    /// The `holdfast up` itself.
    pub(crate) up_pid: u32,
    pub(crate) frontend_restarts: u32,
    /// Of all backends since `up` began.
    pub(crate) backend_restarts: u32,
}

impl UpJson {
    /// Reads the file of the gateway that runs on `dir`. One that an `up` left which was killed is an error that says so.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let up = Self::read_unchecked(dir)?;
        let layout = Layout::new(dir)?;
        // A pid may have gone to somebody else; a socket at which somebody listens has not.
        match UnixStream::connect(layout.up_socket()) {
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {
                Err(anyhow!(
                    "{} is of a `holdfast up` that is not running any more (pid {}); start it with `holdfast --dir {} up`",
                    layout.up_json().display(),
                    up.up_pid,
                    dir.display()
                ))
            }
            _ => Ok(up),
        }
    }

    /// Reads the file, whoever has written it.
    pub(crate) fn read_unchecked(dir: &Path) -> Result<Self> {
        let path = Layout::new(dir)?.up_json();
        let text = files::read_if_there(&path)?.ok_or_else(|| {
            anyhow!(
                "nothing runs on {} (start it with `holdfast up`, or name another --dir)",
                dir.display()
            )
        })?;
        serde_json::from_str(&text).with_context(|| format!("{} is not readable", path.display()))
    }

    /// Replaces the file in one step. It holds the API key, so it is private. It says nothing that outlives this machine's
    /// next start, so it need not be on the disk.
    pub(crate) fn write(&self, layout: &Layout) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).context("up.json")?;
        text.push(b'\n');
        files::replace(&layout.up_json(), &text, Access::Private)
    }
}
