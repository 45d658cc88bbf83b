//! The kinds of channel that devices connect over. A kind that is added here takes its share of the devices.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use holdfast_client::{Builder, Device, Tls};
use serde::Serialize;

use crate::args::KeyOf;
use crate::key::MasterKeys;
use crate::token::Signer;
use crate::up_json::UpJson;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Channel {
    Ws,
    Wss,
    Udp,
}

/// What the bench's devices connect over
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Channels {
    Ws,
    Wss,
    Udp,
    /// All there are, in turn
    Mixed,
}

impl Channels {
    pub(crate) fn all(self) -> &'static [Channel] {
        match self {
            Self::Ws => &[Channel::Ws],
            Self::Wss => &[Channel::Wss],
            Self::Udp => &[Channel::Udp],
            Self::Mixed => &Channel::ALL,
        }
    }

    /// Devices take turns.
    fn of(self, device: u32) -> Channel {
        let all = self.all();
        all[device as usize % all.len()]
    }
}

impl Channel {
    pub(crate) const ALL: [Self; 3] = [Self::Ws, Self::Wss, Self::Udp];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::Wss => "wss",
            Self::Udp => "udp",
        }
    }

    /// File descriptors that a device takes in this process.
    pub(crate) fn descriptors(self) -> u64 {
        match self {
            Self::Ws | Self::Wss | Self::Udp => 1,
        }
    }
}

/// How to reach the gateway over each channel.
#[derive(Clone)]
pub(crate) struct Dialler {
    channels: Channels,
    wss: String,
    tls: Tls,
    signer: Arc<Signer>,
    ws: String,
    udp: String,
    master: Arc<MasterKeys>,
}

impl Dialler {
    pub(crate) fn new(up: &UpJson, channels: Channels) -> Result<Self> {
        let pem = std::fs::read(&up.ca).with_context(|| format!("cannot read {}", up.ca.display()))?;
        Ok(Self {
            channels,
            wss: up.wss.clone(),
            tls: Tls::from_ca_pem(&pem)?,
            signer: Arc::new(Signer::open(Path::new(&up.token_key))?),
            ws: up.ws.clone(),
            udp: up.udp.clone(),
            master: Arc::new(MasterKeys::open(&up.master_key)?),
        })
    }

    /// A device of the kind that its number gives. Replies must come in the order of requests, as the bench's route says.
    pub(crate) fn builder(&self, device: u32) -> Result<Builder> {
        let builder = match self.channels.of(device) {
            Channel::Ws => self.keyed(&self.ws, device)?,
            Channel::Wss => self.wss(device),
            Channel::Udp => self.keyed(&self.udp, device)?,
        };
        Ok(builder
            .expect_order(true)
            .max_in_flight(MAX_IN_FLIGHT)
            .connect_timeout(CONNECT_TIMEOUT)
            .request_timeout(REQUEST_TIMEOUT)
            .seed(u64::from(device)))
    }

    fn keyed(&self, url: &str, device: u32) -> Result<Builder> {
        let of = KeyOf {
            product: "bench".into(),
            class: String::new(),
            key_id: None,
            key_version: 1,
        };
        let (identity, key) = self.master.derive(&format!("bench-{device}"), &of)?;
        Ok(Device::builder_with_key(url, identity, key))
    }

    fn wss(&self, device: u32) -> Builder {
        let signer = self.signer.clone();
        let token = move || {
            signer
                .sign(&format!("bench-{device}"), TOKEN_TTL)
                .map_err(|e| format!("{e:#}").into())
        };
        Device::builder_with_token_provider(self.wss.clone(), token).tls(self.tls.clone())
    }
}

/// Requests that a device may have in flight; what is due beyond it waits, and its latency counts on.
const MAX_IN_FLIGHT: usize = 256;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// After it a request is lost. Longer than the route's time limit twice, which a request that met a crash may take.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
