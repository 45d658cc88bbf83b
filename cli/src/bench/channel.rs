//! The kinds of channel that devices connect over. A kind that is added here takes its share of the devices.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use holdfast_client::{Builder, Device, Tls};
use serde::Serialize;

use crate::token::Signer;
use crate::up_json::UpJson;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Channel {
    Wss,
}

impl Channel {
    pub(crate) const ALL: [Self; 1] = [Self::Wss];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Wss => "wss",
        }
    }

    /// Devices take turns.
    pub(crate) fn of(device: u32) -> Self {
        Self::ALL[device as usize % Self::ALL.len()]
    }

    /// File descriptors that a device takes in this process.
    pub(crate) fn descriptors(self) -> u64 {
        match self {
            Self::Wss => 1,
        }
    }
}

/// How to reach the gateway over each channel.
#[derive(Clone)]
pub(crate) struct Dialler {
    url: String,
    tls: Tls,
    signer: Arc<Signer>,
}

impl Dialler {
    pub(crate) fn new(up: &UpJson) -> Result<Self> {
        let pem = std::fs::read(&up.ca).with_context(|| format!("cannot read {}", up.ca.display()))?;
        Ok(Self {
            url: up.wss.clone(),
            tls: Tls::from_ca_pem(&pem)?,
            signer: Arc::new(Signer::open(Path::new(&up.token_key))?),
        })
    }

    /// A device of the kind that its number gives. Replies must come in the order of requests, as the bench's route says.
    pub(crate) fn builder(&self, device: u32) -> Builder {
        match Channel::of(device) {
            Channel::Wss => self.wss(device),
        }
        .expect_order(true)
        .max_in_flight(MAX_IN_FLIGHT)
        .connect_timeout(CONNECT_TIMEOUT)
        .request_timeout(REQUEST_TIMEOUT)
        .seed(u64::from(device))
    }

    fn wss(&self, device: u32) -> Builder {
        let signer = self.signer.clone();
        let token = move || {
            signer
                .sign(&format!("bench-{device}"), TOKEN_TTL)
                .map_err(|e| format!("{e:#}").into())
        };
        Device::builder_with_token_provider(self.url.clone(), token).tls(self.tls.clone())
    }
}

/// Requests that a device may have in flight; what is due beyond it waits, and its latency counts on.
const MAX_IN_FLIGHT: usize = 256;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// After it a request is lost. Longer than the route's time limit twice, which a request that met a crash may take.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
