//! `holdfast device`: a device at the keyboard, or one that sends by itself.

mod event;
mod interactive;
mod scripted;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use holdfast_client::{Builder, Device, Tls};

use crate::args::DeviceArgs;
use crate::token::Signer;
use crate::up_json::UpJson;

pub(crate) fn run(dir: &Path, args: &DeviceArgs) -> Result<ExitCode> {
    let target = Target::find(dir, args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match args.count {
            Some(count) => scripted::run(target.builder()?, args, count).await,
            None => interactive::run(target.builder()?, &args.device).await,
        }
    })
}

/// Where to connect, whom to trust, what to show.
struct Target {
    url: String,
    ca: PathBuf,
    token: Credential,
}

enum Credential {
    Given(String),
    /// Made anew for each attempt, so that it never expires on a device that runs for long.
    Made {
        signer: Signer,
        device: String,
    },
}

impl Target {
    /// What is not given comes from DIR; with everything given no gateway need run there.
    fn find(dir: &Path, args: &DeviceArgs) -> Result<Self> {
        let up = match (&args.url, &args.ca, &args.token) {
            (Some(_), Some(_), Some(_)) => None,
            _ => Some(UpJson::read(dir)?),
        };
        let from_up = |field: fn(&UpJson) -> String| up.as_ref().map(field).unwrap_or_default();
        let token = match (&args.token, &up) {
            (Some(token), _) => Credential::Given(token.clone()),
            (None, up) => {
                let path = up.as_ref().map(|up| up.token_key.clone()).unwrap_or_default();
                Credential::Made {
                    signer: Signer::open(&path)?,
                    device: args.device.clone(),
                }
            }
        };
        Ok(Self {
            url: args.url.clone().unwrap_or_else(|| from_up(|up| up.wss.clone())),
            ca: args
                .ca
                .clone()
                .or_else(|| up.as_ref().map(|up| up.ca.clone()))
                .unwrap_or_default(),
            token,
        })
    }

    fn builder(self) -> Result<Builder> {
        let pem = std::fs::read(&self.ca).with_context(|| format!("cannot read {}", self.ca.display()))?;
        let builder = match self.token {
            Credential::Given(token) => Device::builder(self.url, token),
            Credential::Made { signer, device } => Device::builder_with_token_provider(self.url, move || {
                signer
                    .sign(&device, TOKEN_TTL)
                    .map_err(|e| format!("{e:#}").into())
            }),
        };
        Ok(builder.tls(Tls::from_ca_pem(&pem)?))
    }
}

const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
